"""NMC: the streaming mean is the batch mean, and nothing else matters."""

import pytest
import tiny
import torch
from closed import by_task, decisions, learned, rows, train
from torch.nn import functional

from lifelong.analytic.nmc import Nmc
from lifelong.errors import UserError
from lifelong.tuners.frozen import Frozen

FEATURES, LABELS = rows()


def means(features, labels):
    return torch.stack([features[labels == c].mean(0) for c in range(int(labels.max()) + 1)])


def test_decides_as_the_nearest_mean():
    head = Nmc().head(learned(Nmc(), FEATURES, LABELS), 5)
    expected = torch.cdist(FEATURES, means(FEATURES, LABELS)).argmin(1)
    assert torch.equal(decisions(head, FEATURES), expected)
    assert 0.3 < (expected == LABELS).double().mean() < 1  # the check could fail: classes overlap


def test_the_cosine_option_decides_by_the_angle():
    head = Nmc(distance="cosine").head(learned(Nmc(), FEATURES, LABELS), 5)
    mu = means(FEATURES, LABELS)
    expected = functional.cosine_similarity(FEATURES[:, None], mu[None], dim=2).argmax(1)
    assert torch.equal(decisions(head, FEATURES), expected)
    assert not torch.equal(expected, torch.cdist(FEATURES, mu).argmin(1))


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_order_and_division_change_rounding_only(batch):
    plain = learned(Nmc(), FEATURES, LABELS)
    other = learned(Nmc(), FEATURES, LABELS, by_task(LABELS), batch)
    torch.testing.assert_close(other["sums"], plain["sums"], atol=1e-12, rtol=1e-12)
    assert torch.equal(other["counts"], plain["counts"])
    skewed = learned(Nmc(), FEATURES, LABELS.roll(1))
    assert not torch.allclose(skewed["sums"], plain["sums"], atol=1e-3)


def test_a_class_without_rows_is_never_answered():
    weight, bias = Nmc().head(learned(Nmc(), FEATURES - 50, LABELS), 7)
    assert weight.shape == (7, 12) and set(decisions((weight, bias), FEATURES).tolist()) <= set(range(5))
    scores = (FEATURES.float() @ weight.float().T + bias.float()).log_softmax(1)
    assert torch.isfinite(scores[:, :5]).all() and not scores.isnan().any()


def test_forgotten_rows_leave_no_trace():
    method, gone = Nmc(), LABELS == 2
    state = method.forget(learned(method, FEATURES, LABELS), FEATURES[gone], LABELS[gone])
    expected = learned(method, FEATURES[~gone], LABELS[~gone])
    torch.testing.assert_close(state["sums"], expected["sums"], atol=1e-10, rtol=1e-10)
    assert torch.equal(state["counts"], expected["counts"])
    with pytest.raises(UserError, match="must have been learned"):
        method.forget(state, FEATURES[gone][:1], LABELS[gone][:1])


@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_a_run_writes_the_head_of_all_rows_and_moves_no_body(architecture, tmp_path):
    _, model = train(tmp_path / "run", Nmc(), architecture, Frozen())
    head, base = model.network.lifelong_head, dict(tiny.network(architecture).named_parameters())
    for name, parameter in model.network.named_parameters():
        assert name.startswith("lifelong_head") or torch.equal(parameter, base[name])
    norms = (head.weight / 2).square().sum(1)
    torch.testing.assert_close(head.bias, -norms, atol=1e-4, rtol=1e-4)
    assert len(head.bias) == 4
