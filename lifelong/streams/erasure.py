"""Erase requests: which rows of an earlier stage are to be forgotten, and what judges it.

A request names labels of the stage, rows by a file, or neither, which is the whole stage. A row of a
file stands for every row of the stage that has the same values in the columns that the file has (so a
column with numbers of customers is enough); one that stands for none is forgotten as it is written.

Evaluation sets follow: a label of which no row is left takes its evaluation rows to a column of their
own, `<set>.<erase stage>`, and a set of which nothing is left becomes such a column as a whole.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from lifelong.core.axes import Row
from lifelong.core.stream import Erasure, EvalSet, Stage
from lifelong.errors import UserError, nearest
from lifelong.store.content import SOURCE, digest
from lifelong.streams.config import Erase, RunConfig, Source, StageChoice


def source_of(erase: Erase, config: RunConfig) -> Source:
    """Where the rows of a request come from; columns are called as those of the stage by default."""
    given = {key: getattr(erase, key) for key in Source.model_fields}
    if not erase.columns:
        given["columns"] = next(e.train.columns for e in config.listed if e.name == erase.stage)
    return Source(**given)


def request(
    choice: StageChoice, target: Stage, stages: Sequence[Stage], rows: Sequence[Row]
) -> tuple[Erasure, list[Row]]:
    """What the stage erases, and its rows; `rows` are those of the file."""
    where = f"stage {choice.name}, erase"
    before = {place: each.name for each, place in _erasures(stages, target.name)}
    others: list[Row] = []
    if choice.erase.path is not None:
        places, others = _matching(target, rows)
        for place in places:
            if place in before:
                raise _twice(where, target.rows[place][SOURCE], target, before[place])
    elif choice.erase.labels is not None:
        places = _of_labels(target, choice.erase.labels, before, where)
    else:
        places = [place for place in range(len(target.rows)) if place not in before]
    if not places and not others:
        raise UserError(f"{where}: no row of {target.name} is left to erase.")
    erases = Erasure(stage=target.name, places=tuple(places))
    return erases, [*(target.rows[place] for place in places), *others]


def _of_labels(target: Stage, labels: Sequence[str], before: dict[int, str], where: str) -> list[int]:
    """Places of the rows of some labels that are still there."""
    found = []
    for label in dict.fromkeys(labels):
        if label not in target.labels:
            near = nearest(label, target.labels)
            raise UserError(f"{where}: `{label}` is no label of {target.name}.{near}")
        places = [i for i, row in enumerate(target.rows) if row["label"] == label]
        left = [place for place in places if place not in before]
        if places and not left:
            raise _twice(where, f"label `{label}`", target, before[places[-1]])
        found += left
    return sorted(found)


def _twice(where: str, what: str, target: Stage, eraser: str) -> UserError:
    return UserError(
        f"{where}: {what} of {target.name} was erased by stage {eraser} already; ask for it once."
    )


def _erasures(stages: Sequence[Stage], name: str) -> list[tuple[Stage, int]]:
    """(erase stage, place of a row that it erases) for stage `name`, in order."""
    return [
        (each, place)
        for each in stages
        if each.erases is not None and each.erases.stage == name
        for place in each.erases.places
    ]


def _matching(target: Stage, rows: Sequence[Row]) -> tuple[list[int], list[Row]]:
    """(places in the stage of rows that the file means, rows of the file that mean none)."""
    found: set[int] = set()
    others = []
    by_columns: dict[tuple[str, ...], dict[str, list[int]]] = {}
    for row in rows:
        columns = tuple(sorted(set(row) - {SOURCE}))
        if columns not in by_columns:
            by_columns[columns] = defaultdict(list)
            for place, each in enumerate(target.rows):
                by_columns[columns][_content(each, columns)].append(place)
        places = by_columns[columns].get(_content(row, columns), ())
        found.update(places)
        others += [] if places else [row]
    return sorted(found), others


def _content(row: Row, columns: Sequence[str]) -> str:
    return digest([[column, row.get(column)] for column in columns])


def split_evals(stages: Sequence[Stage]) -> list[Stage]:
    """Stages whose evaluation sets tell what is erased from what remains."""
    found = []
    for stage in stages:
        erased = _erasures(stages, stage.name)
        if erased:
            stage = replace(
                stage, evals=tuple(e for each in stage.evals for e in _split(each, stage, erased))
            )
        found.append(stage)
    return found


def _split(each: EvalSet, stage: Stage, erased: Sequence[tuple[Stage, int]]) -> list[EvalSet]:
    """An evaluation set, or its parts by the stage that erases what they ask for."""
    if each.erased_by:
        return [each]
    last = {place: eraser.name for eraser, place in erased}
    order = ["", *dict.fromkeys(last.values())]

    def eraser(label: str | None) -> str:
        """The stage after which no row (of this label) is left; empty where some are."""
        places = [i for i, row in enumerate(stage.rows) if label is None or row["label"] == label]
        names = [last.get(place, "") for place in places]
        return "" if "" in names or not names else max(names, key=order.index)

    if not each.labels:
        return [replace(each, erased_by=eraser(None))]
    by_label = {label: eraser(label) for label in each.labels}
    parts = [(name, [row for row in each.rows if by_label[row["label"]] == name]) for name in order]
    parts = [(name, rows) for name, rows in parts if rows]
    if len(parts) == 1:
        return [replace(each, erased_by=parts[0][0])]
    return [
        replace(each, name=f"{each.name}.{name}" if name else each.name, rows=rows, erased_by=name)
        for name, rows in parts
    ]
