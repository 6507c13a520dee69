"""The sample is uniform and follows its experts; the classifier on it is at its optimum."""

import torch
from sklearn.linear_model import LogisticRegression

from lifelong.numerics import selector


def two(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 6, generator=generator)
    rows[count // 2 :, 0] += 3.0
    return rows


def sampled(size=1000):
    rows, sample = two(), None
    for step in range(8):
        part = rows[5 * step : 5 * step + 5]
        sample = selector.offered(sample, part, owner=step // 4, when=step, size=size, seed=0)
    return sample


def test_a_sample_with_room_keeps_all_in_order():
    sample = sampled()
    assert torch.equal(sample["features"], two())
    assert sample["owners"].tolist() == [0] * 20 + [1] * 20
    assert sample["when"].tolist() == [step for step in range(8) for _ in range(5)]
    assert sample["count"] == 40


def test_a_full_sample_is_uniform_over_all_rows():
    rows = torch.arange(40.0)[:, None]
    hits = torch.zeros(40)
    for seed in range(400):
        sample = None
        for part in rows.split(5):
            sample = selector.offered(sample, part, 0, 0, size=10, seed=seed)
        hits[sample["features"][:, 0].long()] += 1
    assert hits.sum() == 4000 and len(sample["owners"]) == 10
    assert ((hits / 400 - 0.25).abs() < 5 * (0.25 * 0.75 / 400) ** 0.5).all()


def test_late_rows_change_hands_and_a_dropped_experts_rows_go():
    sample = sampled()
    moved = selector.moved(sample, after=6, owner=7, dropped=None)
    assert moved["owners"].tolist() == [0] * 20 + [1] * 15 + [7] * 5
    less = selector.moved(sample, after=6, owner=7, dropped=1)
    assert less["owners"].tolist() == [0] * 20 + [7] * 5
    assert torch.equal(less["features"], torch.cat([two()[:20], two()[35:]]))
    assert sample["owners"].tolist() == [0] * 20 + [1] * 20


def test_softmax_regression_equals_scikit_learns():
    rows = two(60)
    classes = torch.tensor([0] * 20 + [1] * 20 + [2] * 20)
    decay = 0.05
    weight, bias = selector.softmax_regression(rows, classes, 3, decay)
    inputs = torch.nn.functional.layer_norm(rows.double(), (6,)).numpy()
    theirs = LogisticRegression(C=1 / (decay * 60), tol=1e-10, max_iter=5000).fit(inputs, classes.numpy())
    torch.testing.assert_close(weight.double(), torch.tensor(theirs.coef_), atol=1e-4, rtol=1e-3)
    centred = torch.tensor(theirs.intercept_ - theirs.intercept_.mean())
    torch.testing.assert_close((bias - bias.mean()).double(), centred, atol=1e-4, rtol=1e-3)


def test_fitted_names_the_experts_that_have_rows():
    sample = selector.moved(sampled(), after=3, owner=5, dropped=None)
    found = selector.fitted(sample, 1e-3)
    assert found["numbers"] == [0, 5]
    picked = selector.chosen(found, two())
    assert float((picked == torch.tensor([0] * 20 + [1] * 20)).float().mean()) > 0.9
    assert selector.chosen(found, two()[:4].view(2, 2, 6)).shape == (2, 2)
    empty = selector.moved(sampled(), after=-1, owner=3, dropped=3)
    assert selector.fitted_all({"a": empty, "b": sample}, 1e-3).keys() == {"b"}


def test_one_position_of_every_row_is_one_that_holds_a_token():
    hidden = torch.arange(4.0)[None, :, None].expand(3000, 4, 1)
    mask = torch.tensor([1, 0, 1, 0]).expand(3000, 4)
    taken = selector.one_position(hidden, mask, torch.Generator().manual_seed(0))
    assert set(taken.flatten().tolist()) == {0.0, 2.0}
    assert abs(float((taken == 0).float().mean()) - 0.5) < 0.05
    assert torch.equal(selector.one_position(hidden[:, 0], None, torch.Generator()), hidden[:, 0])
