"""Split weights: the same function, exact projections, nothing left after removal."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lifelong.numerics.spectrum import triples
from lifelong.numerics.split_weight import join, remove, split, weight_of


def divided(kind, number, whole):
    torch.manual_seed(0)
    module = nn.Linear(6, 9) if kind == "linear" else Conv1D(9, 6)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    found = triples(weight_of(module))
    inputs = torch.randn(2, 4, 6)
    before = module(inputs), weight_of(module).clone()
    split(module, found.part(0, number), whole)
    if number < 6:
        module.low.load(found.part(number))
    return module, found.part(0, number), inputs, before


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("number", [0, 2, 6])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_the_function_stays_and_the_protected_part_is_frozen(kind, number, whole):
    module, high, inputs, (before, weight) = divided(kind, number, whole)
    torch.testing.assert_close(module(inputs), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(join(module, high), weight, atol=1e-5, rtol=1e-5)
    trained = {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}
    rank = 6 - number
    factors = {"low.up": 9 * rank, "low.sizes": rank, "low.down": 6 * rank}
    assert trained == ({} if not rank else {"low.whole": 54} if whole else factors)
    if rank:
        module(inputs).sum().backward()
        assert module.weight.grad is None and all(p.grad.any() for p in module.low.parameters())
    remove(module)
    assert not module._forward_hooks and set(dict(module.named_parameters())) == {"weight", "bias"}


@pytest.mark.parametrize("whole", [False, True])
def test_projections_follow_the_published_formulas(whole):
    module, high, _, _ = divided("linear", 2, whole)
    low, noise = module.low, torch.Generator().manual_seed(1)
    for parameter in low.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=noise)
    raw = {name: p.grad.double() for name, p in low.named_parameters()}
    low.project(high, gradients=True)
    left, right = (high.up @ high.up.T).double(), (high.down.T @ high.down).double()
    if whole:
        expected = {"whole": raw["whole"] - left @ raw["whole"] @ right}
    else:
        expected = {"up": raw["up"] - left @ raw["up"], "sizes": raw["sizes"],
                    "down": raw["down"] - raw["down"] @ right}  # fmt: skip
    for name, parameter in low.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), expected[name], atol=1e-6, rtol=1e-6)
    once = {name: p.grad.clone() for name, p in low.named_parameters()}
    low.project(high, gradients=True)
    for name, parameter in low.named_parameters():
        torch.testing.assert_close(parameter.grad, once[name], atol=1e-5, rtol=1e-5)


def test_without_a_graph_nothing_is_projected():
    module, high, _, _ = divided("linear", 2, False)
    before = join(module, high)
    module.low.project(high, gradients=True)
    assert torch.equal(join(module, high), before)
