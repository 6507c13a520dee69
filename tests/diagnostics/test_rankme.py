"""RankMe: the two known values, invariances, and features of every architecture."""

import pytest
import tiny
import torch
from looking import context_of

from lifelong.diagnostics.rankme import Rankme, effective_rank


def test_known_values():
    assert effective_rank(torch.eye(8)) == pytest.approx(8.000006, abs=1e-6)
    one = torch.outer(torch.arange(1.0, 9.0), torch.ones(8))
    assert effective_rank(one) == pytest.approx(1.000013, abs=2e-6)
    assert effective_rank(torch.eye(8), epsilon=0.0) == pytest.approx(8.0, abs=1e-12)


def test_scale_rotation_and_order_change_nothing():
    torch.manual_seed(0)
    features = torch.randn(40, 12, dtype=torch.float64) * torch.linspace(0.1, 3, 12)
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    expected = effective_rank(features)
    for other in (7 * features, features @ turn, features[torch.randperm(40)]):
        assert effective_rank(other) == pytest.approx(expected, rel=1e-9)
    assert 1 < expected < 12 and effective_rank(features[:, :6]) < 6.001


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_has_features(architecture):
    context = context_of(architecture)
    found = Rankme(batch_size=5).measure(context)
    assert found["rows"] == 12 and 1 < found["effective_rank"] <= 12.001
    assert Rankme(batch_size=12).measure(context)["effective_rank"] == pytest.approx(
        found["effective_rank"], rel=1e-4
    )
    assert Rankme(num_examples=4).measure(context)["effective_rank"] <= 4.001


def test_a_collapsed_network_has_rank_one():
    context = context_of("bert")
    for module in context.model.network.encoder.layer[-1].modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data.zero_()
            module.bias.data.fill_(0.5)
    assert Rankme().measure(context)["effective_rank"] == pytest.approx(1.0, abs=1e-3)
