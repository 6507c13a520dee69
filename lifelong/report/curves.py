"""Accuracy over the stream, of every method of a bench: a small chart each, a table, and all numbers as CSV.

Means over runs. Where orders differ, tasks are aligned by their place in the order: what came second in one
run is drawn with what came second in another.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lifelong.report import charts, formats
from lifelong.report.charts import Line, Plot, Point
from lifelong.report.compare import NAIVE, Spread, spread

TASKS = 12  # lines of a chart, at most
POINTS = 60  # of a line
COLUMNS = 12  # of the table
UPPER = "joint"
Curve = dict[str, Any]  # of one run, see `lifelong.standings`
Values = Mapping[int, float | None]  # by stage


class Task(NamedTuple):
    """What came at one place in the order."""

    name: str  # empty where the orders differ
    place: int
    erased: int | None  # stage from which on a run has it erased
    values: Values


class Frame(NamedTuple):
    """What all charts share."""

    last: int  # stage
    ends: tuple[float, float]  # of the vertical axis
    percent: bool
    naive: Mapping[int, Spread | None]  # averages by stage, empty where there are none
    upper: Spread | None  # at the end

    def text(self, value: float | None) -> str:
        return formats.score(value, self.percent) + " %" * (self.percent and value is not None)


def averages(curves: Sequence[Curve]) -> dict[int, Spread | None]:
    """Over the tasks seen, by stage; None where a run has none."""
    each = [dict(zip(curve["stages"], curve["average"], strict=True)) for curve in curves]
    return _spreads(each)


def tasks(curves: Sequence[Curve]) -> list[Task]:
    """Several sets of one stage stay apart."""
    found: dict[tuple[int, int], list[tuple[dict[str, Any], dict[int, float | None]]]] = {}
    for curve in curves:
        sets = Counter()
        for task in curve["tasks"]:
            values = dict(zip(curve["stages"], task["values"], strict=True))
            found.setdefault((task["place"], sets[task["place"]]), []).append((task, values))
            sets[task["place"]] += 1
    return [_task(place, members) for (place, _), members in sorted(found.items(), key=lambda each: each[0])]


def _task(place: int, members: Sequence[tuple[dict[str, Any], Values]]) -> Task:
    names = {task["name"] for task, _ in members}
    erased = [task["erased"] for task, _ in members if task["erased"] is not None]
    values = _means(_spreads([values for _, values in members]))
    return Task(names.pop() if len(names) == 1 else "", place, min(erased, default=None), values)


def _spreads(runs: Sequence[Values]) -> dict[int, Spread | None]:
    """Over runs, by stage; None where one of them has no value."""
    stages = sorted({stage for values in runs for stage in values})
    return {stage: spread([values.get(stage) for values in runs]) for stage in stages}


def _means(found: Mapping[int, Spread | None]) -> dict[int, float | None]:
    return {stage: each and each.mean for stage, each in found.items()}


def figures(standings: dict[str, Any]) -> dict[str, Any] | None:
    """What the page shows; None where no method has a second stage."""
    rows = [row for row in standings["rows"] if row["curves"]]
    drawn = {row["label"]: (averages(row["curves"]), tasks(row["curves"])) for row in rows}
    last = num_stages(standings)
    values = [v for means, lines in drawn.values() for v in _every(means, lines)]
    if last < 2 or not values:
        return None
    percent = standings["percent"]
    ends = charts.nice_range(values, (0.0, 1.0) if percent else None)[:2]
    naive, upper = (drawn.get(label, ({}, []))[0] for label in (NAIVE[0], UPPER))
    frame = Frame(last, ends, percent, naive, upper.get(last))
    return {
        "plots": {row["label"]: _plot(row, *drawn[row["label"]], frame) for row in rows},
        "naive": NAIVE[0] * bool(naive), "upper": UPPER * bool(frame.upper), "last": last,
        "once": any(min(each["stages"]) == last for row in rows for each in row["curves"]),
        "bands": any(len(row["curves"]) > 1 for row in rows),
        "erased": any(task.erased for _, lines in drawn.values() for task in lines),
        "aligned": any(not task.name for _, lines in drawn.values() for task in lines),
        "few": TASKS if any(len(lines) > TASKS for _, lines in drawn.values()) else 0,
    }  # fmt: skip


def _every(means: Mapping[int, Spread | None], lines: Sequence[Task]) -> Iterator[float]:
    """All values that are drawn."""
    for each in means.values():
        yield from (each.low, each.high) if each else ()
    yield from (value for task in lines for value in task.values.values() if value is not None)


def _plot(
    row: dict[str, Any], means: Mapping[int, Spread | None], lines: Sequence[Task], frame: Frame
) -> Plot:
    last, upper, low, high = frame.last, frame.upper, *frame.ends
    shown = [lines[i] for i in picked(len(lines), TASKS)]
    drawn = [line for task in shown for line in _lines(task, frame.text)]
    behind = [] if row["label"] == NAIVE[0] else _pieces(_means(frame.naive), "naive")
    if upper and row["label"] != UPPER:
        behind.append(Line(points=((1.0, upper.mean), (float(last), upper.mean)), kind="upper"))
    known = {stage: each for stage, each in means.items() if each}
    several = picked_stages(known, POINTS) if len(row["curves"]) > 1 else ()
    told = ", ".join(f"{frame.text(known[s].mean)} after stage {s}" for s in picked_stages(known, COLUMNS))
    return Plot(
        title=row["label"],
        label=f"{row['label']}: average over the tasks seen {told or 'not known'}",
        lines=(*behind, *drawn, *_pieces(_means(means), "main")),
        bands=tuple((float(s), known[s].low, known[s].high) for s in several),
        low=low,
        high=high,
        span=(1.0, float(last)),
        ticks=tuple(
            formats.number(end * (100 if frame.percent else 1), 0 if frame.percent else 2)
            for end in (high, low)
        ),
        note=frame.text(_means(means).get(last)),
    )


def _lines(task: Task, text: Callable[[float | None], str]) -> list[Line]:
    """Of one task; what comes after its erasure is another line."""
    known = {stage: value for stage, value in task.values.items() if value is not None}
    if not known:
        return []
    name = f"task {task.place}" + (f", {task.name}" if task.name else "")
    title = f"{name}: {text(known[min(known)])} after stage {min(known)}"
    title += f", {text(known[max(known)])} after stage {max(known)}" if len(known) > 1 else ""
    if task.erased is None:
        return _pieces(task.values, "task", title)
    before = {stage: value for stage, value in task.values.items() if stage < task.erased}
    after = {stage: value for stage, value in task.values.items() if stage >= task.erased - 1}
    title += f", erased from stage {task.erased}"
    return _pieces(before, "task", title) + _pieces(after, "task erased", title)


def _pieces(values: Values, kind: str, title: str = "") -> list[Line]:
    """Lines that end where nothing was measured; one of a single point is `alone`."""
    pieces: list[list[Point]] = [[]]
    for stage in picked_stages(values, POINTS):
        value = values[stage]
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((float(stage), value))
    found = [tuple(points) for points in pieces if points]
    return [Line(points=p, kind=kind + " alone" * (len(p) == 1), title=title) for p in found]


def picked(count: int, limit: int) -> list[int]:
    """At most `limit` of so many indices, evenly, with both ends."""
    if count <= limit:
        return list(range(count))
    return [round(i * (count - 1) / (limit - 1)) for i in range(limit)]


def picked_stages(stages: Mapping[int, Any], limit: int) -> list[int]:
    found = sorted(stages)
    return [found[i] for i in picked(len(found), limit)]


def num_stages(standings: dict[str, Any]) -> int:
    return max((s for row in standings["rows"] for each in row["curves"] for s in each["stages"]), default=0)


def table(standings: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): average over the tasks seen."""
    stages = [1 + i for i in picked(num_stages(standings), COLUMNS)]
    rows = []
    for row in standings["rows"]:
        if row["curves"]:
            means = _means(averages(row["curves"]))
            texts = [formats.score(means.get(stage), standings["percent"]) for stage in stages]
            rows.append([row["label"], *texts])
    return ["method", *(f"stage {stage}" for stage in stages)], rows


def as_csv(standings: dict[str, Any]) -> str:
    """A line for every run, stage and task from the stage that taught it on; without a task: the average over
    the tasks seen.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "order", "seed", "stage", "task", "place", "erased", "value"])
    for row in standings["rows"]:
        for curve in row["curves"]:
            run = [row["label"], curve["order"], curve["seed"]]
            for i, stage in enumerate(curve["stages"]):
                for task in curve["tasks"]:
                    if task["place"] <= stage:
                        gone = task["erased"] is not None and task["erased"] <= stage
                        writer.writerow([*run, stage, task["name"], task["place"], gone, task["values"][i]])
                writer.writerow([*run, stage, "", "", "", curve["average"][i]])
    return text.getvalue()
