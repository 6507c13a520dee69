"""Every matrix metric on matrices worked out by hand, against wrong definitions, and by property."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong.core.axes import MatrixMetric
from lifelong.core.discover import camel, describe, load
from lifelong.core.matrix import AccuracyMatrix, GeneralSet

IDS = (
    "average_accuracy",
    "cumulative_accuracy",
    "forgetting",
    "worst_forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "average_incremental_accuracy",
    "general_ability",
)


def matrix(values, taught=None, sizes=None, untrained=None, general=()):
    num_columns = len(values[0])
    return AccuracyMatrix(
        columns=tuple(f"task {i}" for i in range(num_columns)),
        values=tuple(tuple(row) for row in values),
        taught=tuple(taught if taught is not None else range(num_columns)),
        sizes=tuple(sizes or [100] * num_columns),
        untrained=None if untrained is None else tuple(untrained),
        general=tuple(general),
    )


def value(name, m):
    return load(name, "metrics")().value(m)


CHAUDHRY = matrix([[0.6, 0.5, 0.1], [0.7, 0.8, 0.2], [0.9, 0.7, 0.85]], untrained=(0.2, 0.25, 0.3))

# values by hand; columns a, b taught by stage 0, c by stage 1, d by stage 2; unequal sizes
#          a     b     c     d
UNEQUAL = [(0.50, 0.80, 0.20, 0.40), (0.60, 0.50, 0.90, 0.10), (0.40, 0.60, 0.70, 1.00)]
BY_HAND = {
    "average_accuracy": (0.4 + 0.6 + 0.7 + 1.0) / 4,
    "cumulative_accuracy": (10 * 0.4 + 20 * 0.6 + 30 * 0.7 + 40 * 1.0) / 100,
    "forgetting": (0.2 + 0.2 + 0.2) / 3,
    "worst_forgetting": 0.2,
    "backward_transfer": (-0.1 - 0.2 - 0.2) / 3,
    "forward_transfer": ((0.20 - 0.15) + (0.10 - 0.30)) / 2,
    "learning_accuracy": (0.5 + 0.8 + 0.9 + 1.0) / 4,
    "average_incremental_accuracy": (1.3 / 2 + 2.0 / 3 + 2.7 / 4) / 3,
    "general_ability": (0.3 / 0.6 + 10.0 / 12.5) / 2,
}


def unequal():
    sets = (
        GeneralSet(name="facts", metric="accuracy", better="higher", values=(0.6, 0.5, 0.9, 0.3)),
        GeneralSet(name="prose", metric="perplexity", better="lower", values=(10.0, 99.0, 1.0, 12.5)),
    )
    return matrix(UNEQUAL, (0, 0, 1, 2), (10, 20, 30, 40), (0.0, 0.9, 0.15, 0.30), sets)


@pytest.mark.parametrize("name", IDS)
def test_hand_computed(name):
    assert value(name, unequal()) == pytest.approx(BY_HAND[name], abs=1e-12)


@pytest.mark.parametrize("name", IDS)
def test_class_and_description(name):
    cls = load(name, "metrics")
    described = describe("metrics", name)
    assert issubclass(cls, MatrixMetric) and cls.__name__ == camel(name)
    assert cls.title and cls.better in ("higher", "lower") and len(cls.formula) > 20
    assert described.summary and described.verified and described.paper


def test_forgetting_of_the_reference_matrix_is_negative():
    """Peers give -0.10 (first minus last), +0.05 (last row in the maximum) and -0.033 (over T)."""
    assert value("forgetting", CHAUDHRY) == pytest.approx(-0.05, abs=1e-12)
    assert value("worst_forgetting", CHAUDHRY) == pytest.approx(0.1, abs=1e-12)
    rows, old = CHAUDHRY.values, (0, 1)
    wrong = {
        "taught minus last": sum(rows[i][i] - rows[-1][i] for i in old) / 2,
        "last row in the maximum": sum(max(r[i] for r in rows) - rows[-1][i] for i in old) / 2,
        "zero padding": sum(max(0.0, *(r[i] for r in rows)) - rows[-1][i] for i in old) / 2,
        "divided by T": sum(max(r[i] for r in rows[:-1]) - rows[-1][i] for i in old) / 3,
    }
    assert wrong["last row in the maximum"] == pytest.approx(0.05)
    for name, number in wrong.items():
        assert abs(number - -0.05) > 0.01, name


def test_zero_padding_differs_where_scores_are_negative():
    # log-likelihoods: the maximum with padded zeros is 0, so -2 -> -1 would read as forgetting
    m = matrix([[-3.0, -5.0], [-1.0, -2.0]])
    assert value("forgetting", m) == pytest.approx(-2.0)
    assert max(0.0, -3.0) - -1.0 == 1.0


def test_backward_transfer_is_not_divided_by_the_number_of_tasks():
    expected = ((0.9 - 0.6) + (0.7 - 0.8)) / 2
    assert value("backward_transfer", CHAUDHRY) == pytest.approx(expected)
    assert abs(expected - 0.2 / 3) > 0.03  # GEM's code


def test_forward_transfer_measures_against_the_untrained_model():
    expected = ((0.5 - 0.25) + (0.2 - 0.3)) / 2
    assert value("forward_transfer", CHAUDHRY) == pytest.approx(expected)
    current_as_baseline = ((0.5 - 0.5) + (0.2 - 0.2)) / 2  # always 0
    zero_as_baseline = (0.5 + 0.2) / 2
    assert abs(expected - current_as_baseline) > 0.05 and abs(expected - zero_as_baseline) > 0.05
    assert value("forward_transfer", replace(CHAUDHRY, untrained=None)) is None


def test_one_task():
    one = matrix([[0.8]], untrained=(0.1,))
    for name in ("average_accuracy", "cumulative_accuracy", "learning_accuracy"):
        assert value(name, one) == 0.8
    for name in ("forgetting", "worst_forgetting", "backward_transfer", "forward_transfer"):
        assert value(name, one) is None
    assert value("average_incremental_accuracy", one) == 0.8 and value("general_ability", one) is None


def test_joint_training_has_no_past():
    joint = matrix([[0.9, 0.7, 0.8]], taught=(0, 0, 0), sizes=(1, 1, 2), untrained=(0.0, 0.0, 0.0))
    assert value("average_accuracy", joint) == pytest.approx(0.8)
    assert value("learning_accuracy", joint) == value("average_accuracy", joint)
    assert value("cumulative_accuracy", joint) == pytest.approx(0.8)
    for name in ("forgetting", "worst_forgetting", "backward_transfer", "forward_transfer"):
        assert value(name, joint) is None


def test_unfinished_run_counts_the_tasks_taught_so_far():
    part = replace(CHAUDHRY, values=CHAUDHRY.values[:2])
    assert value("average_accuracy", part) == pytest.approx(0.75)
    assert value("forgetting", part) == pytest.approx(-0.1)
    assert value("learning_accuracy", part) == pytest.approx(0.7)
    none_yet = replace(CHAUDHRY, values=())
    assert [value(name, none_yet) for name in IDS] == [None] * len(IDS)


def test_cells_that_were_not_measured():
    lower = matrix([[0.6, None, None], [0.7, 0.8, None], [0.9, 0.7, 0.85]], untrained=(0.2, 0.2, 0.2))
    full = replace(lower, values=CHAUDHRY.values)
    for name in ("average_accuracy", "learning_accuracy", "backward_transfer", "forgetting"):
        assert value(name, lower) == value(name, full), name
    assert value("forward_transfer", lower) is None  # needs the cells above the diagonal
    assert value("average_incremental_accuracy", lower) == value("average_incremental_accuracy", full)
    hole = replace(lower, values=(*lower.values[:2], (None, 0.7, 0.85)))
    for name in set(IDS) - {"learning_accuracy"}:
        assert value(name, hole) is None, name  # filled with 0 it would be a number


def test_general_ability_leaves_out_what_could_not_be_lost():
    def kept(*sets):
        general = [GeneralSet(name="g", metric="m", better=b, values=(u, f)) for b, u, f in sets]
        return value("general_ability", matrix([[0.5]], general=general))

    assert kept(("higher", 0.4, 0.4), ("lower", 8.0, 8.0)) == 1.0
    assert kept(("higher", 0.4, 0.2)) == 0.5 and kept(("lower", 8.0, 16.0)) == 0.5
    assert kept(("higher", 0.0, 0.3), ("higher", 0.4, 0.3)) == pytest.approx(0.75)
    assert kept(("higher", 0.0, 0.3)) is None and kept(("lower", 0.2, 0.0)) is None
    assert kept(("higher", 0.4, None)) is None


cell = st.floats(min_value=-5, max_value=5, width=32)


@st.composite
def matrices(draw, at_best_when_taught=False):
    rows = draw(st.integers(2, 5))
    extra = draw(st.lists(st.integers(0, rows - 1), max_size=3))
    taught = [*range(rows), *extra]
    values = [[draw(cell) for _ in taught] for _ in range(rows)]
    if at_best_when_taught:
        for i, row in enumerate(taught):
            values[row][i] = max(values[k][i] for k in range(rows))
    sizes = [draw(st.integers(1, 50)) for _ in taught]
    return matrix(values, taught, sizes, [draw(cell) for _ in taught])


@given(matrices(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_order_of_columns_does_not_matter(m, random):
    order = list(range(len(m.columns)))
    random.shuffle(order)

    def pick(row):
        return tuple(row[i] for i in order)

    shuffled = replace(
        m,
        columns=pick(m.columns),
        values=tuple(pick(row) for row in m.values),
        taught=pick(m.taught),
        sizes=pick(m.sizes),
        untrained=pick(m.untrained),
    )
    for name in IDS:
        assert value(name, shuffled) == pytest.approx(value(name, m), abs=1e-9), name


@given(matrices(at_best_when_taught=True))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_forgetting_is_minus_backward_transfer_when_tasks_are_best_when_taught(m):
    assert value("forgetting", m) == pytest.approx(-value("backward_transfer", m), abs=1e-9)
    assert value("forgetting", m) >= -1e-12


@given(matrices())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_bounds(m):
    assert value("forgetting", m) >= -value("backward_transfer", m) - 1e-9
    assert value("worst_forgetting", m) >= value("forgetting", m) - 1e-9
    equal = replace(m, sizes=(7,) * len(m.sizes))
    assert value("cumulative_accuracy", equal) == pytest.approx(value("average_accuracy", m), abs=1e-9)


@given(matrices(), st.floats(-2, 2, width=32))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_differences_ignore_a_shift_and_levels_follow_it(m, shift):
    def moved(row):
        return tuple(cell + shift for cell in row)

    other = replace(m, values=tuple(map(moved, m.values)), untrained=moved(m.untrained))
    for name in ("forgetting", "worst_forgetting", "backward_transfer", "forward_transfer"):
        assert value(name, other) == pytest.approx(value(name, m), abs=1e-6), name
    for name in ("average_accuracy", "cumulative_accuracy", "learning_accuracy"):
        assert value(name, other) == pytest.approx(value(name, m) + shift, abs=1e-6), name


# what was erased: columns a, b taught by stage 0, c by stage 1; stage 2 erases b; d taught by stage 3
#           a     b     c     d
ERASING = [(0.80, 0.90, 0.10, 0.30), (0.70, 0.80, 0.60, 0.20), (0.60, 0.20, 0.70, 0.20),
           (0.75, 0.25, 0.50, 0.90)]  # fmt: skip
AFTER_ERASING = {
    "average_accuracy": (0.75 + 0.50 + 0.90) / 3,
    "cumulative_accuracy": (10 * 0.75 + 30 * 0.50 + 40 * 0.90) / 80,
    "forgetting": ((0.80 - 0.75) + (0.70 - 0.50)) / 2,
    "worst_forgetting": 0.70 - 0.50,
    "backward_transfer": ((0.75 - 0.80) + (0.50 - 0.60)) / 2,
    "forward_transfer": ((0.10 - 0.15) + (0.20 - 0.30)) / 2,
    "learning_accuracy": (0.80 + 0.60 + 0.90) / 3,
    "average_incremental_accuracy": (1.7 / 2 + 2.1 / 3 + 1.3 / 2 + 2.15 / 3) / 4,  # b counts until row 2
    "erased_accuracy": 0.25,
    "erasure_gap": 0.25 - 0.05,
    "retained_accuracy": (0.75 + 0.50) / 2,
}


def erasing(**changes):
    made = matrix(ERASING, (0, 0, 1, 3), (10, 20, 30, 40), (0.0, 0.05, 0.15, 0.30))
    return replace(made, **{"erased": (None, 2, None, None)} | changes)


@pytest.mark.parametrize("name", AFTER_ERASING)
def test_hand_computed_with_an_erase_stage(name):
    assert value(name, erasing()) == pytest.approx(AFTER_ERASING[name], abs=1e-12)
    if name in IDS:  # control: as an ordinary column b changes every figure
        assert value(name, erasing(erased=())) != pytest.approx(AFTER_ERASING[name], abs=1e-3) or (
            name == "forward_transfer"  # b is of the first stage
        )


def test_only_the_figures_on_erasure_look_at_erased_cells():
    rows = [list(row) for row in ERASING]
    rows[2][1] = rows[3][1] = 0.99
    other = erasing(values=tuple(map(tuple, rows)))
    for name in AFTER_ERASING:
        assert (value(name, other) == value(name, erasing())) == (
            name not in ("erased_accuracy", "erasure_gap")
        )


def test_nothing_is_erased_before_its_stage_has_ended():
    part = erasing(values=tuple(ERASING[:2]))
    assert value("average_accuracy", part) == pytest.approx((0.7 + 0.8 + 0.6) / 3)
    assert [value(name, part) for name in ("erased_accuracy", "erasure_gap", "retained_accuracy")] == [
        None
    ] * 3
    first = erasing(values=tuple(ERASING[:3]))  # a and c are old, b is gone
    assert value("forgetting", first) == pytest.approx(((0.8 - 0.6) + (0.6 - 0.7)) / 2)


def test_erasure_in_joint_training_is_from_its_only_row():
    joint = matrix([[0.9, 0.2, 0.8]], taught=(0, 0, 0), untrained=(0.0, 0.1, 0.0))
    joint = replace(joint, erased=(None, 0, None))
    assert value("average_accuracy", joint) == value("retained_accuracy", joint) == pytest.approx(0.85)
    assert value("erased_accuracy", joint) == 0.2 and value("erasure_gap", joint) == pytest.approx(0.1)
    assert value("erasure_gap", replace(joint, untrained=None)) is None


def test_a_matrix_with_erased_columns_reads_back():
    assert AccuracyMatrix.from_dict(erasing().to_dict()) == erasing()
