"""FSA with LDA: streaming equals batch, scikit-learn agrees, and the body moves once."""

import json

import numpy as np
import pytest
import torch
from closed import by_task, decisions, learned, rows, train
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lifelong.analytic.fsa_lda import FsaLda
from lifelong.analytic.nmc import Nmc
from lifelong.models import restore
from lifelong.store.checkpoint import read_checkpoint

FEATURES, LABELS = rows()


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.7])
def test_equals_scikit_learn(shrinkage):
    """Theirs divides the scatter by n, ours by n - C: solutions differ by that factor."""
    weight, bias = FsaLda(shrinkage=shrinkage).head(learned(FsaLda(), FEATURES, LABELS), 5)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None)
    theirs.fit(FEATURES.numpy(), LABELS.numpy())
    factor = len(LABELS) / (len(LABELS) - 5)
    np.testing.assert_allclose(factor * weight.numpy(), theirs.coef_, rtol=1e-8, atol=1e-8)
    prior = (LABELS.bincount().double() / len(LABELS)).log()
    ours = prior + factor * (bias - prior)
    np.testing.assert_allclose(ours.numpy(), theirs.intercept_, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_order_and_division_change_rounding_only(batch):
    plain = FsaLda().head(learned(FsaLda(), FEATURES, LABELS), 5)
    other = FsaLda().head(learned(FsaLda(), FEATURES, LABELS, by_task(LABELS), batch), 5)
    for ours, theirs in zip(other, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    skewed = FsaLda().head(learned(FsaLda(), FEATURES, LABELS.roll(1)), 5)
    assert not torch.allclose(skewed[0], plain[0], atol=1e-2)


def test_full_shrinkage_with_equal_priors_is_the_nearest_mean():
    nearest = decisions(Nmc().head(learned(Nmc(), FEATURES, LABELS), 5), FEATURES)
    state = learned(FsaLda(), FEATURES, LABELS)
    shrunk = FsaLda(shrinkage=1.0, priors="equal").head(state, 5)
    assert torch.equal(decisions(shrunk, FEATURES), nearest)
    plain = decisions(FsaLda(priors="equal").head(state, 5), FEATURES)
    assert not torch.equal(plain, nearest)
    assert (plain == LABELS).double().mean() > (nearest == LABELS).double().mean()


def test_one_row_per_class_is_answered_by_the_nearest_row():
    features = FEATURES[:5]
    state = learned(FsaLda(), features, torch.arange(5))
    assert decisions(FsaLda().head(state, 7), features).tolist() == [0, 1, 2, 3, 4]
    assert decisions(FsaLda(shrinkage=0.0).head(state, 7), features).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_the_body_moves_in_the_first_stage_only(architecture, tmp_path):
    run, _ = train(tmp_path / "run", FsaLda(), architecture, checkpoint_seconds=1e9)
    paths = sorted((run.folder / "stages").glob("00[12]-*/checkpoint"))
    first, second = (read_checkpoint(path)[0] for path in paths)
    body = [name for name in first if name.startswith("params/") and "lifelong_head" not in name]
    assert body and all(torch.equal(first[name], second[name]) for name in body)
    untrained = dict(_base(architecture).named_parameters())
    assert any(not torch.equal(first[f"params/{n}"], p) for n, p in untrained.items())
    steps = [json.loads((path.parent / "cost.json").read_text())["steps"] for path in paths]
    assert steps == [3, 0]
    head = first["params/lifelong_head.weight"], second["params/lifelong_head.weight"]
    assert [len(each) for each in head] == [2, 4] and restore.finished_stages(run.folder)


def _base(architecture):
    import tiny

    return tiny.network(architecture)
