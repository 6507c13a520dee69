"""Sums of features by class, taken in row by row; a class appears when its first label does."""

import torch
from torch import Tensor

NEVER = -1e30  # bias of a class without a row: finite, so that a softmax over all classes stays defined


def add(
    counts: Tensor, sums: Tensor, features: Tensor, labels: Tensor, sign: int = 1
) -> tuple[Tensor, Tensor]:
    """New (counts (C,), sums (C, H)) with the rows added, or with sign -1 taken away."""
    classes = max(len(counts), int(labels.max()) + 1 if len(labels) else 0)
    counts, sums = padded(counts, classes).clone(), padded(sums, classes).clone()
    counts.index_add_(0, labels, torch.full_like(labels, sign, dtype=counts.dtype))
    sums.index_add_(0, labels, sign * features)
    return counts, sums


def padded(tensor: Tensor, rows: int) -> Tensor:
    """Zero rows at the end up to `rows`."""
    if len(tensor) >= rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])


def means(counts: Tensor, sums: Tensor) -> Tensor:
    """(C, H) mean feature; zero for a class without a row."""
    return sums / counts.clamp(min=1)[:, None]
