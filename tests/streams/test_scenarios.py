"""Rows cut into stages: every row once, labels disjoint, the share of blur, how often labels come back."""

from collections import Counter

import numpy as np
import pytest

from lifelong.errors import UserError
from lifelong.streams import scenarios
from lifelong.streams.image_rows import ImageRows, permutation, rotation, three_channels

LABELS = [f"l{i}" for i in range(6)]
GROUPS = {"a": ("l0", "l1"), "b": ("l2", "l3"), "c": ("l4", "l5")}


def rows(count=10, mark="train"):
    return [
        {"text": f"{mark} {label} {i}", "label": label, "domain": "odd" if i % 2 else "even"}
        for i in range(count)
        for label in LABELS
    ]


def texts(found):
    return Counter(row["text"] for row in found)


def parts(**keys):
    return scenarios.class_incremental(rows(**keys), rows(4, "test"), GROUPS)


def images():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 5, 4), dtype=np.uint8)
    return ImageRows(pixels, np.array([f"l{i % 6}" for i in range(12)]), "tiny", np.arange(12))


def test_class_incremental_uses_every_row_once_and_labels_are_disjoint():
    made = parts()
    assert sum((texts(part.train) for part in made), Counter()) == texts(rows())
    assert sum((texts(part.tests[part.name]) for part in made), Counter()) == texts(rows(4, "test"))
    for part in made:
        assert {row["label"] for row in part.train} == set(part.labels) == set(GROUPS[part.name])
    assert len(set().union(*(part.labels for part in made))) == sum(len(part.labels) for part in made)


def test_a_label_without_a_group_and_a_stage_without_rows_are_told():
    with pytest.raises(UserError, match="label `l4` is in no group"):
        scenarios.class_incremental(rows(), rows(), {"a": GROUPS["a"], "b": GROUPS["b"]})
    with pytest.raises(UserError, match="stage d has no training row; its labels are l9"):
        scenarios.class_incremental(rows(), rows(), {**GROUPS, "d": ("l9",)})


@pytest.mark.parametrize("num_stages", [1, 4, 6])
def test_even_groups(num_stages):
    groups = scenarios.even_groups(LABELS, num_stages)
    assert [label for group in groups.values() for label in group] == LABELS
    sizes = [len(group) for group in groups.values()]
    assert len(sizes) == num_stages and max(sizes) - min(sizes) <= 1
    with pytest.raises(UserError, match="at most 6, the number of labels; got 7"):
        scenarios.even_groups(LABELS, 7)


def test_orders_are_permutations_and_differ_by_number():
    found = [tuple(scenarios.shuffled(LABELS, order)) for order in (0, 1, 1, 2)]
    assert found[0] == tuple(LABELS) and found[1] == found[2] and len(set(found)) == 3
    assert all(sorted(each) == LABELS for each in found)


def test_domain_incremental_shares_labels_and_splits_by_domain():
    names = scenarios.domains(rows(), "domain")
    made = scenarios.domain_incremental(rows(), rows(4, "test"), "domain", names)
    assert [part.name for part in made] == ["even", "odd"]
    assert sum((texts(part.train) for part in made), Counter()) == texts(rows())
    for part in made:
        assert {row["domain"] for row in (*part.train, *part.tests[part.name])} == {part.name}
        assert part.labels == tuple(LABELS)
    with pytest.raises(UserError, match="no column `topic`"):
        scenarios.domains(rows(), "topic")


def test_relabelled_stages_share_their_labels():
    cut_images = scenarios.class_incremental(images(), images(), GROUPS)
    for made in (scenarios.relabelled(parts()), scenarios.relabelled(cut_images)):
        assert [part.labels for part in made] == [("0", "1")] * 3
        assert all({row["label"] for row in part.train} == {"0", "1"} for part in made)
    part = scenarios.relabelled(parts())[1]
    assert all(row["label"] == str(GROUPS["b"].index(row["text"].split()[1])) for row in part.train)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_blur_moves_its_share_and_keeps_every_row_and_size(share, seed):
    made, blurred = parts(), scenarios.blurred(parts(), share, seed)
    assert sum((texts(part.train) for part in blurred), Counter()) == texts(rows())
    for before, after in zip(made, blurred, strict=True):
        foreign = [row for row in after.train if row["label"] not in before.labels]
        assert len(after.train) == len(before.train)
        assert len(foreign) == round(share * len(before.train))
        assert after.tests == before.tests and after.labels == before.labels
    again = scenarios.blurred(parts(), share, seed)
    assert [part.train for part in again] == [part.train for part in blurred]
    assert [part.train for part in scenarios.blurred(parts(), share, seed + 9)] != [p.train for p in blurred]


def test_blur_of_a_stage_larger_than_all_others_takes_what_they_can_give():
    groups = {"big": tuple(LABELS[:5]), "small": ("l5",)}
    made = scenarios.blurred(scenarios.class_incremental(rows(), rows(4, "test"), groups), 0.5, 0)
    moved = [sum(row["label"] not in part.labels for row in part.train) for part in made]
    assert moved == [5, 5] and sum((texts(part.train) for part in made), Counter()) == texts(rows())


def test_blur_zero_changes_nothing():
    assert [part.train for part in scenarios.blurred(parts(), 0.0, 3)] == [part.train for part in parts()]


def recurring(decay=1.0, seed=0, num_stages=600):
    return scenarios.recurring(rows(), rows(4, "test"), num_stages, 2, 7, decay, seed)


def test_recurring_labels_come_back_as_often_as_expected():
    made = recurring()
    seen = Counter(label for part in made for label in {row["label"] for row in part.train})
    # each of 6 labels is one of 2 drawn: 600 / 3 stages, standard deviation 11.5
    assert all(abs(seen[label] - 200) < 50 for label in LABELS), seen
    assert {len(part.train) for part in made} == {7}
    assert max(len({row["label"] for row in part.train}) for part in made) == 2
    assert [part.train for part in made] == [part.train for part in recurring()]
    assert [part.train for part in made[:5]] != [part.train for part in recurring(seed=1, num_stages=5)]


def test_recurring_with_decay_prefers_early_labels():
    seen = Counter(label for part in recurring(decay=0.5) for label in {row["label"] for row in part.train})
    counts = [seen[label] for label in LABELS]
    assert counts == sorted(counts, reverse=True) and counts[0] > 400 and counts[-1] < 60


def test_recurring_is_judged_on_everything_from_the_first_stage_on():
    made = recurring(num_stages=12)
    assert [part.name for part in made][::11] == ["stage-01", "stage-12"]
    assert texts(made[0].tests["all"]) == texts(rows(4, "test")) and not any(p.tests for p in made[1:])
    with pytest.raises(UserError, match="labels_per_stage must be at most 6; got 7"):
        scenarios.recurring(rows(), rows(), 3, 7, None, 1.0, 0)


def test_rows_per_label_and_limits_are_subsets_in_order():
    every = rows()
    some = scenarios.per_label(every, 3, 0)
    assert Counter(row["label"] for row in some) == dict.fromkeys(LABELS, 3)
    few = scenarios.limited(every, 8, 0)
    for found in (some, few):
        assert [row for row in every if row in found] == found
    assert len(few) == 8 and scenarios.limited(every, 99, 0) is every
    assert scenarios.limited(every, 8, 1) != few and scenarios.per_label(every, 3, 1) != some


def test_held_out_rows_are_a_share_of_every_label_and_leave_the_rest():
    kept, aside = scenarios.held_out(rows(), 0.2, 0)
    assert texts(kept) + texts(aside) == texts(rows())
    assert Counter(row["label"] for row in aside) == dict.fromkeys(LABELS, 2)
    kept, aside = scenarios.held_out(rows(2), 0.99, 0)  # never the last row of a label
    assert Counter(row["label"] for row in kept) == dict.fromkeys(LABELS, 1)
    with pytest.raises(UserError, match="no row can be set aside"):
        scenarios.held_out(rows(1), 0.5, 0)


def test_names_of_stages_are_those_that_a_stream_file_allows():
    assert scenarios.stage_name(0, ("0", "1")) == "0-1"
    assert (
        scenarios.stage_name(0, ("T-shirt/top", "Trouser")) == scenarios.stage_name(0, ("7",)) == "stage-01"
    )
    assert [scenarios.plain_name(each) for each in ("a b/c", 7, "--")] == ["a-b-c", "domain-7", "domain-"]


# images -------------------------------------------------------------------------------------


def test_image_rows_are_those_of_the_array():
    made = images()
    assert len(made) == 12 and [row["label"] for row in made] == [f"l{i % 6}" for i in range(12)]
    assert (made[3]["image"] == made.images[3]).all() and made[3]["__source__"] == "tiny:4"
    part = made.take(np.array([4, 2]))
    assert [row["__source__"] for row in part] == ["tiny:5", "tiny:3"] and len(made[2:5]) == 3
    names = {label: label.upper() for label in LABELS}
    assert [row["label"] for row in part.renamed(names)] == ["L4", "L2"]
    assert (part.renamed(names)[1]["image"] == made.images[2]).all()


def test_permutations_keep_the_pixels_and_differ_by_seed():
    image = images()[0]["image"]
    one, same, other = (permutation(20, *seed)(image) for seed in ((0, 1), (0, 1), (0, 2)))
    assert (one == same).all() and (one != other).any() and (one != image).any()
    assert (np.sort(one.reshape(-1)) == np.sort(image.reshape(-1))).all() and one.shape == image.shape


def test_rotation_is_exact_at_right_angles():
    image = np.random.default_rng(1).integers(0, 256, (7, 7), dtype=np.uint8)
    for turns in range(4):
        assert (rotation(7, 7, 90.0 * turns)(image) == np.rot90(image, turns)).all()
    half = rotation(7, 7, 45.0)(image)
    assert (half != image).any() and half.dtype == np.uint8


def test_three_channels_are_equal():
    image = three_channels(images()[0]["image"])
    assert image.shape == (5, 4, 3) and (image[..., 0] == image[..., 2]).all()
