"""The projection keeps mean and bounds, and nothing nearer does."""

import torch

from lifelong.numerics.simplex import projected


def test_keeps_mean_and_bounds_and_is_nearest():
    generator = torch.Generator().manual_seed(0)
    for trial in range(50):
        mean = float(torch.rand(1, generator=generator))
        point = 2 * torch.randn(5, generator=generator, dtype=torch.float64)
        found = projected(point, mean)
        assert abs(float(found.mean()) - mean) < 1e-9 and 0 <= found.min() and found.max() <= 1
        for _ in range(20):
            other = projected(torch.randn(5, generator=generator, dtype=torch.float64), mean)
            assert (point - found).norm() <= (point - other).norm() + 1e-9, trial


def test_a_point_that_fits_stays():
    point = torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)
    torch.testing.assert_close(projected(point, 0.5), point, atol=1e-12, rtol=0)
    torch.testing.assert_close(projected(point + 7, 0.5), point, atol=1e-12, rtol=0)
