"""Erase stages in the engine: the memory, exact learners, bounds, the matrix, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tiny_erasure
import tiny_stream
import torch

from lifelong import launch
from lifelong.core import discover
from lifelong.core.composition import Methods, compose
from lifelong.core.engine import Settings
from lifelong.core.stream import Stream, joined, without_erased
from lifelong.errors import UserError
from lifelong.models import restore
from lifelong.penalties.lwf import Lwf
from lifelong.streams import builtin, config
from lifelong.tuners.lora import Lora
from lifelong.tuners.o_lora import OLora


def made(name, **settings):
    return discover.load(name)(**settings)


def train(folder, parts, stream, architecture="bert", model=None, **settings):
    methods = parts if isinstance(parts, Methods) else compose(parts, Lora(rank=2))
    model = model or tiny.model(architecture)
    return launch.run(model, stream, methods, output=folder, settings=Settings(**settings))


def refused(parts, stream, match, tmp_path):
    with pytest.raises(UserError, match=match):
        train(tmp_path / "refused", parts, stream)
    assert not (tmp_path / "refused").exists()


GS = [OLora(rank=2), made("gs_lora")]


# the memory


@pytest.mark.parametrize("keep", ["tokens", "text"])
@pytest.mark.parametrize("name", discover.names("replay"))
def test_a_memory_keeps_nothing_of_erased_rows(name, keep, tmp_path):
    stream = tiny_erasure.stream()
    run = train(tmp_path / "run", [*GS, made(name, size=100, keep=keep)], stream)
    learned, after = (restore.read_run(run.folder, s).content["states"]["replay"] for s in ("farm", "forget"))
    sky = stream.stages[0]
    gone = {sky.rows[i]["text"] for i in (0, 2, 4, 6, 8, 10)} - {sky.rows[i]["text"] for i in range(1, 12, 2)}
    content = {"text": lambda item: item["row"]["text"], "tokens": lambda item: item["example"]["input_ids"]}

    def texts(state):
        found = [content[keep](item) for item in state["items"]]
        return {each if keep == "text" else tiny.tokenizer().decode(each) for each in found}

    def holds(state, text):
        return any(text in each for each in texts(state))

    assert len(learned["items"]) == 24 and len(after["items"]) == 18
    assert gone and all(holds(learned, text) for text in gone)
    assert not any(holds(after, text) for text in gone)
    assert {item["place"] for item in after["items"] if item["stage"] == 0} == set(range(1, 12, 2))
    assert {item["place"] for item in after["items"] if item["stage"] == 1} == set(range(12))


def test_an_exact_learner_drops_them_from_a_memory_too(tmp_path):
    run = train(tmp_path / "run", [made("frozen"), made("acu"), made("reservoir")], tiny_erasure.stream())
    state = restore.read_run(run.folder).content["states"]["replay"]
    assert {item["stage"] for item in state["items"]} <= {0, 1}
    assert not any(item["stage"] == 0 and item["place"] % 2 == 0 for item in state["items"])


def test_a_whole_stage_is_dropped_also_where_its_rows_are_packed(tmp_path):
    stream = tiny_stream.text_stream(general=False)
    stage = tiny_erasure.erase_stage(stream.stages[0], range(12))
    stream = Stream(stages=(*stream.stages, stage))
    run = train(tmp_path / "run", [*GS, made("reservoir", size=100)], stream, "llama")
    state = restore.read_run(run.folder).content["states"]["replay"]
    assert {item["stage"] for item in state["items"]} == {1}
    part = Stream(stages=(*stream.stages[:2], tiny_erasure.erase_stage(stream.stages[0], range(6))))
    with pytest.raises(
        UserError, match="cannot tell which of them to drop. Set the objective's pack to false"
    ):
        train(tmp_path / "part", [*GS, made("reservoir")], part, "llama")
    assert train(tmp_path / "part", GS, part, "llama").summary["finished"]


def test_inclusion_stays_uniform_after_an_erasure():
    """Rows that stay and rows that come are kept alike; refilling at once would favour those that come."""
    counts, method = torch.zeros(200), made("reservoir", size=20)
    for seed in range(800):
        state = method.add(method.init(seed), [{"stage": 0, "place": i, "example": {}} for i in range(100)])
        state = method.forget(state, lambda item: item["place"] < 50)
        state = method.add(state, [{"stage": 0, "place": i, "example": {}} for i in range(100, 200)])
        counts[[item["place"] for item in state["items"]]] += 1
    assert counts[:50].sum() == 0
    expected = 800 * 20 / 200
    chi_square = ((counts[50:] - expected).square() / expected).sum()
    assert chi_square < 210  # 150 cells, each less than free: mean below 150; 99.9 % below 208


# exact learners


def double(architecture):
    model = tiny.model(architecture)
    model.network.double()
    return model


def heads(run):
    head = run.model.network.lifelong_head
    return head.weight.detach().double(), head.bias.detach().double()


@pytest.mark.parametrize(("tuner", "name"), [("frozen", "acu"), ("full", "acu"), ("frozen", "nmc")])
def test_an_exact_learner_is_as_if_the_rows_had_never_come(tuner, name, tmp_path):
    parts, stream = [made(tuner), made(name)], tiny_erasure.stream(at=1, places=(0, 3, 5))
    erased = train(tmp_path / "erased", parts, stream, model=double("bert"))
    never = train(tmp_path / "never", parts, without_erased(stream), model=double("bert"))
    whole = train(
        tmp_path / "whole", parts, Stream(stages=(stream.stages[0], stream.stages[2])), model=double("bert")
    )
    states = [restore.read_run(run.folder).content["states"]["analytic"] for run in (erased, never, whole)]
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], atol=1e-8, rtol=0)
    other = {"acu": "weight", "nmc": "sums"}[name]
    assert float((states[0][other] - states[2][other]).abs().max()) > 1e-4  # control
    for ours, theirs in zip(heads(erased), heads(never), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_in_float32_the_features_of_a_row_differ_by_rounding(tmp_path):
    parts, stream = [made("frozen"), made("acu")], tiny_erasure.stream(at=1)
    erased = train(tmp_path / "erased", parts, stream)
    never = train(tmp_path / "never", parts, without_erased(stream))
    states = [restore.read_run(run.folder).content["states"]["analytic"]["weight"] for run in (erased, never)]
    torch.testing.assert_close(*states, atol=1e-5, rtol=0)


def test_an_exact_learner_takes_back_only_what_it_learned(tmp_path):
    stream = tiny_erasure.stream()
    foreign = tiny_erasure.erase_stage(stream.stages[0], (0,), others=[{"text": "x", "label": "sky0"}])
    stream = replace(stream, stages=(*stream.stages[:2], foreign))
    refused([made("frozen"), made("acu")], stream, "1 of 2 rows .* are no rows of sky, and acu", tmp_path)
    assert train(tmp_path / "run", GS, stream).summary["finished"]


# what is refused


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (["lora"], "stage forget: erases rows, which lora cannot. Add .*(gs_lora).*(acu)"),
        (["full", "fsa_lda"], r"which full\+fsa_lda cannot"),
        (["o_lora", "gs_lora", "dmt"], "dmt draws from all rows of earlier stages.*Take a replay memory"),
        (["o_lora", "gs_lora", "lines"], "lines takes back a share"),
    ],
)
def test_methods_that_cannot_erase_are_refused_before_training(parts, match, tmp_path):
    refused([made(name) for name in parts], tiny_erasure.stream(), match, tmp_path)


def test_an_exact_learner_needs_no_other_way_to_unlearn():
    with pytest.raises(UserError, match="gs_lora and acu exclude each other"):
        compose([OLora(), made("gs_lora"), made("acu")], Lora())


def test_an_erase_stage_names_an_earlier_one(tmp_path):
    stream = tiny_erasure.stream(at=1)
    early = replace(stream, stages=(stream.stages[1], stream.stages[0], stream.stages[2]))
    refused(GS, early, "erases rows of `sky`, which is no earlier stage", tmp_path)


# bounds


def test_joint_training_is_retraining_without_the_rows(tmp_path):
    stream = tiny_erasure.stream()
    sky, farm, _ = stream.stages
    clean = Stream(stages=(replace(sky, rows=sky.rows[1::2]), farm))
    methods = [replace(compose([Lora(rank=2)], Lora()), stream=order) for order in ("joint", "sequence")]
    bound = train(tmp_path / "joint", methods[0], stream)
    by_hand = train(tmp_path / "by_hand", methods[1], joined(clean))
    full = train(tmp_path / "full", methods[0], Stream(stages=(sky, farm)))

    def params(run):
        return dict(run.model.network.named_parameters())

    assert all(torch.equal(p, params(by_hand)[n]) for n, p in params(bound).items())
    assert not all(torch.equal(p, params(full)[n]) for n, p in params(bound).items())  # control
    assert bound.matrix.columns == ("sky", "sky.forget", "farm") and bound.matrix.erased == (None, 0, None)
    assert bound.matrix.erased_accuracy is not None and bound.matrix.retained_accuracy is not None
    told = json.loads((bound.folder / "config.json").read_text())["stages"]
    assert [stage["num_rows"] for stage in told] == [18]


def test_one_model_per_task_is_trained_without_the_rows(tmp_path):
    methods = replace(compose([Lora(rank=2)], Lora()), stream="per_task")
    run = train(tmp_path / "run", methods, tiny_erasure.stream())
    assert run.matrix.columns == ("sky", "sky.forget", "farm") and run.matrix.erased == (None, 0, None)
    rows = {p.name: json.loads((p / "config.json").read_text())["stages"][0]["num_rows"]
            for p in (run.folder / "per_task").iterdir()}  # fmt: skip
    assert rows == {"sky": 6, "farm": 12}


@pytest.mark.parametrize("first", [True, False])
def test_columns_of_a_stage_that_is_erased_whole_stay_in_their_order(first):
    made_ = tiny_stream.stream(general=False)
    target = made_.stages[0 if first else 1]
    stages = [replace(s, evals=tuple(replace(e, erased_by="forget") for e in s.evals)) if s is target else s
              for s in made_.stages]  # fmt: skip
    stream = Stream(stages=(*stages, tiny_erasure.erase_stage(target, range(12))))
    left = without_erased(stream)
    assert len(left.stages) == 1 and [each.name for _, each in left.columns()] == ["sky", "farm"]
    with pytest.raises(UserError, match="nothing is left to train"):
        without_erased(Stream(stages=(target, stream.stages[-1])))


# what is measured


def test_columns_that_are_erased_count_in_no_mean(tmp_path):
    stream = tiny_erasure.stream(at=1)
    run = train(tmp_path / "run", [*GS, made("reservoir")], stream, diagnostics=(made("stability_gap"),))
    matrix = run.matrix
    assert matrix.columns == ("sky", "sky.forget", "farm") and matrix.taught == (0, 0, 2)
    assert matrix.erased == (None, 1, None) and len(matrix.values) == 3
    assert matrix.average_accuracy == pytest.approx((matrix.values[-1][0] + matrix.values[-1][2]) / 2)
    assert matrix.erased_accuracy == matrix.values[-1][1]
    costs = [json.loads(p.read_text()) for p in sorted(run.folder.glob("stages/*/cost.json"))]
    assert [each["name"] for each in costs] == ["sky", "forget", "farm"] and costs[1]["steps"] == 2
    assert all(each["evaluation_seconds"] > 0 for each in costs)
    told = json.loads((run.folder / "config.json").read_text())["stages"][1]
    assert told["erases"] == {"stage": "sky", "places": [0, 2, 4, 6, 8, 10]} and told["num_rows"] == 6


def test_figures_inside_stages_leave_erased_sets_out(tmp_path):
    stream = tiny_erasure.stream(at=1)
    run = train(tmp_path / "run", [*GS, made("reservoir")], stream, evaluate_steps=1)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    seen = [{tuple(sorted(x["values"])) for x in lines if x["stage"] == k} for k in range(3)]
    assert seen == [{("sky", "sky.forget")}, {("sky",)}, {("farm", "sky")}]
    assert [stream.current(row) for row in (1, 2, 3)] == [["sky", "sky.forget"], ["sky"], ["sky", "farm"]]


def test_penalties_on_answers_hold_the_remaining_rows_alone(tmp_path):
    """Without a memory an erase stage has no such row: a distillation term would keep what is to go."""
    stream = tiny_erasure.stream()
    for memory, there in (([], False), ([made("reservoir")], True)):
        run = train(tmp_path / f"{there}", [*GS, Lwf(), *memory], stream)
        lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
        assert all(("lwf" in line["penalties"]) == there for line in lines if line["stage"] == 2)
        assert any("lwf" in line["penalties"] for line in lines if line["stage"] == 1)


def test_the_example_of_the_page_runs(tmp_path):
    """With a tiny model and few rows; the request names three reviews by their text."""
    page = (Path(__file__).resolve().parents[2] / "docs/stream.md").read_text(encoding="utf-8")
    (text,) = [each for each in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "erase:" in each]
    model = tiny.model("llama")
    model.network.save_pretrained(tmp_path / "model")
    model.processor.save_pretrained(tmp_path / "model")
    (tmp_path / "stream.yaml").write_text(text)
    reviews = builtin.path("embedded:reviews.train.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/requests.jsonl").write_text("\n".join(reviews[:3]))
    limits = [f"stages.{name}.train.limit=24" for name in ("mail", "reviews")]
    changes = [f"model={tmp_path / 'model'}", f"output={tmp_path / 'run'}", "precision=float32", *limits,
               "stages.mail.eval.limit=8", "stages.reviews.eval.limit=4"]  # fmt: skip
    (run,) = launch.run_config(config.read(tmp_path / "stream.yaml", changes), tmp_path)
    matrix = run.matrix
    assert matrix.columns == ("mail", "mail.forget_spam", "reviews", "forget_some")
    assert matrix.taught == (0, 0, 1, 1) and matrix.erased == (None, 2, None, 3)
    assert None not in (matrix.erased_accuracy, matrix.erasure_gap, matrix.retained_accuracy)
    stages = json.loads((run.folder / "config.json").read_text())["stages"]
    assert stages[2]["erases"]["stage"] == "mail" and stages[3]["erases"]["places"] == [0, 1, 2]
