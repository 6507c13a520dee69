"""Labelled rows cut into stages. Pure functions of rows, settings and seeds.

Van de Ven and Tolias 2019 (arXiv:1904.07734): in a class- or task-incremental stream the stages have
labels of their own (whether the task is known at test time is said by `candidates`); in a
domain-incremental one they share labels. Blurry boundaries: a share of every stage's rows comes from other
stages. Recurring: every stage draws a few labels anew, so that they come back (SCoLe, Lesort et al. 2022,
arXiv:2207.04543).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lifelong.errors import UserError
from lifelong.streams.image_rows import ImageRows

Row = dict[str, Any]
Rows = Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of one stage, before they meet budget and objective."""

    name: str
    train: Rows
    tests: dict[str, Rows]  # by the name of the evaluation set
    labels: tuple[str, ...] = ()  # of the tests, where the set is closed
    objective: dict[str, dict[str, Any]] = field(default_factory=dict)  # empty: follows from the columns
    metric: str = ""  # empty: the objective's


# choosing rows ------------------------------------------------------------------------------


def labels_of(rows: Rows) -> np.ndarray:
    if isinstance(rows, ImageRows):
        return rows.labels[rows.index]
    return np.array([row["label"] for row in rows])


def take(rows: Rows, chosen: np.ndarray) -> Rows:
    return rows.take(chosen) if isinstance(rows, ImageRows) else [rows[i] for i in chosen]


def renamed(rows: Rows, names: Mapping[str, str]) -> Rows:
    if isinstance(rows, ImageRows):
        return rows.renamed(names)
    return [{**row, "label": names[row["label"]]} for row in rows]


def limited(rows: Rows, count: int | None, *seed: int) -> Rows:
    """`count` of the rows at random, in their order."""
    if count is None or count >= len(rows):
        return rows
    return take(rows, np.sort(np.random.default_rng(seed).permutation(len(rows))[:count]))


def per_label(rows: Rows, count: int, seed: int) -> Rows:
    """At most `count` rows of every label at random, in their order."""
    labels, draw = labels_of(rows), np.random.default_rng([seed, 1])
    picked = [draw.permutation(np.flatnonzero(labels == each))[:count] for each in np.unique(labels)]
    return take(rows, np.sort(np.concatenate(picked)))


def held_out(rows: Rows, fraction: float, seed: int, labelled: bool = True) -> tuple[Rows, Rows]:
    """(rows that stay, rows set aside): about `fraction` of every label at random, never all of it, and at
    least one row of all.
    """
    labels = labels_of(rows) if labelled else np.zeros(len(rows), dtype=np.int64)
    draw, aside = np.random.default_rng([seed, 2]), np.zeros(len(rows), dtype=bool)
    for each in np.unique(labels):
        places = draw.permutation(np.flatnonzero(labels == each))
        aside[places[: min(max(1, round(fraction * len(places))), len(places) - 1)]] = True
    if not aside.any():
        raise UserError("no row can be set aside for validation: every label has one row only.")
    return take(rows, np.flatnonzero(~aside)), take(rows, np.flatnonzero(aside))


# cutting ------------------------------------------------------------------------------------


def shuffled(items: Sequence[str], order: int) -> list[str]:
    """0: as they come; k: at random with the seed k."""
    return (
        list(items)
        if order == 0
        else [items[i] for i in np.random.default_rng([order]).permutation(len(items))]
    )


def even_groups(labels: Sequence[str], num_stages: int) -> dict[str, tuple[str, ...]]:
    """Labels in order, cut into groups whose sizes differ by one at most."""
    if num_stages > len(labels):
        raise UserError(f"num_stages must be at most {len(labels)}, the number of labels; got {num_stages}.")
    cuts = np.array_split(np.arange(len(labels)), num_stages)
    groups = [tuple(labels[i] for i in cut) for cut in cuts]
    return {stage_name(i, group): group for i, group in enumerate(groups)}


def stage_name(index: int, labels: Sequence[str]) -> str:
    """The labels, if they are few and short words; else the number of the stage."""
    short = 1 < len(labels) <= 3 and all(re.fullmatch(r"[A-Za-z0-9]{1,12}", each) for each in labels)
    return "-".join(labels) if short else f"stage-{index + 1:02d}"


def plain_name(value: Any) -> str:
    """A value of the data as a stage may be called."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", str(value)).strip("-")
    return f"domain-{words}" if not words or words.isdecimal() else words


def class_incremental(train: Rows, test: Rows, groups: Mapping[str, Sequence[str]]) -> list[Part]:
    """One stage per group of labels. Every row is used once; a label without a group is an error."""
    owner = {label: name for name, labels in groups.items() for label in labels}
    places = []
    for rows in (train, test):
        stages = []
        for label in labels_of(rows):
            if str(label) not in owner:
                raise UserError(f"label `{label}` is in no group of labels.")
            stages.append(owner[str(label)])
        places.append(np.array(stages))
    parts = []
    for name, labels in groups.items():
        own = [take(rows, np.flatnonzero(at == name)) for rows, at in zip((train, test), places, strict=True)]
        if not len(own[0]) or not len(own[1]):
            kind = "evaluation" if len(own[0]) else "training"
            raise UserError(f"stage {name} has no {kind} row; its labels are {', '.join(labels)}.")
        parts.append(Part(name=name, train=own[0], tests={name: own[1]}, labels=tuple(labels)))
    return parts


def domain_incremental(train: Rows, test: Rows, column: str, names: Sequence[str]) -> list[Part]:
    """One stage per value of `column`, in the order of `names`; all stages share their labels."""
    labels = tuple(sorted({row["label"] for row in train}))
    parts = []
    for value in names:
        own = [[row for row in rows if str(row.get(column)) == value] for rows in (train, test)]
        if not own[1]:
            raise UserError(f"no evaluation row has `{column}` = {value}.")
        name = plain_name(value)
        parts.append(Part(name=name, train=own[0], tests={name: own[1]}, labels=labels))
    return parts


def relabelled(parts: Sequence[Part]) -> list[Part]:
    """Every label by its place in its own stage, so that all stages share their labels."""
    found = []
    for part in parts:
        names = {label: str(i) for i, label in enumerate(part.labels)}
        tests = {name: renamed(rows, names) for name, rows in part.tests.items()}
        found.append(
            replace(part, train=renamed(part.train, names), tests=tests, labels=tuple(names.values()))
        )
    return found


def blurred(parts: Sequence[Part], share: float, seed: int) -> list[Part]:
    """`share` of every stage's training rows changes places with rows of other stages: every row is still
    used once, every stage keeps its size, and no row that left comes back. A stage that is larger than all
    others together gives no more rows than they can take.
    """
    draw = np.random.default_rng([seed, 3])
    counts = [round(share * len(part.train)) for part in parts]
    largest = int(np.argmax(counts))
    counts[largest] = min(counts[largest], sum(counts) - counts[largest])
    given = [draw.permutation(len(part.train))[:count] for part, count in zip(parts, counts, strict=True)]
    slots = np.repeat(np.arange(len(parts)), counts)  # the stage that each free place belongs to
    rows = [parts[s].train[int(i)] for s, places in enumerate(given) for i in places]
    owners = _strangers(slots, draw)
    found = []
    for stage, (part, places) in enumerate(zip(parts, given, strict=True)):
        train = list(part.train)
        for place, source in zip(places, owners[slots == stage], strict=True):
            train[int(place)] = rows[source]
        found.append(replace(part, train=train))
    return found


def _strangers(slots: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A random assignment of rows to free places, row i being of stage slots[i], none to its own stage."""
    taken = draw.permutation(len(slots))
    for place in range(len(slots)):
        if slots[taken[place]] != slots[place]:
            continue
        fits = np.flatnonzero((slots[taken] != slots[place]) & (slots != slots[taken[place]]))
        other = int(draw.choice(fits))
        taken[place], taken[other] = taken[other], taken[place]
    return taken


def recurring(
    train: Rows, test: Rows, num_stages: int, labels_per_stage: int, rows_per_stage: int | None, decay: float,
    seed: int,
) -> list[Part]:  # fmt: skip
    """Every stage draws `labels_per_stage` labels, label i with a chance in proportion to decay^i, and then
    rows of these alone. All test rows judge after every stage: they belong to the first one, so that their
    column is the curve of knowledge that adds up.
    """
    of, names = labels_of(train), [str(each) for each in dict.fromkeys(labels_of(train))]
    if labels_per_stage > len(names):
        raise UserError(f"labels_per_stage must be at most {len(names)}; got {labels_per_stage}.")
    chances = decay ** np.arange(len(names), dtype=np.float64)
    width, parts = len(str(num_stages)), []
    for stage in range(num_stages):
        draw = np.random.default_rng([seed, 4, stage])
        picked = draw.choice(len(names), labels_per_stage, replace=False, p=chances / chances.sum())
        places = draw.permutation(np.flatnonzero(np.isin(of, [names[i] for i in picked])))[:rows_per_stage]
        tests = {} if stage else {"all": test}
        name = f"stage-{stage + 1:0{width}d}"
        parts.append(Part(name=name, train=take(train, np.sort(places)), tests=tests, labels=tuple(names)))
    return parts


def domains(rows: Iterable[Row], column: str) -> list[str]:
    """Values of a column in the order in which they come."""
    found = dict.fromkeys(row.get(column) for row in rows)
    if None in found:
        raise UserError(f"a row has no column `{column}`, which says its domain.")
    return [str(each) for each in found]
