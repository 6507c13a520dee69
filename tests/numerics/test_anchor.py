"""The squared distance to an anchor: by hand, on what is left and on the block that was there."""

import torch

from lifelong.numerics.anchor import pull


def test_value_and_gradient_by_hand():
    weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    anchor, importance = {"w": torch.tensor([1.0, 0.0, 1.0])}, {"w": torch.tensor([9.0, 0.5, 2.0])}
    assert pull({"w": weight}, anchor).item() == 8.0
    found = pull({"w": weight}, anchor, importance)
    assert found.item() == 10.0
    assert torch.autograd.grad(found, weight)[0].tolist() == [0.0, 2.0, 8.0]


def test_what_has_grown_or_gone_since():
    params = {"head": torch.ones(3, 2)}
    assert pull(params, {"head": torch.zeros(1, 2), "gone": torch.ones(4)}).item() == 2.0
    assert pull(params, {"gone": torch.ones(4)}) is None and pull(params, {}) is None
