"""The loop against plain PyTorch, and the promises of its parts."""

import copy
import json
from dataclasses import replace
from functools import partial

import pytest
import tiny
import tiny_stream
import torch
from torch.nn import functional

from lifelong import launch
from lifelong.core.composition import compose
from lifelong.core.engine import Settings
from lifelong.core.life import derive
from lifelong.core.plan import Plan
from lifelong.core.stream import Budget
from lifelong.errors import UserError
from lifelong.objectives.sft import Sft
from lifelong.penalties.l2 import L2
from lifelong.penalties.lwf import Lwf
from lifelong.replay.reservoir import Reservoir
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora


def train(path, stream, methods, model=None, **settings):
    model = model or tiny.model("llama")
    return launch.run(model, stream, methods, output=path, settings=Settings(**settings)), model


def weights(model):
    return {name: p.detach().clone() for name, p in model.network.named_parameters()}


def log_of(run):
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_stage_equals_a_plain_loop_bit_for_bit(name, architecture, tmp_path):
    chosen = {"optimizer": "sgd", "momentum": 0.9} if name == "momentum" else {"optimizer": name}
    stream = tiny_stream.stream(stages=("sky",), weight_decay=0.1, **chosen)
    plain = tiny.model(architecture)
    network = plain.network
    run, ours = train(tmp_path / "run", stream, [Full()], tiny.model(architecture))

    stage = stream.stages[0]
    objective = stage.objective
    examples = objective.encode(stage.rows, plain, stage.labels).examples
    plan = Plan([objective.length(e) for e in examples], stage.optimization, stage.budget, 0, 0)
    optimizer = OPTIMIZERS[name](network.parameters(), lr=3e-3, weight_decay=0.1, fused=True)
    network.train()
    losses = []
    for step in range(plan.num_steps):
        torch.manual_seed(derive(0, 0, step))
        batch = objective.collate([examples[i] for i in plan[step].rows], plain)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask") if k in batch}
        labels = batch["labels"][:, 1:]
        logits = network(**inputs, use_cache=False).logits[:, :-1][labels != -100]
        loss = functional.cross_entropy(logits, labels[labels != -100])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert [entry["loss"] for entry in log_of(run)] == pytest.approx(losses, abs=1e-6)
    for name, value in weights(ours).items():
        torch.testing.assert_close(value, network.get_parameter(name), atol=2e-6, rtol=0)


def test_micro_batches_change_only_rounding(tmp_path):
    whole, a = train(tmp_path / "a", tiny_stream.stream(), [Lora(rank=2)])
    parts, b = train(tmp_path / "b", tiny_stream.stream(micro_batch_size=1), [Lora(rank=2)])
    for left, right in zip(log_of(whole), log_of(parts), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)


@pytest.mark.parametrize("penalty", [L2(strength=3.0), Lwf(strength=2.0)])
def test_penalties_do_not_depend_on_micro_batches(penalty, tmp_path):
    """Added in every micro batch, a weight penalty would count once per micro batch (TRL: 4 times)."""
    whole, _ = train(tmp_path / "a", tiny_stream.stream(), [Lora(rank=2), penalty])
    parts, _ = train(tmp_path / "b", tiny_stream.stream(micro_batch_size=1), [Lora(rank=2), penalty])
    name = type(penalty).__name__.lower()
    pairs = [
        (left["penalties"][name], right["penalties"][name])
        for left, right in zip(log_of(whole), log_of(parts), strict=True)
        if name in left["penalties"]
    ]
    assert len(pairs) >= 3 and max(left for left, _ in pairs) > 1e-4
    for left, right in pairs:
        assert left == pytest.approx(right, rel=1e-2, abs=1e-6)


def test_replayed_rows_join_the_loss_from_the_second_stage_on(tmp_path):
    run, _ = train(tmp_path / "run", tiny_stream.stream(), [Lora(rank=2), Reservoir(size=4, fraction=1.0)])
    plain, _ = train(tmp_path / "plain", tiny_stream.stream(), [Lora(rank=2)])
    with_memory, without = log_of(run), log_of(plain)
    assert [e["tokens"] for e in with_memory[:3]] == [e["tokens"] for e in without[:3]]
    assert all(a["tokens"] > b["tokens"] for a, b in zip(with_memory[3:], without[3:], strict=True))


def test_a_memory_of_text_replays_the_same_rows_as_one_of_tokens(tmp_path):
    text, a = train(tmp_path / "a", tiny_stream.stream(), [Lora(rank=2), Reservoir(size=4, keep="text")])
    tokens, b = train(tmp_path / "b", tiny_stream.stream(), [Lora(rank=2), Reservoir(size=4)])
    assert [e["loss"] for e in log_of(text)] == [e["loss"] for e in log_of(tokens)]


def test_a_text_memory_of_packed_rows_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="packed into blocks"):
        train(tmp_path / "a", tiny_stream.text_stream(), [Lora(rank=2), Reservoir(keep="text")])


def test_joint_trains_all_rows_at_once_and_per_task_each_alone(tmp_path):
    stream = tiny_stream.stream()
    joint, _ = train(tmp_path / "joint", stream, compose([Lora(rank=2)], Lora(), "joint", "joint"))
    assert joint.matrix.columns == ("sky", "farm") and joint.matrix.taught == (0, 0)
    assert sum(1 for _ in log_of(joint)) == 6
    alone, _ = train(tmp_path / "alone", stream, compose([Lora(rank=2)], Lora(), "per_task", "per_task"))
    assert alone.matrix.columns == ("sky", "farm") and alone.matrix.taught == (0, 0)
    for index, name in enumerate(("sky", "farm")):
        single = tiny_stream.stream(stages=(name,))
        expected, _ = train(tmp_path / f"single-{name}", single, [Lora(rank=2)])
        assert alone.matrix.values[0][index] == expected.matrix.values[0][0]


def test_the_untrained_row_is_measured_before_training(tmp_path):
    model = tiny.model("llama")
    untouched = copy.deepcopy(model)
    stream = tiny_stream.text_stream()
    run, _ = train(tmp_path / "run", stream, [Full()], model)
    answers = stream.stages[1].evals[0].objective.answer(stream.stages[1].evals[0].rows, untouched, ())
    total = sum(a.log_likelihood for a in answers) / sum(a.tokens for a in answers)
    assert run.matrix.untrained[1] == pytest.approx(total, abs=1e-5)
    assert run.matrix.values[1][1] > run.matrix.untrained[1] + 0.01


def test_a_budget_in_tokens_and_in_seconds_ends_a_stage(tmp_path):
    tokens, _ = train(tmp_path / "a", tiny_stream.stream(budget=Budget(tokens=100)), [Lora(rank=2)])
    first = [e for e in log_of(tokens) if e["stage"] == 0]
    assert sum(e["tokens"] for e in first) >= 100 > sum(e["tokens"] for e in first[:-1])
    clock, _ = train(tmp_path / "b", tiny_stream.stream(budget=Budget(seconds=0.3)), [Lora(rank=2)])
    cost = json.loads((clock.folder / "stages" / "001-sky" / "cost.json").read_text())
    assert 0.3 <= cost["seconds"] < 2 and cost["steps"] > 3


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_finished(tmp_path):
    stream = tiny_stream.stream(learning_rate=1e30, max_grad_norm=None)
    with pytest.raises(UserError, match=r"stage sky, step \d+: the loss is not finite.*sky.jsonl:\d+"):
        train(tmp_path / "run", stream, [Full()])
    assert (tmp_path / "run" / "stages" / "000-untrained" / "evaluation.json").exists()


def test_in_bfloat16_frozen_weights_are_half_and_trained_ones_float32(tmp_path):
    _, model = train(tmp_path / "run", tiny_stream.stream(), [Lora(rank=2)], precision="bfloat16")
    kinds = {p.requires_grad: p.dtype for p in model.network.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    _, model = train(tmp_path / "full", tiny_stream.stream(), [Full()], precision="bfloat16")
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}


def test_what_cannot_be_trained_is_told_before_anything_is_evaluated(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        train(tmp_path / "targets", tiny_stream.stream(), [Lora(targets=("nowhere",))])
    stream = tiny_stream.stream(objective=Sft())
    pairs = [[{"prompt": "p", "completion": text * 40} for text in texts] for texts in ("a", "b")]
    pairs[1][0]["completion"] *= 100  # longer than the window, in the last stage
    stages = [
        replace(stage, rows=rows, labels=(), evals=())
        for stage, rows in zip(stream.stages, pairs, strict=True)
    ]
    with pytest.raises(UserError, match="completion"):
        train(tmp_path / "window", replace(stream, stages=tuple(stages)), [Lora(rank=2)])
    for name in ("targets", "window"):
        assert not (tmp_path / name / "stages").exists()


def test_trackers_get_the_losses(tmp_path):
    run, _ = train(tmp_path / "run", tiny_stream.stream(), [Lora(rank=2)], trackers=("tensorboard",))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = next(p.parent for p in run.folder.rglob("events.out.*"))
    events = EventAccumulator(str(folder))
    events.Reload()
    values = [
        e.value for tag in events.Tags()["scalars"] if tag.endswith("loss") for e in events.Scalars(tag)
    ]
    assert sorted(values) == pytest.approx(sorted(e["loss"] for e in log_of(run)), rel=1e-5)


def test_a_record_names_the_settings_that_have_a_say(tmp_path):
    said = {}
    for name, chosen in {"adamw": {}, "sgd": {"optimizer": "sgd", "momentum": 0.5}}.items():
        run, _ = train(tmp_path / name, tiny_stream.stream(stages=("sky",), **chosen), [Lora(rank=2)])
        said[name] = json.loads((run.folder / "config.json").read_text())["stages"][0]["optimization"]
    assert said["adamw"]["beta1"] == 0.9 and not {"optimizer", "momentum"} & set(said["adamw"])
    assert (said["sgd"]["optimizer"], said["sgd"]["momentum"]) == ("sgd", 0.5) and "beta1" not in said["sgd"]
