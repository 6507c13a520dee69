"""The harness on tiny models: it runs, compares like with like, and says so when a limit is broken."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import __main__ as program
from bench import (
    cases,
    checkpoint,
    importance,
    methods,
    o_lora,
    runs,
    scoring,
    session,
    sft,
    step,
    table,
    timing,
)
from bench.figure import Figure, Settings
from lifelong.core import discover
from lifelong.core.composition import snake
from lifelong.core.engine import Event

TINY = session.Size(2, 32, 64, 2, 16)
SETTINGS = Settings(quick=True, name="tiny", loaded=lambda: tiny.model("llama"))
FIGURE = Figure(question="Is it quick?", ours=2.0, baseline=1.0, unit="ms", value=2.0, limit=1.5)


@pytest.fixture(autouse=True)
def small_peak(monkeypatch):
    monkeypatch.setattr(timing, "peak", lambda device, dtype: 1e12)


def test_both_loops_of_a_step_lose_the_same():
    settings = replace(SETTINGS, quick=True)
    found = step.compare(TINY, "float32", 1.1, settings)
    apart = float(found.spread.partition("at most ")[2].split()[0])
    assert apart < 1e-5  # the same weights, rows, order and update
    assert found.ours > 0 and found.baseline > 0 and found.unit == "ms per step"


def test_a_step_on_other_batches_is_noticed(monkeypatch):
    right = step.batches_of
    monkeypatch.setattr(step, "batches_of", lambda life, plan: right(life, plan)[::-1])
    found = step.compare(TINY, "float32", 1.1, SETTINGS)
    assert float(found.spread.partition("at most ")[2].split()[0]) > 1e-4


def test_turns_leave_out_what_the_others_take():
    clock = iter(range(1000))
    made = []

    def worker(steps):
        made.append(steps)
        for _ in range(50):
            next(clock)
        return timing.Block(50.0, steps)

    turns = timing.Turns(
        lambda: {"other": worker}, lambda first, last: last - first, 3, 2, torch.device("cpu")
    )
    timing_now, timing.now = timing.now, lambda device: float(next(clock))
    try:
        for number in range(1, 2 + 3 * 4 + 1):
            turns(Event("step", 1, number, loss=1.0))
    finally:
        timing.now = timing_now
    assert made == [2, 3, 3, 3, 3]
    assert [block.seconds for block in turns.blocks["ours"]] == [3.0] * 4  # one tick a step, none of the 50
    assert len(turns.losses) == 14


def test_ratio_is_the_median_over_neighbours():
    ours = [timing.Block(seconds, 1) for seconds in (2.0, 20.0, 2.0)]
    other = [timing.Block(seconds, 2) for seconds in (2.0, 20.0, 1.0)]  # twice the work
    assert timing.ratio(ours, other) == 2.0
    assert timing.best_ratio(ours, other) == 4.0


def test_importance_equals_one_backward_per_example():
    model, rows = session.llama(TINY, "cpu"), session.random_texts(TINY, 8)
    objective = importance.CausalLm(block_size=TINY.tokens)
    context = importance.context_of(model, rows, objective, importance.Full(), "float32")
    made, plain = importance.ours(context, 4), importance.one_by_one(context)
    assert importance.worst(made, plain) < 1e-4
    assert importance.worst({name: 2 * value for name, value in made.items()}, plain) > 0.5
    assert importance.worst(importance.one_forward(context, 4), plain) < 1e-4


def test_a_late_stage_keeps_its_pairs():
    model, size = session.llama(TINY, "cpu"), TINY
    rows, objective = session.random_texts(size, 4), importance.CausalLm(block_size=size.tokens)
    stream = session.stream_of(rows, objective, 2, 2, stages=6)
    life = o_lora.life_in_stage(model, stream, o_lora.OLora(rank=2), "float32", 5)
    spaces = life.methods.tuner.subspaces(model, life.tuner_state)
    assert life.stage == 5 and all(space.past.shape[0] == 10 for space in spaces.values())
    assert session.Stepper(life, 5)(2).amount == 2 and life.step == 2


def test_every_method_states_its_arithmetic():
    stated = cases.cases(TINY, 2, cases.facts(TINY, session.llama(TINY, "cpu")))
    axes = ("tuners", "penalties", "replay", "mixing", "mergers", "analytic", "unlearning")
    assert sorted(stated) == sorted(name for axis in axes for name in discover.names(axis))
    for name, case in stated.items():
        assert name in map(snake, case.methods.parts) and case.need.words


def test_cost_of_methods_is_measured():
    names = ("full", "o_lora", "l2", "lwf", "reservoir", "aioli", "lines", "nmc", "gs_lora")
    found = methods.compare(SETTINGS, TINY, names)
    by_name = {figure.details["method"]: figure.details for figure in found}
    assert list(by_name) == [name for name in by_name if name in names] and len(found) == len(names)
    for each in found:
        about = each.details
        assert each.value == about["measured"] / about["least"] > 0 and each.limit == methods.LIMIT
    products = {name: about["products"] for name, about in by_name.items()}
    assert products["l2"] == products["nmc"] == pytest.approx(1)
    assert products["lwf"] == pytest.approx(4 / 3, rel=1e-3) and products["reservoir"] == pytest.approx(1.5)
    assert by_name["l2"]["kept"] == pytest.approx(1, rel=0.01) and abs(by_name["l2"]["grown"]) < 0.01
    assert by_name["o_lora"]["grown"] == pytest.approx(1, rel=0.01)
    assert by_name["l2"]["peak"] > by_name["full"]["peak"] and by_name["lines"]["least"] == pytest.approx(1)


def test_least_adds_passes_products_and_bytes(monkeypatch):
    monkeypatch.setattr(methods, "bandwidth", lambda device: 100.0)
    monkeypatch.setattr(methods, "pace", lambda size, device: 500.0)
    plain = methods.Plain(None, methods.Shares(0.25, 0.5, 0.25), forward=1000.0, trained=1)
    assert methods.least(cases.AS_IS, plain, 2.0, TINY, "cpu") == pytest.approx(1)
    need = cases.Need("", forward=2, backward=1.5, update=0, products=400.0, frozen=50.0, streamed=20.0)
    expected = 0.5 + 0.75 + 0.4 * 0.25 - 50 / 500 / 2 + 20 / 100 / 2
    assert methods.least(need, plain, 2.0, TINY, "cpu") == pytest.approx(expected)


def test_peak_is_what_lies_there_at_once():
    def work(steps):
        for _ in range(3):
            both = torch.ones(1000), torch.ones(500)
            del both
        return timing.Block(1.0, steps)

    assert 6000 <= timing.peak_memory(work, torch.device("cpu")) < 8000


def test_a_checkpoint_is_measured_on_what_a_life_saves(monkeypatch):
    monkeypatch.setattr(checkpoint, "LARGE", {"q": (8, 4), "down": (4, 8)})
    monkeypatch.setattr(checkpoint, "prompts", lambda: [{"prompt": "a b", "completion": "d"}] * 16)
    real, large = checkpoint.measure(SETTINGS)
    assert real.limit == large.limit == 2.0 and real.value_unit == "% of a minute"
    assert real.value == pytest.approx(100 * real.ours / 60) and real.baseline > 0
    tensors, _ = checkpoint.large(2)
    assert sum(t.numel() for t in tensors.values()) == 3 * 2 * checkpoint.RANK * (8 + 4 + 4 + 8)


def test_scoring_and_fine_tuning_run_on_a_tiny_model(monkeypatch):
    monkeypatch.setattr(scoring, "TOKENS", 40)
    one, plain, protocol, longest = scoring.measure(SETTINGS)
    assert one.limit == plain.limit == 5.0 and protocol.limit is None and longest.limit is None
    assert protocol.ours == longest.ours and protocol.baseline > longest.baseline
    monkeypatch.setattr(
        sft, "prompts", lambda: [{"prompt": "a b c" * (i % 18), "completion": "d"} for i in range(1, 80)]
    )
    monkeypatch.setattr(sft.importlib.util, "find_spec", lambda name: None)
    *found, about_trl = sft.measure(SETTINGS)
    assert [figure.limit for figure in found] == [1.4, None] and about_trl.holds is None


def test_runs_are_compared_at_the_same_work(monkeypatch, tmp_path):
    """Every run of the bench is made once more alone; without the data the variable is named."""
    (tmp_path / "train.jsonl").write_text("")
    monkeypatch.setenv(runs.FOLDER, str(tmp_path))
    made = []
    monkeypatch.setattr(runs, "seconds", lambda folder, *words: made.append(words) or 3.0)
    two, one = runs.sharing(replace(SETTINGS, quick=False), tmp_path, tmp_path)
    alone = [words for words in made if words[0] == "run"]
    assert len(set(alone)) == len(alone) == len(runs.METHODS) * 3 and len(made) - len(alone) == 2
    assert two.value == one.value == 1 / len(alone) and two.limit == 0.7 and one.limit is None
    monkeypatch.delenv(runs.FOLDER)
    with pytest.raises(ValueError, match=runs.FOLDER):
        runs.measure(SETTINGS)


@pytest.mark.parametrize(
    "value, at_most, holds", [(1.5, True, True), (1.6, True, False), (1.4, False, False)]
)
def test_limits(value, at_most, holds):
    assert replace(FIGURE, value=value, at_most=at_most).holds is holds
    assert replace(FIGURE, limit=None).holds is None


def test_table_says_what_is_broken():
    text = table.show("step", [FIGURE, replace(FIGURE, value=1.0), replace(FIGURE, limit=None)])
    assert text.count("BROKEN") == 1 and text.count("holds") == 1 and text.count("no limit") == 1


@pytest.mark.parametrize("value, status", [(2.0, 1), (1.0, 0)])
def test_status_follows_the_limits(monkeypatch, tmp_path, value, status):
    monkeypatch.setattr(methods, "measure", lambda settings: [replace(FIGURE, value=value)])
    assert program.main(["methods", "--quick", "--json", str(tmp_path / "f.json")]) == status
    written = json.loads((tmp_path / "f.json").read_text())
    assert written["figures"][0]["holds"] is (status == 0) and written["quick"]


def test_unknown_question_is_named(capsys):
    with pytest.raises(SystemExit):
        program.main(["stepp"])
    assert "stepp" in capsys.readouterr().err
