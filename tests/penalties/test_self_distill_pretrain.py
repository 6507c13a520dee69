"""Two passes over a stage: where each starts, and what holds the second one."""

import json
from copy import deepcopy

import pytest
import tiny
import tiny_stream
import torch

from lifelong import launch
from lifelong.core.axes import Context
from lifelong.core.features import decision_features
from lifelong.core.life import Life
from lifelong.core.state import copy, equal, join, split
from lifelong.core.stream import Budget
from lifelong.objectives.causal_lm import CausalLm
from lifelong.penalties.self_distill_pretrain import SelfDistillPretrain
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora


def context(model, **more):
    objective = CausalLm(block_size=16)
    examples = objective.encode(tiny_stream.rows("sky", 6, 0), model, ()).examples
    batch = objective.collate(examples, model)
    made = Context(params=model.params(), model=model, objective=objective, batch=batch, **more)
    made.outputs = objective.forward(model.network, batch)
    return made


def shift(network, seed, amount=0.02):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)


def test_switch_keeps_the_teacher_and_goes_back_to_the_start_bit_for_bit():
    model, penalty, forgotten = tiny.model("llama"), SelfDistillPretrain(strength=2.0, teacher_share=0.4), []
    given = context(model, num_steps=5, forget_moments=lambda: forgotten.append(True))
    start = copy(dict(model.network.named_parameters()))
    state = penalty.begin_stage(given, penalty.init(given))
    for step in range(2):
        assert penalty.loss(given, state) is None and not forgotten
        shift(model.network, step)
        taught = copy(dict(model.network.named_parameters()))
        given.step = step
        state = penalty.after_update(given, state)
    assert forgotten == [True]  # after two of five steps
    assert equal(dict(model.network.named_parameters()), start) and not equal(taught, start)
    assert equal(state["teacher"], {n: p for n, p in taught.items() if n in given.params})
    teacher = deepcopy(model.network)
    teacher.load_state_dict({**teacher.state_dict(), **taught})
    loss = penalty.loss(given, state)
    new = decision_features(given.objective, model.network, given.batch)
    old = decision_features(given.objective, teacher, given.batch).detach()
    expected = 2.0 * (new - old).square().mean()
    assert loss.item() > 1e-4
    torch.testing.assert_close(loss, expected)
    chosen = list(given.params.values())
    for made, wanted in zip(
        torch.autograd.grad(loss, chosen, materialize_grads=True),
        torch.autograd.grad(expected, chosen, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(made, wanted)
    given.step = 2
    assert penalty.after_update(given, state) is state  # only once
    assert equal(join(*split(copy(state))), state)
    assert penalty.end_stage(given, state) == {"start": None, "teacher": None}


def test_a_stage_of_one_step_and_stages_that_are_left_out_stay_plain():
    model = tiny.model("llama")
    given, penalty = context(model, num_steps=1), SelfDistillPretrain()
    state = penalty.begin_stage(given, penalty.init(given))
    before = copy(dict(model.network.named_parameters()))
    shift(model.network, 0)
    assert penalty.after_update(given, state) is state
    assert not equal(before, dict(model.network.named_parameters()))
    first, second = SelfDistillPretrain(first_stages=1), context(model, stage=1)
    assert first.begin_stage(second, {})["start"] is None
    assert first.begin_stage(context(model, stage=0), {})["start"] is not None
    assert SelfDistillPretrain(strength=0).begin_stage(given, {})["start"] is None


def train(path, methods, **settings):
    stream = tiny_stream.text_stream(budget=Budget(steps=6), **settings)
    run = launch.run(tiny.model("llama"), stream, methods, output=path)
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


def test_in_the_engine_the_student_repeats_the_first_loss_and_has_fresh_moments(tmp_path, monkeypatch):
    steps, original = [], Life.update

    def watched(self, *args):
        known = [float(s["step"]) for s in self.optimizer.state.values() if "step" in s]
        steps.append(max(known, default=0.0))
        original(self, *args)

    monkeypatch.setattr(Life, "update", watched)
    log = train(tmp_path / "a", [Full(), SelfDistillPretrain()])
    assert steps == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0] * 2
    plain = train(tmp_path / "b", [Full()])
    assert steps[12:] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] * 2  # control
    assert [e["loss"] for e in log[:3]] == [e["loss"] for e in plain[:3]]
    assert log[3]["loss"] > plain[3]["loss"]  # back at the start
    assert [bool(e["penalties"]) for e in log] == [False, False, False, True, True, True] * 2


def test_the_student_stays_nearer_to_the_teacher(tmp_path):
    def distance(strength):
        log = train(tmp_path / f"{strength}", [Lora(rank=2), SelfDistillPretrain(strength=strength)])
        return log[5]["penalties"]["self_distill_pretrain"] / strength, log[3]["penalties"]

    (held, first), (free, other) = distance(100.0), distance(1e-6)
    assert first["self_distill_pretrain"] / 100.0 == pytest.approx(
        other["self_distill_pretrain"] / 1e-6, rel=1e-4
    )
    assert held < 0.9 * free


def test_strength_zero_is_plain_training(tmp_path):
    off, plain = (
        train(tmp_path / "a", [Full(), SelfDistillPretrain(strength=0)]),
        train(tmp_path / "b", [Full()]),
    )
    assert [e["loss"] for e in off] == [e["loss"] for e in plain]


def test_the_teacher_answers_without_dropout():
    model, modes, penalty = tiny.model("llama"), [], SelfDistillPretrain()
    given = context(model)
    model.network.train()
    model.network.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    penalty.loss(given, {"start": None, "teacher": copy(dict(given.params))})
    assert modes == [False, True]
