"""Descriptors tell kinds of features apart; the jump of a loss has the rate that it promises."""

import pytest
import torch

from lifelong.numerics import novelty


def features(rows, seed, shift=0.0):
    """Rows near a plane of their own."""
    plane = torch.randn(3, 24, generator=torch.Generator().manual_seed(1))
    other = torch.randn(3, 24, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(seed)
    code, noise = torch.randn(rows, 3, generator=generator), torch.randn(rows, 24, generator=generator)
    return code @ ((1 - shift) * plane + shift * other) + 0.1 * noise


def trained(rows=200, seed=0, epochs=20):
    generator = torch.Generator().manual_seed(seed)
    return novelty.train_descriptor(features(rows, 0), 8, epochs, 0.05, 0.9, 0.0, 32, generator)


def test_own_kind_is_known_and_another_is_strange():
    descriptor = trained()
    own, other = (novelty.strangeness(descriptor, features(200, 5, shift)) for shift in (0.0, 1.0))
    assert own.mean() < 1.5 < 4 < other.mean()
    untrained = trained(epochs=1)
    assert novelty.strangeness(untrained, features(200, 5, 1.0)).mean() < other.mean()


def test_error_and_strangeness_by_hand():
    descriptor = trained(rows=20)
    x = features(2, 7)
    wanted = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    inner = (wanted @ descriptor["down"].T + descriptor["down_bias"]).clamp(min=0)
    error = ((inner @ descriptor["up"].T + descriptor["up_bias"] - wanted) ** 2).mean(1)
    torch.testing.assert_close(novelty.errors(descriptor, x), error, atol=1e-5, rtol=1e-5)
    own = novelty.errors(descriptor, features(20, 0))
    expected = (error - own.mean()).abs() / own.std()
    torch.testing.assert_close(novelty.strangeness(descriptor, x), expected, atol=1e-4, rtol=1e-4)


def test_scale_and_offset_of_the_features_do_not_matter():
    descriptor, x = trained(rows=20), features(4, 7)
    torch.testing.assert_close(
        novelty.errors(descriptor, 50 * x + 3), novelty.errors(descriptor, x), atol=1e-3, rtol=1e-3
    )


def test_fewer_than_three_rows_flag_nothing():
    few, more = trained(rows=2), trained(rows=3)
    assert not novelty.strangeness(few, features(5, 5, 1.0)).any()
    assert novelty.strangeness(more, features(5, 5, 1.0)).all()


def test_training_depends_on_its_generator_alone():
    torch.manual_seed(0)
    first = trained(rows=20)
    torch.manual_seed(1)
    second, other = trained(rows=20), trained(rows=20, seed=3)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["down"], other["down"])
    with torch.no_grad():  # as in an evaluation
        assert torch.equal(trained(rows=20)["down"], first["down"])


def test_jump_by_hand():
    losses = [1.0, 2.0, 3.0, 2.0, 5.0, 6.0]
    variance = (1 + 0 + 1 + 0) / 3
    assert novelty.jump(losses, 2) == pytest.approx((5.5 - 2.0) / (variance * (1 / 4 + 1 / 2)) ** 0.5)
    assert novelty.jump(losses[::-1], 2) < 0
    assert novelty.jump([1.0, 5.0], 1) == novelty.jump([1.0, 2.0], 2) == 0.0


@pytest.mark.parametrize("threshold, rate", [(1.645, 0.05), (2.326, 0.01)])
def test_jump_of_stationary_noise_is_standard_normal(threshold, rate):
    """4000 independent windows; with 100 losses before, Student's tails are close to the normal ones."""
    draws = (1 + 0.3 * torch.randn(4000, 105, generator=torch.Generator().manual_seed(0))).tolist()
    found = sum(novelty.jump(window, 5) > threshold for window in draws) / 4000
    assert abs(found - rate) < 4 * (rate * (1 - rate) / 4000) ** 0.5
    raised = [window[:-5] + [x + 0.5 for x in window[-5:]] for window in draws]
    assert sum(novelty.jump(window, 5) > threshold for window in raised) / 4000 > 0.9


def test_onset_is_where_the_loss_rose():
    assert novelty.onset([1.0, 1.2, 1.1, 1.0, 1.0, 3.0], 3) == 1
    assert novelty.onset([1.0, 1.2, 1.1, 1.0, 2.8, 3.0], 3) == 2
    assert novelty.onset([1.0, 1.2, 1.1, 3.0, 2.8, 3.0], 3) == 3
    assert novelty.onset([1.0, 1.2, 1.1, 3.0, 2.8, 1.0], 3) == 1
