"""Orders of stages by how alike neighbours are."""

from itertools import pairwise, permutations

import numpy as np
import pytest
import tiny
import tiny_stream

from lifelong.streams import curriculum, model_features

LINE = np.array([[1 - abs(i - j) / 4 for j in range(5)] for i in range(5)])  # like lies beside like


def brute_force(alike, order):
    return sum(alike[a, b] for a, b in pairwise(order)) / (len(order) - 1)


def test_every_order_is_scored_and_the_best_comes_first():
    ranked = curriculum.rank(LINE)
    assert {each.order for each in ranked} == set(permutations(range(5)))
    assert all(abs(each.score - brute_force(LINE, each.order)) < 1e-12 for each in ranked)
    scores = [each.score for each in ranked]
    assert scores == sorted(scores, reverse=True)
    assert {ranked[0].order, ranked[1].order} == {(0, 1, 2, 3, 4), (4, 3, 2, 1, 0)}


def test_dissimilar_is_the_other_end():
    ranked = curriculum.rank(LINE, "dissimilar")
    assert ranked[0].score == min(each.score for each in ranked) < ranked[-1].score
    assert ranked[0].order != (0, 1, 2, 3, 4)


def test_many_stages_still_find_the_line():
    count = 12
    shuffle = np.random.default_rng(3).permutation(count)
    alike = np.array([[1 - abs(i - j) / count for j in shuffle] for i in shuffle])
    best = curriculum.rank(alike)[0]
    assert list(shuffle[list(best.order)]) in (list(range(count)), list(range(count))[::-1])
    assert curriculum.rank(alike) == curriculum.rank(alike)


def test_one_stage_has_one_order():
    assert curriculum.rank(np.ones((1, 1))) == [((0,), 0.0)]


def test_similarity_is_the_cosine_of_centred_means():
    means = [np.array([1.0, 0.0]), np.array([3.0, 0.0]), np.array([2.0, 3.0])]
    alike = curriculum.similarity(means)  # centred: (-1, -1), (1, -1), (0, 2)
    assert np.allclose(np.diag(alike), 1) and abs(alike[0, 1]) < 1e-12
    assert alike[0, 2] == pytest.approx(-1 / np.sqrt(2), abs=1e-12)


def test_texts_with_shared_words_are_alike():
    kinds = [
        ["the cat and the dog", "a dog"],
        ["the dog and a cat", "the cat"],
        ["sell my shares", "buy bonds"],
    ]
    alike = curriculum.similarity(
        [curriculum.mean_features([{"text": each} for each in texts]) for texts in kinds]
    )
    assert alike[0, 1] > max(alike[0, 2], alike[1, 2])


@pytest.mark.parametrize("architecture", ["llama", "bert", "vit"])
def test_features_of_a_model_tell_rows_apart(architecture):
    model = tiny.model(architecture)
    first, second = (
        model_features.mean_features(model, tiny_stream.rows(name, 8, 0, architecture == "vit"))
        for name in ("sky", "farm")
    )
    assert first.shape == (32,) and np.isfinite(first).all() and np.abs(first - second).max() > 1e-4
