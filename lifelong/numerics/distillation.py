"""How far a student's answers are from a teacher's."""

import torch
from torch import Tensor


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)) per row: (N, C), (N, C) -> (N,) nats.

    The factor T^2 keeps the size of the gradient independent of the temperature (Hinton et al.
    2015, arXiv:1503.02531, section 2). At least float32; no gradient to the teacher; logits finite.
    """
    assert student_logits.shape == teacher_logits.shape, (student_logits.shape, teacher_logits.shape)
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student = torch.log_softmax(student_logits.to(dtype) / temperature, dim=-1)
    teacher = torch.log_softmax(teacher_logits.detach().to(dtype) / temperature, dim=-1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1)
