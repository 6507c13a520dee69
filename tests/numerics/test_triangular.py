"""The core equals its blocks written out; growth keeps old entries and the function."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lifelong.errors import UserError
from lifelong.numerics import triangular


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(rank, size=2, scale=lambda rank: 0.5, module=None):
    module = module or nn.Linear(7, 9)
    triangular.attach(module, rank, size, scale, 0.0, generator())
    return module


def fill(module, seed=1):
    draw = generator(seed)
    for name in ("lora_lower", "lora_upper"):
        parameter = getattr(module, name)
        parameter.data = torch.randn(parameter.shape, generator=draw)


def test_core_is_row_blocks_plus_column_blocks():
    """Three blocks of two: block n is a row block (2 x size) and a column block (size x 2), written out."""
    module = made(6)
    fill(module)
    expected = torch.zeros(6, 6)
    for first in (0, 2, 4):
        last = first + 2
        expected[first:last, :last] += module.lora_lower[first:last, :last].detach()
        expected[:last, first:last] += module.lora_upper[:last, first:last].detach()
    assert torch.equal(triangular.core(module).detach(), expected)
    assert not torch.equal(expected, (module.lora_lower + module.lora_upper).detach())  # control


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_forward_is_the_product_and_wrong_sides_are_never_read(kind):
    module = made(4, module=nn.Linear(7, 9) if kind is nn.Linear else Conv1D(9, 7))
    rows = torch.randn(5, 7, generator=generator(3))
    plain = module(rows)
    fill(module)
    update = 0.5 * module.lora_B.weight @ triangular.core(module) @ module.lora_A.weight
    torch.testing.assert_close(module(rows), plain + rows @ update.T, atol=1e-5, rtol=1e-5)
    module(rows).square().sum().backward()
    wrong = torch.ones(4, 4).tril(-1).bool()
    wrong[1, 0] = wrong[3, 2] = False  # inside a diagonal block
    assert module.lora_upper.grad[wrong].abs().max() == 0 and module.lora_lower.grad[wrong].abs().min() > 0
    assert module.lora_lower.grad.T[wrong].abs().max() == 0


def test_growth_keeps_old_entries_and_the_function_at_a_fixed_scale():
    module, rows = made(2), torch.randn(5, 7, generator=generator(3))
    fill(module)
    down, up, before = module.lora_A.weight.detach(), module.lora_B.weight.detach(), module(rows)
    core = triangular.core(module).detach()
    triangular.grow(module, 4, generator(5))
    torch.testing.assert_close(module(rows), before, atol=1e-6, rtol=1e-6)
    assert torch.equal(module.lora_A.weight[:2], down) and torch.equal(module.lora_B.weight[:, :2], up)
    assert torch.equal(triangular.core(module)[:2, :2], core)
    assert triangular.core(module)[2:].abs().max() == triangular.core(module)[:, 2:].abs().max() == 0
    assert module.lora_A.weight[2:].abs().min() > 0 and module.lora_B.weight[:, 2:].abs().min() > 0
    module(rows).square().sum().backward()
    assert module.lora_lower.grad[2:].abs().sum() > 0 and module.lora_upper.grad[:, 2:].abs().sum() > 0


def test_with_a_alone_drawn_nothing_would_ever_move():
    """Why B is drawn too: the gradient of every factor is 0 where B and the core are."""
    module, rows = made(2), torch.randn(5, 7, generator=generator(3))
    module(rows).square().sum().backward()
    assert module.lora_lower.grad.abs().sum() > 0
    module.lora_B.weight.data.zero_()
    module.zero_grad()
    module(rows).square().sum().backward()
    for name in ("lora_A.weight", "lora_B.weight", "lora_lower", "lora_upper"):
        assert module.get_parameter(name).grad.abs().max() == 0


def test_detach_leaves_no_trace_and_too_much_growth_is_refused():
    module = nn.Linear(7, 9)
    names, rows = {*dict(module.named_parameters())}, torch.randn(5, 7, generator=generator(3))
    before = module(rows)
    made(2, module=module)
    fill(module)
    assert not torch.allclose(module(rows), before)
    triangular.detach(module)
    assert {*dict(module.named_parameters())} == names and torch.equal(module(rows), before)
    with pytest.raises(UserError, match="growth must be at most 7 for a 9 x 7 module; got 8"):
        made(8, size=8)
