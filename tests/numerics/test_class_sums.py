"""Sums by class: rows come and go, classes appear."""

import torch

from lifelong.numerics import class_sums


def test_rows_come_and_go_and_classes_appear():
    features = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    counts, sums = torch.zeros(0, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64)
    counts, sums = class_sums.add(counts, sums, features, torch.tensor([2, 0, 2, 2]))
    assert counts.tolist() == [1, 0, 3]
    assert sums.tolist() == [[3, 4, 5], [0, 0, 0], [15, 18, 21]]
    assert class_sums.means(counts, sums)[2].tolist() == [5, 6, 7]
    before = sums.clone()
    fewer = class_sums.add(counts, sums, features[:1], torch.tensor([2]), sign=-1)
    assert fewer[0].tolist() == [1, 0, 2] and fewer[1][2].tolist() == [15, 17, 19]
    assert torch.equal(sums, before)  # the state that was given is left alone
    more = class_sums.padded(sums, 5)
    assert more.shape == (5, 3) and torch.equal(more[:3], sums) and not more[3:].any()
