"""LCIA: the balance weight in closed form, its guard, fixed points, and the end of a stage."""

import pytest
import tiny
import torch
from test_lora import disturb, inputs, output

from lifelong.core.axes import Context
from lifelong.tuners.lcia import Lcia
from lifelong.tuners.lora import Lora


class Scalar:
    """Parameters that a test sets by hand."""

    def __init__(self, **values):
        self.params = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in values.items()}

    def context(self, stage=1):
        return Context(params=self.params, stage=stage)

    def move(self, **values):
        """(weight, gradient) after the step."""
        for name, (weight, gradient) in values.items():
            self.params[name].data = torch.tensor(weight)
            self.params[name].grad = None if gradient is None else torch.tensor(gradient)


EMPTY = {"average": {}, "gradient": {}}


def test_the_balance_weight_is_the_closed_form():
    method, net = Lcia(), Scalar(w=[0.0, 0.0])
    state = method.before_update(net.context(), EMPTY)
    net.move(w=([1.0, -1.0], [1.0, 3.0]))
    state = method.after_update(net.context(), state)
    torch.testing.assert_close(state["average"]["w"], torch.tensor([0.01, -0.01]))  # no gradient before it
    net.move(w=([5.01, -1.01], [-2.0, 1.0]))
    state = method.after_update(net.context(), state)
    a = 2 * (1 + 3.0) / ((5.0 + 1.0) * (3.0 + 2.0))  # sums of |theta - average| and of |g - g_before|
    expected = torch.tensor([0.01 + a * 5.0, -0.01 - a * 1.0])
    torch.testing.assert_close(state["average"]["w"], expected)
    one = Lcia(factor=1.0)
    again = one.before_update(net.context(), EMPTY)
    assert torch.equal(again["average"]["w"], net.params["w"])  # a stage begins at the weights


@pytest.mark.parametrize(
    "weight, gradient",
    [([1.0], [0.1]), ([0.0], [5.0]), ([1.0], None), ([1e-3], [9.0])],
    ids=["same gradient", "same weight", "no gradient", "solution above 1"],
)
def test_outside_of_0_and_1_the_fallback_holds(weight, gradient):
    method, net = Lcia(fallback=0.25), Scalar(w=[0.0])
    state = {"average": {"w": torch.tensor([0.0])}, "gradient": {"w": torch.tensor([0.1])}}
    net.move(w=(weight, gradient))
    state = method.after_update(net.context(), state)
    torch.testing.assert_close(state["average"]["w"], 0.25 * torch.tensor(weight))
    far, other = (
        Scalar(w=[0.0]),
        {"average": {"w": torch.tensor([0.0])}, "gradient": {"w": torch.tensor([0.1])}},
    )
    far.move(w=([8.0], [2.1]))  # control: 2 * 3.1 / (8 * 2) is inside
    other = method.after_update(far.context(), other)
    torch.testing.assert_close(other["average"]["w"], torch.tensor([8.0 * 6.2 / 16]))


def test_constant_weights_are_a_fixed_point_and_1_copies():
    method, net = Lcia(), Scalar(w=[0.3, -0.7, 1e-8])
    state = method.before_update(net.context(), EMPTY)
    for gradient in ([1.0, 2.0, 3.0], [0.5, 0.1, -3.0], [0.5, 0.1, -3.0]):
        net.move(w=([0.3, -0.7, 1e-8], gradient))
        state = method.after_update(net.context(), state)
        assert torch.equal(state["average"]["w"], net.params["w"])
    copying = Lcia(fallback=1.0)
    state = copying.before_update(net.context(), EMPTY)
    net.move(w=([4.0, 5.0, 6.0], [1.0, 1.0, 1.0]))
    state = copying.after_update(net.context(), state)
    assert torch.equal(state["average"]["w"], net.params["w"])


def trained(method, stage):
    """A tiny model in the middle of a stage, where weights and average differ."""
    model = tiny.model("llama")
    state = method.attach(model, None, seed=0)
    disturb(model.network, seed=3)
    context = Context(params=model.params(), model=model, stage=stage)
    state = method.before_update(context, state)
    disturb(model.network, seed=4)
    for parameter in model.params().values():
        parameter.grad = torch.ones_like(parameter)
    return model, context, method.after_update(context, state)


def test_every_stage_but_the_first_ends_at_the_average():
    method, batch = Lcia(rank=2, alpha=4.0), inputs("llama")
    model, context, state = trained(method, stage=1)
    plain = output(model.network, batch)
    with method.serving(model, state):
        served = output(model.network, batch)
    assert not torch.allclose(plain, served, atol=1e-3)
    average = {name: value.clone() for name, value in state["average"].items()}
    ended = method.end_stage(context, state)
    assert ended == EMPTY and all(torch.equal(p, average[n]) for n, p in model.params().items())
    assert torch.equal(output(model.network, batch), served)
    first, context, state = trained(method, stage=0)
    assert state == EMPTY
    method.end_stage(context, state)
    assert torch.equal(output(first.network, batch), plain)
    _, _, state = trained(Lcia(rank=2, alpha=4.0, first=True), stage=0)
    assert state["average"]


def test_fold_and_export_in_mid_stage_take_the_average():
    method, batch = Lcia(rank=2, alpha=4.0), inputs("llama")
    model, _, state = trained(method, stage=1)
    with method.serving(model, state):
        served = output(model.network, batch)
    update = method.low_rank(model, state)
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(update[name].up, state["average"][f"{name}.lora_B.weight"])
    method.fold(model, state)
    torch.testing.assert_close(output(model.network, batch), served, atol=1e-4, rtol=1e-4)


def test_the_first_stage_is_lora_bit_for_bit(tmp_path):
    import tiny_stream

    from lifelong import launch
    from lifelong.core.composition import compose
    from lifelong.models import restore

    model = tiny.model("llama")
    model.network.save_pretrained(tmp_path / "base")
    model.processor.save_pretrained(tmp_path / "base")

    def weights(method, stages, name):
        stream = tiny_stream.stream(stages=stages, general=False)
        run = launch.run(
            restore.load(tmp_path / "base"), stream, compose([method], method), output=tmp_path / name
        )
        return restore.open_run(run.folder).model.params()

    lora, lcia = Lora(rank=2, alpha=4.0), Lcia(rank=2, alpha=4.0)
    first, second = weights(lora, ("sky",), "a"), weights(lcia, ("sky",), "b")
    assert all(torch.equal(p, second[n]) for n, p in first.items())
    first, second = weights(lora, ("sky", "farm"), "c"), weights(lcia, ("sky", "farm"), "d")
    assert not all(torch.equal(p, second[n]) for n, p in first.items())


def test_parameters_that_grow_at_a_boundary_are_averaged_from_where_they_are():
    net, method = Scalar(w=[1.0, 2.0]), Lcia()
    state = method.end_stage(net.context(), method.before_update(net.context(), EMPTY))
    net.params["w"] = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    state = method.before_update(net.context(2), state)
    assert torch.equal(state["average"]["w"], torch.tensor([1.0, 2.0, 3.0]))


def test_penalties_take_in_the_average_that_the_stage_ends_at(tmp_path):
    """Not the weights before it: an anchor elsewhere would pull from the first step of the next stage."""
    import json

    import tiny_stream

    from lifelong import launch
    from lifelong.core.composition import compose
    from lifelong.models import restore
    from lifelong.penalties.l2 import L2

    model = tiny.model("llama")
    model.network.save_pretrained(tmp_path / "base")
    model.processor.save_pretrained(tmp_path / "base")
    method = Lcia(rank=2, alpha=4.0)
    stream = tiny_stream.stream(stages=("sky", "farm", "city"), general=False)
    run = launch.run(
        restore.load(tmp_path / "base"), stream, compose([method, L2()], method), output=tmp_path / "run"
    )
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    pulls = [line["penalties"]["l2"] for line in lines if line["stage"] == 2]
    assert pulls[0] == 0.0 and pulls[1] > 0.0
