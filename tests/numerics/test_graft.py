"""Grafts: the ends are the two models, the step is the gradient, and weights that matter are found."""

import pytest
import torch

from lifelong.numerics import graft


def models(seed=0):
    generator = torch.Generator().manual_seed(seed)
    before = {name: torch.randn(shape, generator=generator) for name, shape in (("a", (5, 4)), ("b", (7,)))}
    tuned = {name: each + torch.randn(each.shape, generator=generator) for name, each in before.items()}
    return before, tuned


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_gamma_0_and_1_are_the_two_models_to_the_bit(kind):
    before, tuned = models()
    for value, expected in ((0, before), (1, tuned)):
        gamma = {name: torch.full(each.shape, value, dtype=kind) for name, each in before.items()}
        found = graft.grafted(before, tuned, gamma)
        assert all(torch.equal(found[name], expected[name]) for name in before)
    half = graft.grafted(before, tuned, {name: torch.full(each.shape, 0.5) for name, each in before.items()})
    torch.testing.assert_close(half["a"], (before["a"] + tuned["a"]) / 2)


def test_the_entry_at_the_threshold_is_not_in_it():
    changes = {"a": torch.tensor([0.1, -0.9, 0.3]), "b": torch.tensor([[0.5, -0.2], [0.7, 0.0]])}
    found = graft.largest(changes, 4 / 7)  # the fourth is 0.3: three are above
    assert found["a"].tolist() == [False, True, False]
    assert found["b"].tolist() == [[True, False], [True, False]]
    ties = graft.largest({"a": torch.tensor([1.0, 1.0, 2.0, 0.5])}, 0.5)
    assert ties["a"].tolist() == [False, False, True, False]
    assert not graft.largest({"a": torch.tensor([1.0, 2.0])}, 0.01)["a"].any()  # the largest is the threshold


def test_a_step_is_the_gradient_by_autograd():
    before, tuned = models()
    changes = {name: tuned[name] - before[name] for name in before}
    masks, bias, rate = graft.largest(changes, 0.4), 2.0, 0.7
    start = {
        name: torch.randn(each.shape, generator=torch.Generator().manual_seed(1))
        for name, each in before.items()
    }
    scores = {name: each.clone().requires_grad_() for name, each in start.items()}
    weights = {
        name: before[name]
        + ((base := masks[name].float()) + (1 - 2 * base) * (scores[name] - bias).sigmoid()) * changes[name]
        for name in before
    }
    loss = sum((each**3).sum() for each in weights.values())
    loss.backward()
    found = {name: each.clone() for name, each in start.items()}
    slopes = {name: 3 * each.detach() ** 2 for name, each in weights.items()}
    graft.descend(found, masks, changes, slopes, bias, rate)
    for name in before:
        torch.testing.assert_close(found[name], start[name] - rate * scores[name].grad)
        assert not torch.equal(found[name], start[name])


def test_finds_weights_that_matter_though_they_moved_little():
    before = {"w": torch.zeros(10)}
    tuned = {"w": torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1])}
    matters = torch.zeros(10)
    matters[8:] = 1.0  # the loss asks for the last two alone
    away = torch.zeros(10)
    away[0] = 1.0  # and for the first to stay

    def loss_of(weights):
        gone, here = weights["w"] - tuned["w"], weights["w"]
        return float((matters * gone.square()).sum() + (away * here.square()).sum())

    def slopes_of(weights):
        return {"w": 2 * matters * (weights["w"] - tuned["w"]) + 2 * away * weights["w"]}

    plain = graft.learn(before, tuned, loss_of, slopes_of, share=0.3, passes=0, bias=2.0, rate=1.0)
    assert plain["w"].nonzero()[:, 0].tolist() == [0, 1]
    found = graft.learn(before, tuned, loss_of, slopes_of, share=0.3, passes=400, bias=2.0, rate=20.0)
    assert found["w"].nonzero()[:, 0].tolist() == [1, 8, 9]
    assert loss_of(graft.grafted(before, tuned, found)) == 0.0


def test_keeps_the_first_graft_where_no_other_is_better():
    before, tuned = models()
    changes = {name: tuned[name] - before[name] for name in before}
    calls = []

    def loss_of(weights):
        calls.append(None)
        return float(len(calls))  # worse at every step

    found = graft.learn(before, tuned, loss_of, lambda weights: weights, 0.4, 3, 2.0, 5.0)
    assert len(calls) == 4
    assert all(torch.equal(found[name], each) for name, each in graft.largest(changes, 0.4).items())
