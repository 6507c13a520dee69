"""The accuracy matrix: what a model could do after each stage. Plain numbers, no torch.

Row k holds the scores after stage k + 1, column i one evaluation set. Every cell is on a scale
where more is better (`AnswerMetric.benefit`). A cell is None where nothing was measured; it is
never taken for a zero.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lifelong.errors import UserError

Score = float | None


def mean(values: Iterable[Score]) -> Score:
    """Arithmetic mean; None where there are no values or one of them is None."""
    found = list(values)
    return None if not found or None in found else math.fsum(found) / len(found)


def by_ending(figures: Mapping[str, float], *endings: str) -> dict[str, float]:
    """Mean of the figures called "NAME ENDING", by ending; without an ending that none has."""
    found = {end: [v for name, v in figures.items() if name.endswith(f" {end}")] for end in endings}
    return {end: mean(values) for end, values in found.items() if values}


@dataclass(frozen=True, kw_only=True)
class GeneralSet:
    """One set that is never trained. `values` are figures as the metric prints them (a perplexity
    is a perplexity): first of the untrained model, then after each stage.
    """

    name: str
    metric: str
    better: str  # "higher" or "lower": which direction of `values` is good
    values: tuple[Score, ...]


@dataclass(frozen=True, kw_only=True)
class AccuracyMatrix:
    """T rows (finished stages) x C columns (evaluation sets of the tasks)."""

    columns: tuple[str, ...]  # C
    values: tuple[tuple[Score, ...], ...]  # T x C
    taught: tuple[int, ...]  # C; row after which the column's task had been trained; joint: all 0
    erased: tuple[int | None, ...] = ()  # C or empty; row from which on what it asks for was erased
    sizes: tuple[int, ...]  # C; evaluation rows
    units: tuple[str, ...] = ()  # C or empty; "%" where a cell is a share in [0, 1]
    untrained: tuple[Score, ...] | None = None  # C; before the first stage
    general: tuple[GeneralSet, ...] = ()

    def __post_init__(self) -> None:
        num_columns, num_rows = len(self.columns), len(self.values)
        for name in ("taught", "sizes"):
            _expect(name, len(getattr(self, name)), num_columns, "columns")
        for name in ("units", "untrained", "erased"):
            _expect(name, len(getattr(self, name) or self.columns), num_columns, "columns")
        for index, row in enumerate(self.values):
            _expect(f"values[{index}]", len(row), num_columns, "columns")
        for each in self.general:
            _expect(f"general set {each.name!r}", len(each.values), num_rows + 1, "rows with the untrained")
            if each.better not in ("higher", "lower"):
                raise UserError(f"GeneralSet.better must be 'higher' or 'lower'; got {each.better!r}.")
        if any(row < 0 for row in self.taught) or any(size < 1 for size in self.sizes):
            raise UserError("accuracy matrix: taught must be >= 0 and sizes >= 1 in every column.")
        rows = (*self.values, self.untrained or (), *(each.values for each in self.general))
        if any(cell is not None and not math.isfinite(cell) for row in rows for cell in row):
            raise UserError(
                "accuracy matrix: a cell is not finite; leave a cell None if it was not measured."
            )

    def __getattr__(self, name: str) -> Score:
        """Any matrix metric by its name: `matrix.forgetting`."""
        from lifelong.core import discover  # here, because metrics import torch

        if not name.startswith("_") and name in discover.names("metrics"):
            cls = discover.load(name, "metrics")
            if issubclass(cls, _matrix_metric()):
                return cls().value(self)
        raise AttributeError(f"AccuracyMatrix has no field and no metric `{name}`")

    @property
    def last(self) -> int:
        """Index of the last row; -1 before the first stage has ended."""
        return len(self.values) - 1

    def known(self, row: int) -> list[int]:
        """Columns whose task had been trained, and not erased, when `row` was measured."""
        return [i for i, taught in enumerate(self.taught) if taught <= row and i not in self.gone(row)]

    def gone(self, row: int) -> list[int]:
        """Columns that had been erased when `row` was measured: to be low there is the aim."""
        return [i for i, erased in enumerate(self.erased) if erased is not None and erased <= row]

    def old(self) -> list[int]:
        """Columns whose task was trained before the last stage, and not erased: those that can be
        forgotten.
        """
        return [i for i in self.known(self.last) if self.taught[i] < self.last]

    def when_taught(self, column: int) -> Score:
        """Score right after the column's own stage; the stage must have ended."""
        return self.values[self.taught[column]][column]

    def drops(self) -> list[Score]:
        """Best earlier score minus final score, for each of `old()`. The untrained model is no row;
        rows in which the cell was not measured cannot be the best.
        """
        return [self._drop(column) for column in self.old()]

    def changes(self) -> list[Score]:
        """Final score minus the score right after teaching, for each of `old()`."""
        return [difference(self.values[-1][i], self.when_taught(i)) for i in self.old()]

    def _drop(self, column: int) -> Score:
        earlier = [row[column] for row in self.values[:-1] if row[column] is not None]
        return difference(max(earlier), self.values[-1][column]) if earlier else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON keeps; tuples become lists there."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "AccuracyMatrix":
        """Inverse of `to_dict`, also after JSON."""
        untrained = content["untrained"]
        return cls(
            columns=tuple(content["columns"]),
            values=tuple(tuple(row) for row in content["values"]),
            taught=tuple(content["taught"]),
            erased=tuple(content["erased"]),
            sizes=tuple(content["sizes"]),
            units=tuple(content["units"]),
            untrained=None if untrained is None else tuple(untrained),
            general=tuple(
                GeneralSet(**{**each, "values": tuple(each["values"])}) for each in content["general"]
            ),
        )


def difference(left: Score, right: Score) -> Score:
    """None where one side was not measured."""
    return None if left is None or right is None else left - right


def _matrix_metric() -> type:
    from lifelong.core.axes import MatrixMetric

    return MatrixMetric


def _expect(what: str, found: int, wanted: int, unit: str) -> None:
    if found != wanted:
        raise UserError(f"accuracy matrix: {what} has {found} entries; it must have {wanted} ({unit}).")
