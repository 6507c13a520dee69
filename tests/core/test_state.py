"""A state survives splitting and joining to the last bit."""

import pytest
import torch

from lifelong.core import state as states


def test_split_and_join_are_inverse():
    state = {"a": torch.arange(3), "b": [{"c": torch.ones(2, dtype=torch.bfloat16)}, 1, 2.5, None, "x", True]}
    tensors, tree = states.split(state)
    assert set(tensors) == {"a", "b/0/c"}
    assert states.equal(states.join(tensors, tree), state)


def test_equal_sees_one_bit_dtype_and_shape():
    a = torch.ones(3)
    b = a.clone()
    b[1] = torch.nextafter(b[1], torch.tensor(2.0))
    assert states.equal({"x": a}, {"x": a.clone()})
    assert not states.equal({"x": a}, {"x": b})
    assert not states.equal({"x": a}, {"x": a.double()})
    assert not states.equal({"x": a}, {"x": a[None]})
    assert not states.equal({"x": a}, {"y": a})
    nan = torch.tensor(float("nan"))
    assert states.equal({"x": nan}, {"x": nan.clone()})


def test_copy_shares_no_memory():
    state = {"x": torch.ones(2)}
    copied = states.copy(state)
    state["x"].zero_()
    assert copied["x"].sum() == 2


@pytest.mark.parametrize("bad", [{"x": object()}, {1: 2}, {"x": {3}}])
def test_only_tensors_and_plain_values(bad):
    with pytest.raises(TypeError):
        states.split(bad)
