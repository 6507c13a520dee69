"""ACU: learning is ridge regression, forgetting is retraining without the rows."""

import pytest
import torch
from closed import by_task, decisions, learned, rows, train
from torch.nn import functional

from lifelong.analytic.acu import Acu
from lifelong.core import head
from lifelong.core import state as states
from lifelong.errors import UserError
from lifelong.models import pretrained, restore
from lifelong.tuners.frozen import Frozen

FEATURES, LABELS = rows(count=600)


def solved(features, labels, ridge=1.0, intercept=True, classes=5):
    """(weight (C, H), bias) of ridge regression on one-hot labels, all rows at once."""
    rows = functional.pad(features, (0, 1), value=1.0) if intercept else features
    gram = rows.T @ rows + ridge * torch.eye(rows.shape[1], dtype=torch.float64)
    found = torch.linalg.solve(gram, rows.T @ functional.one_hot(labels, classes).double()).T
    return (found[:, :-1], found[:, -1]) if intercept else (found, found.new_zeros(classes))


def close(ours, theirs, limit):
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, atol=limit, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"ridge": 0.01}, {"intercept": False}])
def test_learning_is_ridge_regression(settings):
    method = Acu(**settings)
    ours = method.head(learned(method, FEATURES, LABELS, batch=50), 5)
    close(ours, solved(FEATURES, LABELS, **settings), 1e-9)
    assert not torch.allclose(ours[0], solved(FEATURES, LABELS.roll(1), **settings)[0], atol=1e-2)


@pytest.mark.parametrize("batch", [1, 7, 600])
def test_order_and_division_change_rounding_only(batch):
    ours = Acu().head(learned(Acu(), FEATURES, LABELS, by_task(LABELS), batch), 5)
    close(ours, Acu().head(learned(Acu(), FEATURES, LABELS), 5), 1e-9)


@pytest.mark.parametrize("gone", [LABELS == 2, torch.arange(600) % 3 == 0, torch.arange(600) == 5])
def test_forgetting_equals_retraining_without_the_rows(gone):
    method = Acu(ridge=0.01)
    whole = learned(method, FEATURES, LABELS)
    state = method.forget(whole, FEATURES[gone], LABELS[gone])
    expected = learned(method, FEATURES[~gone], LABELS[~gone])
    for name in ("inverse", "weight"):
        torch.testing.assert_close(state[name], expected[name], atol=1e-8, rtol=0)
    close(method.head(state, 5), method.head(expected, 5), 1e-8)
    assert float((method.head(whole, 5)[0] - method.head(expected, 5)[0]).abs().max()) > 1e-5


def test_a_class_that_is_forgotten_whole_is_never_answered():
    gone = LABELS == 2
    state = Acu().forget(learned(Acu(), FEATURES, LABELS), FEATURES[gone], LABELS[gone])
    assert 2 not in decisions(Acu().head(state, 5), FEATURES)
    assert 2 in decisions(Acu().head(learned(Acu(), FEATURES, LABELS), 5), FEATURES)


def test_two_hundred_rounds_of_learning_and_forgetting_drift_below_1e_8():
    method = Acu(ridge=0.01)
    state = before = learned(method, FEATURES, LABELS)
    for step in range(200):
        part = (torch.arange(20) + 20 * step) % 600
        state = method.forget(state, FEATURES[part], LABELS[part])
        state = method.learn(state, FEATURES[part], LABELS[part])
    torch.testing.assert_close(state["inverse"], before["inverse"], atol=1e-8, rtol=0)
    torch.testing.assert_close(state["weight"], before["weight"], atol=1e-8, rtol=0)


def test_rows_that_were_never_learned_are_refused():
    state = learned(Acu(ridge=1e-6), FEATURES[:300], LABELS[:300])
    with pytest.raises(UserError, match="must have been learned"):
        Acu(ridge=1e-6).forget(state, 100 * FEATURES[300:320], LABELS[300:320])
    with pytest.raises(UserError, match="more rows of a class"):
        Acu(ridge=1e-6).forget(state, FEATURES, LABELS)


def test_a_saved_state_goes_on_exactly():
    half = learned(Acu(), FEATURES[:300], LABELS[:300])
    again = states.join(*states.split(half))
    left, right = (Acu().learn(each, FEATURES[300:], LABELS[300:]) for each in (half, again))
    assert states.equal(left, right)


@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_a_run_learns_its_rows(architecture, tmp_path):
    run, model = train(tmp_path / "run", Acu(), architecture, Frozen())
    assert run.summary["finished"] and len(model.network.lifelong_head.labels) == 4
    assert (model.network.lifelong_head.bias > -1e29).all()


def test_random_features_part_what_no_plane_does():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 2, generator=generator)
    labels = (features[:, 0] * features[:, 1] > 0).long()  # opposite quadrants share a class

    def share(expansion):
        drawn = torch.randn(2, expansion, generator=generator) if expansion else None
        made, method = head.LabelHead(2, expansion=drawn), Acu(expansion=expansion)
        expanded = made.expand(features).double()
        weight, bias = method.head(learned(method, expanded, labels), 2)
        return float(((expanded @ weight.T + bias).argmax(1) == labels).double().mean())

    assert share(200) > 0.9 > 0.7 > share(0)


def test_a_head_on_random_features_is_resumed_restored_and_exported(tmp_path):
    def kill(event):
        if event.kind == "evaluation" and event.stage == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Acu(expansion=32), tuner=Frozen(), listen=kill)
    run, model = train(tmp_path / "run", Acu(expansion=32), tuner=Frozen())
    whole = train(tmp_path / "whole", Acu(expansion=32), tuner=Frozen())[1]
    assert torch.equal(whole.network.lifelong_head.weight, model.network.lifelong_head.weight)
    made = model.network.lifelong_head
    assert made.weight.shape == (4, 32) and made.expansion.shape[1] == 32
    again = restore.load(run.folder).network.lifelong_head
    assert torch.equal(again.expansion, made.expansion) and torch.equal(again.weight, made.weight)
    pretrained.export_checkpoint(model, tmp_path / "out")
    again = pretrained.load(str(tmp_path / "out")).network.lifelong_head
    assert torch.equal(again.expansion, made.expansion) and torch.equal(again.weight, made.weight)
    with pytest.raises(UserError, match="expansion: the model comes with a label head on 32 features"):
        head.attach(model, 16)
