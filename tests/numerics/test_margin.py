"""The margin loss entry by entry, and its bands."""

import pytest
import torch

from lifelong.numerics.margin import bands, limits, margin_loss


def test_limits_are_mean_and_population_deviation():
    low, high = limits(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert low.tolist() == [1.0, 5.0] and high.tolist() == [3.0, 5.0]


@pytest.mark.parametrize(
    ("first", "now", "expected"),
    [(-2.0, -3.0, 0.0), (-2.0, 0.5, 1.5), (0.0, 0.9, 0.0), (0.0, 3.0, 2.0), (0.0, -1.5, 0.5),
     (2.0, 5.0, 0.0), (2.0, 0.0, 1.0), (1.0, 0.0, 1.0), (-1.0, 0.0, 1.0)],
)  # fmt: skip
def test_margin_of_one_entry_with_the_band_from_minus_one_to_one(first, now, expected):
    low, high = torch.tensor([-1.0]), torch.tensor([1.0])
    band = bands(torch.tensor([[first]]), low, high)
    assert band.dtype == torch.int8
    assert margin_loss(torch.tensor([[now]]), band, low, high).item() == pytest.approx(expected)


def test_sum_is_divided_by_the_number_of_entries_out_of_their_band():
    generator = torch.Generator().manual_seed(0)
    first, now = torch.randn(40, 6, generator=generator), torch.randn(40, 6, generator=generator)
    low, high = limits(first)
    now.requires_grad_()
    loss = margin_loss(now, bands(first, low, high), low, high)
    total, count, touched = 0.0, 0, torch.zeros(40, 6, dtype=torch.bool)
    for i in range(40):
        for j in range(6):
            h, g, a, b = first[i, j], now[i, j].item(), low[j].item(), high[j].item()
            if h <= a:
                term = max(g - a, 0.0)
            elif h >= b:
                term = max(b - g, 0.0)
            else:
                term = max(g - b, 0.0) + max(a - g, 0.0)
            total, count, touched[i, j] = total + term, count + (term != 0), term != 0
    assert 0 < count < 240
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    assert loss.item() > 1.1 * total / 240  # control: a plain mean is less
    gradient = torch.autograd.grad(loss, now)[0]
    assert torch.equal(gradient != 0, touched)
    assert gradient[touched].abs().allclose(torch.tensor(1 / count))


def test_nothing_out_of_its_band_is_exactly_zero():
    first = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    low, high = limits(first)
    assert margin_loss(first, bands(first, low, high), low, high).item() == 0.0
