"""Intruder dimensions: none at rest, one for one new direction, also where the update is a hook."""

import pytest
import tiny
import torch
from looking import context_of

from lifelong.diagnostics.intruder_dimensions import IntruderDimensions, intruders
from lifelong.numerics import low_rank
from lifelong.tuners.lora import Lora


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_nothing_changed_is_zero(architecture):
    found = IntruderDimensions().measure(context_of(architecture))
    assert found["total"] == found["left_out"] == 0
    assert found["matrices"] == len(low_rank.linear_modules(tiny.network(architecture)))


def planted(original, seed=0, size=3.0):
    """The matrix plus one direction outside its column space, above all its singular values."""
    torch.manual_seed(seed)
    space, sizes, rows = torch.linalg.svd(original, full_matrices=False)
    new = torch.randn(len(original))
    new -= space @ (space.T @ new)
    return original + size * sizes[0] * torch.outer(new / new.norm(), rows[-1])


def test_one_new_strong_direction_is_one_intruder():
    torch.manual_seed(0)
    original = torch.randn(64, 32)
    assert intruders(original, planted(original), 10, 0.5) == 1
    assert intruders(original, planted(original, size=1e-3), 10, 0.5) == 0  # not among the strongest
    turn = torch.linalg.qr(torch.randn(32, 32))[0]
    assert intruders(original @ turn, planted(original) @ turn.T, 10, 0.5) == 1
    assert intruders(original @ turn, original, 10, 0.5) == 0


@pytest.mark.parametrize("beside", [False, True])
def test_a_run_sees_it_in_the_weight_and_beside_it(beside):
    model = tiny.model("llama")
    context = context_of("llama", model)
    module = model.network.model.layers[1].mlp.up_proj  # 64 x 32: room for a new direction
    change = planted(module.weight.detach()) - module.weight.detach()
    if beside:
        Lora(rank=2, alpha=2.0).attach(model, None, 0)
        up, size, down = torch.linalg.svd(change, full_matrices=False)
        module.lora_A.weight.data.zero_()[0] = down[0]
        module.lora_B.weight.data.zero_()[:, 0] = size[0] * up[:, 0]
    else:
        module.weight.data.add_(change)
    found = IntruderDimensions().measure(context)
    assert found["total"] == 1 and found["matrices"] == 14


def test_the_matrix_is_what_the_module_computes():
    model = tiny.model("gpt2")  # weights are stored transposed, with a bias
    Lora(rank=2).attach(model, None, 0)
    module = model.network.transformer.h[0].mlp.c_fc
    module.lora_B.weight.data.normal_()
    expected = module.weight.T + 8.0 * module.lora_B.weight @ module.lora_A.weight
    torch.testing.assert_close(low_rank.matrix_of(module), expected.detach(), atol=1e-5, rtol=1e-5)


def test_a_module_that_is_not_linear_is_left_out():
    context = context_of("llama")
    module = context.model.network.model.layers[0].mlp.up_proj
    module.register_forward_hook(lambda owner, args, output: output * args[0].sum(-1, keepdim=True).sigmoid())
    found = IntruderDimensions().measure(context)
    assert found["left_out"] == 1 and found["matrices"] == 13
