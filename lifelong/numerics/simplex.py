"""Projection on shares with a given mean."""

from torch import Tensor


def projected(point: Tensor, mean: float) -> Tensor:
    """The nearest point of {x: mean of x = `mean`, 0 <= x <= 1}: clip(point - shift, 0, 1) with the shift
    found by bisection, to rounding. `mean` in [0, 1].
    """
    low, high = float(point.min()) - 1, float(point.max())
    for _ in range(100):
        shift = (low + high) / 2
        if float((point - shift).clamp(0, 1).mean()) > mean:
            low = shift
        else:
            high = shift
    return (point - (low + high) / 2).clamp(0, 1)
