"""The accuracy matrix: shapes, selection of columns, JSON, refusal of what is not a score."""

import copy
import json
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from lifelong.core.matrix import AccuracyMatrix, GeneralSet, difference, mean
from lifelong.errors import UserError

MATRIX = AccuracyMatrix(
    columns=("a", "b", "c"),
    values=((0.6, 0.5, None), (0.7, 0.8, None), (0.9, 0.7, 0.85)),
    taught=(0, 1, 2),
    sizes=(10, 20, 30),
    units=("%", "%", "%"),
    untrained=(0.3, None, 0.1),
    general=(GeneralSet(name="facts", metric="accuracy", better="higher", values=(0.5, 0.4, None, 0.3)),),
)


def test_json_keeps_every_field():
    back = AccuracyMatrix.from_dict(json.loads(json.dumps(MATRIX.to_dict(), allow_nan=False)))
    assert back == MATRIX and isinstance(back.values[0], tuple) and isinstance(back.general[0], GeneralSet)
    bare = replace(MATRIX, untrained=None, general=(), units=())
    assert AccuracyMatrix.from_dict(json.loads(json.dumps(bare.to_dict()))) == bare != MATRIX


def test_known_and_old_follow_the_order_of_teaching():
    assert [MATRIX.known(row) for row in (-1, 0, 1, 2)] == [[], [0], [0, 1], [0, 1, 2]]
    assert MATRIX.old() == [0, 1] and MATRIX.last == 2
    joint = replace(MATRIX, values=((0.9, 0.7, 0.85),), taught=(0, 0, 0), general=())
    assert joint.old() == [] and joint.known(joint.last) == [0, 1, 2]


def test_run_before_its_first_row():
    empty = replace(MATRIX, values=(), general=())
    assert empty.last == -1 and empty.old() == [] and empty.known(empty.last) == []


def test_mean_never_fills_a_hole():
    assert mean([0.5, 1.0]) == 0.75
    assert mean([0.5, None, 1.0]) is None and mean([]) is None
    assert difference(None, 1.0) is None and difference(1.0, None) is None and difference(3.0, 1.0) == 2.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"values": ((0.6, 0.5), (0.7, 0.8), (0.9, 0.7))}, "values[0] has 2 entries; it must have 3"),
        ({"taught": (0, 1)}, "taught has 2 entries"),
        ({"sizes": (1, 2, 3, 4)}, "sizes has 4 entries"),
        ({"untrained": (0.1,)}, "untrained has 1 entries"),
        ({"sizes": (0, 1, 2)}, "sizes >= 1"),
        ({"taught": (-1, 1, 2)}, "taught must be >= 0"),
        ({"values": ((0.6, 0.5, None), (0.7, float("nan"), None), (0.9, 0.7, 0.8))}, "not finite"),
        ({"general": (GeneralSet(name="g", metric="m", better="up", values=(1, 2, 3, 4)),)}, "'higher' or"),
        ({"general": (GeneralSet(name="g", metric="m", better="lower", values=(1, 2, 3)),)}, "'g' has 3"),
    ],
)
def test_misshapen_matrices_are_refused(change, words):
    with pytest.raises(UserError) as caught:
        replace(MATRIX, **change)
    assert words in str(caught.value)


def test_metrics_are_attributes():
    assert MATRIX.forgetting == pytest.approx(-0.05) and MATRIX.backward_transfer == pytest.approx(0.1)
    assert copy.deepcopy(MATRIX) == MATRIX == pickle.loads(pickle.dumps(MATRIX))
    for name in ("accuracy", "forgeting", "_forgetting"):  # a metric of answers, a slip, a private name
        with pytest.raises(AttributeError, match=f"no metric `{name}`"):
            getattr(MATRIX, name)


def test_no_torch():
    code = "import sys, lifelong.core.matrix, lifelong.numerics.intervals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
