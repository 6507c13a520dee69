"""Components of batches equal those of all rows at once, and scikit-learn's incremental ones."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.decomposition import IncrementalPCA as Reference
from torch import nn

from lifelong.numerics.incremental_pca import IncrementalPca, watched_inputs


def rows(number=120, rank=12, noise=0.0, seed=0):
    """Rows whose directions fall off by powers of 0.7, around a mean that is not 0."""
    draw = np.random.default_rng(seed)
    spread = 0.7 ** np.arange(rank)
    made = (draw.standard_normal((number, rank)) * spread) @ draw.standard_normal((rank, 12))
    return torch.tensor(3.0 + made + noise * draw.standard_normal((number, 12)), dtype=torch.float32)


def fitted(data, size, num_components):
    made = IncrementalPca(num_components)
    for part in data.split(size):
        made.add(part)
    return made


def same_directions(ours, theirs, tolerance):
    cosines = (ours.double() * torch.as_tensor(theirs, dtype=torch.float64)).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones_like(cosines), atol=tolerance, rtol=0)


def test_one_batch_is_exact_pca():
    data = rows(noise=0.1)
    made, reference = fitted(data, 120, 5), PCA(5).fit(data.double().numpy())
    same_directions(made.components, reference.components_, 1e-4)
    torch.testing.assert_close(
        made.explained.double(), torch.as_tensor(reference.explained_variance_ratio_), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("size", [7, 40])
def test_batches_are_exact_where_nothing_is_cut_off(size):
    """Rows of rank 4 and six components, so the division into batches does not matter."""
    data = rows(rank=3) + torch.linspace(0, 3, 120)[:, None] * rows(1, seed=1)  # and the mean drifts
    made, reference = fitted(data, size, 6), PCA(4).fit(data.double().numpy())
    same_directions(made.components[:4], reference.components_, 1e-4)
    assert made.values[4:].max() < 1e-3 * made.values[0]
    without_shift = IncrementalPca(6)  # control: batches centred each around its own mean
    for part in data.split(size):
        without_shift.add(part - part.mean(0))
    assert abs(float(without_shift.values[0] / made.values[0]) - 1) > 1e-3


@pytest.mark.parametrize("size", [20, 60])
def test_equals_sklearn_where_components_are_cut_off(size):
    data, reference = rows(noise=0.2), Reference(4)
    made = fitted(data, size, 4)
    for part in data.split(size):
        reference.partial_fit(part.double().numpy())
    same_directions(made.components, reference.components_, 1e-3)
    torch.testing.assert_close(
        made.values.double(), torch.as_tensor(reference.singular_values_), atol=1e-3, rtol=1e-4
    )
    torch.testing.assert_close(
        made.explained.double(), torch.as_tensor(reference.explained_variance_ratio_), atol=1e-4, rtol=1e-3
    )


def test_agreement_is_the_cosine_with_the_batch_before():
    data = rows(noise=0.2)
    made = IncrementalPca(3)
    made.add(data[:40])
    assert torch.equal(made.agreement, torch.zeros(3))
    before = made.components
    made.add(data[40:80])
    torch.testing.assert_close(made.agreement, torch.cosine_similarity(before, made.components).abs())
    made.add(data[:0])  # no rows change nothing
    assert made.count == 80
    few = IncrementalPca(3)
    few.add(data[:2])
    assert few.components.shape[0] == 2


def test_constant_rows_explain_nothing():
    made = fitted(torch.full((6, 4), 2.0), 3, 2)
    assert made.explained.abs().max() == 0


def test_modules_with_the_same_input_share_one_decomposition():
    first, second, third = nn.Linear(12, 3), nn.Linear(12, 5), nn.Linear(12, 2)
    data = rows()
    with watched_inputs({"a": first, "b": second, "c": third}, 20, lambda x: x) as found:
        for part in data.split(40):
            first(part), second(part), third(part.clone())
    assert found["a"] is found["b"] and found["a"] is not found["c"]
    assert found["a"].count == found["c"].count == 120
    assert len(found["a"].components) == 12  # never more than the input has entries
    torch.testing.assert_close(found["a"].components, found["c"].components)
    assert not first._forward_pre_hooks
