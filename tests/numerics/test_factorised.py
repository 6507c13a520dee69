"""Factors give the weight back, a prefix of columns is what is used, and tails bound what is dropped."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lifelong.numerics import factorised


def made(kind=nn.Linear):
    torch.manual_seed(0)
    module = nn.Linear(6, 9) if kind is nn.Linear else Conv1D(9, 6)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_attach_keeps_the_function_with_the_roots_of_the_singular_values(kind):
    module, rows = made(kind), torch.randn(5, 6)
    weight = module.weight.detach().clone()
    weight = weight if kind is nn.Linear else weight.T
    before = module(rows)
    assert factorised.attach(module, fresh=True) == 6
    torch.testing.assert_close(module(rows), before, atol=1e-5, rtol=1e-5)
    values = torch.linalg.svdvals(weight)
    for norms in (module.lora_A.weight.norm(dim=1), module.lora_B.weight.norm(dim=0)):
        torch.testing.assert_close(norms, values.sqrt(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module.lora_B.weight @ module.lora_A.weight, weight, atol=1e-5, rtol=1e-5)
    assert not module.weight.any() and not module.weight.requires_grad
    assert module.lora_A.weight.requires_grad


def test_training_uses_the_width_and_evaluation_all_that_is_kept():
    module, rows = made(), torch.randn(5, 6)
    factorised.attach(module, fresh=True)
    down, up, bias = module.lora_A.weight, module.lora_B.weight, module.bias
    module.lora_kept, module.lora_width = 4, 2
    torch.testing.assert_close(module.train()(rows), rows @ (up[:, :2] @ down[:2]).T + bias)
    module(rows).sum().backward()
    assert down.grad[2:].abs().max() == 0 and down.grad[:2].abs().min() > 0
    torch.testing.assert_close(module.eval()(rows), rows @ (up[:, :4] @ down[:4]).T + bias)
    module.lora_kept = 0
    assert torch.equal(module(rows), bias.expand(5, 9))


def test_tails_are_suffix_norms_with_a_gradient_at_zero():
    module = made()
    factorised.attach(module, fresh=True)
    with torch.no_grad():
        module.lora_A.weight[4:] = 0
    down, up = factorised.tails(module, 6)
    for i in range(6):
        torch.testing.assert_close(down[i], module.lora_A.weight[i:].norm(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(up[i], module.lora_B.weight[:, i:].norm(), atol=1e-6, rtol=1e-5)
    (down.sum() + up.sum()).backward()
    assert torch.isfinite(module.lora_A.weight.grad).all() and module.lora_A.weight.grad[:4].abs().min() > 0
    bound = (down * up).detach()
    for i in range(4):  # what is dropped from column i on
        dropped = module.lora_B.weight[:, i:] @ module.lora_A.weight[i:]
        assert dropped.norm() <= bound[i] * (1 + 1e-5)
    factorised.detach(module)
    assert {name for name, _ in module.named_parameters()} == {"weight", "bias"}
