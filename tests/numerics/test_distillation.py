"""The divergence against its definition, torch's own and finite differences."""

import pytest
import torch

from lifelong.numerics.distillation import kl_divergence


def logits(seed, dtype=torch.float64):
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_definition_and_torch_agree(temperature):
    student, teacher = logits(0), logits(1)
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    expected = temperature**2 * (p * (p / q).log()).sum(-1)
    made = kl_divergence(student, teacher, temperature)
    torch.testing.assert_close(made, expected)
    theirs = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(-1) * temperature**2
    torch.testing.assert_close(made, theirs)
    other = kl_divergence(teacher, student, temperature)
    assert not torch.allclose(made, other)  # control: the direction matters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exactly_zero_for_equal_logits(dtype):
    same = logits(0, dtype) * 30
    made = kl_divergence(same, same.clone(), 2.0)
    assert made.dtype == torch.float32 and bool((made == 0).all())
    assert bool((kl_divergence(same, same + logits(1, dtype), 2.0) > 0).all())


def test_gradient_by_finite_differences():
    student, teacher = logits(0).requires_grad_(), logits(1)
    assert torch.autograd.gradcheck(lambda s: kl_divergence(s, teacher, 2.0), student, eps=1e-6, atol=1e-7)


def test_teacher_gets_no_gradient():
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    kl_divergence(student, teacher, 2.0).sum().backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_gradient_keeps_its_size_at_high_temperature():
    """In the limit the gradient is that of half the squared distance of centred logits, over C."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    (made,) = torch.autograd.grad(kl_divergence(student, teacher, 1e4).sum(), student)
    gap = (student - teacher).detach()
    torch.testing.assert_close(made, (gap - gap.mean(-1, keepdim=True)) / 5, rtol=1e-3, atol=1e-4)
