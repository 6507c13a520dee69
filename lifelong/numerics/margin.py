"""Which band of its dimension an activation lies in, and how far another one is from that band.

    band = -1 where h* <= low, 1 where h* >= high, else 0
    margin = relu(h - low) for -1, relu(high - h) for 1, relu(h - high) + relu(low - h) for 0

(Zhang et al. 2025, arXiv:2508.04676, threshold-based margin loss.) One byte says all that the loss
needs to know of h*.
"""

import torch
from torch import Tensor


def limits(values: Tensor) -> tuple[Tensor, Tensor]:
    """(mean - deviation, mean + deviation) of each column of (N, H), float32, by the population."""
    wide = values.double()
    mean, deviation = wide.mean(0), wide.std(0, correction=0)
    return (mean - deviation).float(), (mean + deviation).float()


def bands(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(N, H) int8 in {-1, 0, 1}."""
    return (values >= high).to(torch.int8) - (values <= low).to(torch.int8)


def margin_loss(values: Tensor, band: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Sum of the margins of (N, H) divided by the number of those that are not zero; 0 where none is."""
    over_low, over_high = values - low, values - high
    outside = over_high.relu() + (-over_low).relu()
    terms = torch.where(band < 0, over_low.relu(), torch.where(band > 0, (-over_high).relu(), outside))
    return terms.sum() / (terms != 0).sum().clamp(min=1)
