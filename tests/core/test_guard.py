"""The budget for forgetting: decisions, references, what follows, and what is refused."""

import json
from dataclasses import replace

import guarding
import pytest
import tiny_stream
from guarding import guard, train

from lifelong.core.axes import Answer
from lifelong.core.composition import compose
from lifelong.core.guard import baselines, check_guard, decide, entries, holds, read_answers, reference
from lifelong.core.stream import Guard
from lifelong.errors import OverBudget, UserError
from lifelong.mergers.lines import Lines
from lifelong.models import restore
from lifelong.store.files import read_json
from lifelong.store.run import RunFolder
from lifelong.tuners.full import Full
from lifelong.tuners.mora import Mora

SKY = tiny_stream.stream().stages[0].evals[0]
PROSE = tiny_stream.stream().general[0]


def answers(*right):
    """Answers to rows, right or wrong."""
    return [Answer("yes" if each else "no", ("yes",), -1.0, 1) for each in right]


def likely(*nats):
    """Answers with these log-likelihoods per token, 10 tokens each."""
    return [Answer(None, ("x",), 10 * each, 10) for each in nats]


def table(lost, won, same):
    """(before, after): rows that were lost, won, and answered alike."""
    before = answers(*[True] * lost, *[False] * won, *[True] * same)
    return before, answers(*[False] * lost, *[True] * won, *[True] * same)


# decisions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "won", "same", "verdict"),
    [(0, 0, 300, "kept"), (3, 3, 900, "kept"), (60, 0, 240, "lost"), (9, 0, 1, "lost"),
     (3, 0, 197, "undecided"), (0, 0, 5, "undecided"), (1, 0, 4, "undecided"), (0, 9, 291, "kept")],
)  # fmt: skip
def test_verdict(lost, won, same, verdict):
    found = decide(SKY, *table(lost, won, same), 0.02, 0.95)
    assert found["verdict"] == verdict
    assert found["drop"] == pytest.approx((lost - won) / (lost + won + same))
    assert (found["rows_needed"] is not None) == (verdict == "undecided")
    if verdict == "undecided":
        assert found["rows_needed"] > found["count"] and found["low"] <= 0.02 < found["high"]


def test_the_mean_alone_decides_nothing():
    """Two tables of one mean drop, 4 %: one is too small to tell, one is large enough."""
    small, large = (decide(SKY, *table(n * 4, 0, n * 96), 0.02, 0.95) for n in (1, 10))
    assert small["drop"] == large["drop"] == pytest.approx(0.04)
    assert (small["verdict"], large["verdict"]) == ("undecided", "lost")


def test_pairs_are_compared_not_totals():
    """Equal accuracy before and after, but a third of the rows changed sides: less is sure."""
    still, churned = decide(SKY, *table(0, 0, 300), 0.02, 0.95), decide(SKY, *table(50, 50, 200), 0.02, 0.95)
    assert still["drop"] == churned["drop"] == 0
    assert (still["verdict"], churned["verdict"]) == ("kept", "undecided")


def test_drop_of_a_perplexity_is_its_growth():
    before, after = likely(-1.0, -1.2, -0.9), likely(-1.05, -1.26, -0.94)
    found = decide(PROSE, before, after, 0.02, 0.95)
    assert (
        found["drop"]
        == pytest.approx(found["after"] / found["before"] - 1)
        == pytest.approx(0.0513, abs=1e-3)
    )
    assert found["verdict"] == "lost" and 0.02 < found["low"] < found["drop"] < found["high"]
    assert decide(PROSE, before, after, 0.2, 0.95)["verdict"] == "kept"
    assert decide(PROSE, before, after, 0.05, 0.95)["verdict"] == "undecided"
    alone = decide(PROSE, before[:1], after[:1], 0.02, 0.95)
    assert alone["verdict"] == "undecided" and alone["low"] is None and alone["high"] is None


def test_other_rows_are_not_compared():
    before, after = table(1, 0, 300)
    other = [*after[:-1], after[-1]._replace(references=("no",))]
    for changed in (other, after[:-1]):
        with pytest.raises(UserError, match="rows of sky are not those that it was judged by before"):
            decide(SKY, before, changed, 0.02, 0.95)


@pytest.mark.parametrize(("undecided", "passes"), [("refuse", False), ("promote", True)])
def test_an_undecided_set_passes_only_where_asked(undecided, passes):
    entry = decide(SKY, *table(1, 0, 4), 0.02, 0.95)
    assert holds(entry, Guard(undecided=undecided)) is passes


@pytest.mark.parametrize(("kind", "row"), [("best", 2), ("before", 3), ("first", 1)])
def test_reference(kind, row):
    """Small drops add up: 90, 92, 91 %, then 99 % in a row that was not promoted."""
    figures = [0.95, 0.9, 0.92, 0.91, 0.99]  # of the untrained model first, which does not count
    assert reference(Guard(reference=kind), 1, figures, served=[0, 1, 2, 3]) == row
    assert reference(Guard(reference=kind), 4, figures, served=[0, 1, 2, 3]) == 4  # no other row judged it
    assert reference(Guard(reference="best"), 1, figures, served=[0, 1, 2, 3, 4]) == 4


def test_slow_drift_is_counted_from_the_best(tmp_path):
    """Three drops of 4 points each: by `before` every one is kept, by `best` their sum is not."""
    made = guarding.stream()
    made = replace(made, stages=(made.stages[0], *[replace(made.stages[1], name=n) for n in "abc"]))
    folder = RunFolder(tmp_path / "run", {"name": "x"}, ["sky", "a", "b", "c"])
    for number, right in enumerate((100, 200, 192, 184, 176)):
        rows = [{"set": "sky", "prediction": "yes" if i < right else "no", "references": ["yes"],
                 "log_likelihood": -1.0, "tokens": 1} for i in range(200)]  # fmt: skip
        rows += [row | {"set": "farm"} for row in rows]
        folder.write_evaluation(number, {}, rows)
        folder.write(number, "evaluation.json", {"sets": [
            {"name": "sky", "benefit": right / 200}, {"name": "farm", "benefit": right / 200}]})  # fmt: skip
    verdicts = {}
    for kind in ("before", "best"):
        chosen = replace(made, guard=guard(reference=kind, allowed_drop_fraction=0.08))
        for row in (2, 3, 4):
            now = read_answers(folder, row)
            found = next(
                entries(chosen, folder, baselines(chosen, folder, row), lambda e, now=now: now[e.name])
            )
            verdicts.setdefault(kind, []).append(found["verdict"])
    folder.close()
    assert verdicts == {"before": ["kept"] * 3, "best": ["kept", "undecided", "undecided"]}
    (folder.path / "stages" / "002-a" / "evaluation.json").unlink()
    with pytest.raises(UserError, match="002-a has lost its evaluation"):
        baselines(chosen, folder, 4)


# what follows ---------------------------------------------------------------------------------


def told(folder, row="002-farm"):
    return read_json(folder / "stages" / row / "guard.json")


def test_stop_says_so_again_without_training(tmp_path):
    steps = []
    count = lambda event: steps.append(event) if event.kind == "step" else None  # noqa: E731
    with pytest.raises(
        OverBudget, match=r"stage farm .* sky lost \d\d\.\d points \(allowed: 10\.0\)"
    ) as first:
        train(tmp_path / "run", guard(), listen=count)
    trained = len(steps)
    found = told(tmp_path / "run")
    (entry,) = found["sets"]
    assert not found["promoted"] and entry["verdict"] == "lost" and entry["reference"] == "001-sky"
    assert entry["before"] == 1.0 and entry["after"] < 0.6
    with pytest.raises(OverBudget) as again:
        train(tmp_path / "run", guard(), listen=count)
    assert str(again.value) == str(first.value) and len(steps) == trained and first.value.status == 3
    run = train(tmp_path / "run", guard(otherwise="keep"), listen=count)  # another choice, same folder
    assert run.summary["finished"] and len(steps) == trained
    assert not told(run.folder)["promoted"] and told(run.folder)["settings"]["otherwise"] == "keep"


def test_keep_only_reports_and_changes_no_bit(tmp_path):
    notices = []
    kept = train(tmp_path / "kept", guard(otherwise="keep"), notices=notices)
    plain = train(tmp_path / "plain", None)
    names = [f"stages/{row}/checkpoint/state.safetensors" for row in ("001-sky", "002-farm")]
    for name in names:
        assert (kept.folder / name).read_bytes() == (plain.folder / name).read_bytes()
    assert len(notices) == 1 and "The run goes on" in notices[0]
    assert told(kept.folder, "001-sky") | {"settings": None} == {
        "stage": "sky", "promoted": True, "sets": [], "repair": None, "settings": None}  # fmt: skip
    assert not (plain.folder / "stages/002-farm/guard.json").exists()


def test_a_budget_that_is_kept_promotes(tmp_path):
    run = train(tmp_path / "run", guard(allowed_drop_fraction=0.9))
    assert told(run.folder)["promoted"] and told(run.folder)["sets"][0]["verdict"] == "kept"
    assert told(train(tmp_path / "off", guard(sets={"sky": None})).folder)["sets"] == []  # not guarded


def test_the_last_promoted_stage_is_served(tmp_path, monkeypatch):
    run = train(tmp_path / "run", guard(otherwise="keep"))
    with pytest.warns(UserWarning, match="not promoted: farm; this is stage sky"):
        assert restore.read_run(run.folder).stage == "sky"
    assert restore.read_run(run.folder, "farm").stage == "farm"
    for row in ("001-sky", "002-farm"):
        file = run.folder / "stages" / row / "guard.json"
        file.write_text(json.dumps(read_json(file) | {"promoted": False}))
    with pytest.raises(UserError, match="no stage that was promoted: sky, farm"):
        restore.read_run(run.folder)


def test_a_bound_is_not_guarded(tmp_path):
    notices = []
    run = train(tmp_path / "run", guard(), compose([Full()], Full(), "joint", "joint"), notices)
    assert run.summary["finished"] and "nothing to guard" in notices[0]


# refused before training ----------------------------------------------------------------------

WRONG = {
    "unknown set": (
        dict(sets={"ski": 0.1}),
        [Full()],
        "no evaluation set is called `ski`. Did you mean `sky`",
    ),
    "too few rows": (dict(allowed_drop_fraction=0.01), [Full()], "sky has 200 rows.*at least 381 are needed"),
    "tuner": (dict(otherwise="repair"), [Mora(rank=2)], "which mora cannot express.*full, lora, o_lora"),
    "merger": (dict(otherwise="repair"), [Full(), Lines()], "and so does lines"),
}


@pytest.mark.parametrize(("settings", "methods", "message"), WRONG.values(), ids=WRONG)
def test_refused_before_training(settings, methods, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", guard(**settings), methods)
    assert not (tmp_path / "run").exists()
    check_guard(guarding.stream(guard()), compose(methods, Full()))  # control


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"allowed_drop_fraction": 0.0}, r"\(0, 1\]"), ({"sets": {"sky": -1.0}}, r"budget of `sky`.*\(0, 1\]"),
     ({"otherwise": "panic"}, "one of 'stop', 'repair', 'keep'"), ({"confidence": 1.0}, r"\[0.5, 1\)"),
     ({"trials": 0}, r"\[1, inf\)")],
)  # fmt: skip
def test_settings_out_of_range(settings, words):
    with pytest.raises(UserError, match=words):
        Guard(**settings)


def test_a_set_that_is_neither_share_nor_perplexity_must_be_left_out():
    made = guarding.stream(guard())
    judge = made.stages[0].evals[0]
    odd = replace(judge, metric=type("Odd", (type(judge.metric),), {"unit": "ms"})())
    made = replace(made, stages=(replace(made.stages[0], evals=(odd,)), made.stages[1]))
    with pytest.raises(UserError, match="sky: null"):
        check_guard(made, compose([Full()], Full()))
    check_guard(replace(made, guard=guard(sets={"sky": None})), compose([Full()], Full()))


def test_a_small_set_may_be_promoted_undecided(tmp_path):
    notices = []
    run = train(
        tmp_path / "run", guard(undecided="promote", allowed_drop_fraction=0.5), rows=5, notices=notices
    )
    (entry,) = told(run.folder)["sets"]
    assert entry["verdict"] in ("undecided", "lost") and entry["count"] == 5
