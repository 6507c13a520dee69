"""What a bench on several streams says: one line per method over all of them; every stream counts alike.

average accuracy   mean over streams of the average accuracy on each; its interval, and that of a difference,
                   from independent draws of runs and rows on every stream (`lifelong.standings`)
rank, time, kept   mean over streams of what the table of each stream has
peak memory        the largest on any stream

A method that has no run on one of the streams has no figure here. Where streams are judged in different units
there is no mean of scores, only of ranks and cost.
"""

from typing import Any

import numpy as np

from lifelong import standings
from lifelong.numerics.crossed import interval
from lifelong.standings import NAIVE, Means
from lifelong.streams.bench_file import Bench

Row = dict[str, Any]
MEAN = (*standings.METRICS, "rank", "seconds", "evaluation_seconds", "time", "kept_bytes")
UNITS = tuple(name for name in standings.METRICS if name != "general_ability")  # in that of the table
SAME = ("label", "bound", "settings", "tuning_score", "trials", "tuning_runs", "tuning_seconds")


def of(bench: Bench) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(the table over all streams, the table of each stream by its name), as plain values."""
    names = list(dict.fromkeys(cell.stream for cell in bench.cells))
    parts = {name: bench.alone(name) for name in names}
    judged = {name: standings.judged(part) for name, part in parts.items()}
    tables = {name: standings.of(part, judged[name]) for name, part in parts.items()}
    means = _means([each.means for each in judged.values()])
    by_label = {label: _rows(tables, label) for label in means}
    values = {label: _mean(rows, "average_accuracy") for label, rows in by_label.items()}
    best = standings.best_of(values, means)
    rows = [
        _over(found)
        | {
            "interval": None if means[label] is None else interval(means[label]),
            "difference": standings.difference(label, NAIVE, values, means),
            "tied": standings.is_tied(label, best, values, means),
        }
        for label, found in by_label.items()
    ]
    scale = _scale(list(tables.values()))
    if len({table["unit"] for table in tables.values()}) > 1:  # no mean of such figures
        rows = [row | dict.fromkeys((*UNITS, "interval", "difference")) | {"tied": False} for row in rows]
    whole = tables[names[0]] | {
        "name": bench.settings.name,
        "rows": sorted(rows, key=standings.by_accuracy),
        "visible": _visible(tables),
        "orders": max(table["orders"] for table in tables.values()),
        **scale,
        "streams": {name: parts[name].output.name for name in names},
    }
    return whole, tables


def _visible(tables: dict[str, dict[str, Any]]) -> list[str]:
    """What holds for all streams once, else with the name of each."""
    every = [table["visible"] for table in tables.values()]
    if all(each == every[0] for each in every):
        return every[0]
    return [f"{name}: {line}" for name, table in tables.items() for line in table["visible"]]


def _scale(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """That of all tables; where they differ, what is left of it."""
    keys = {"word": "score", "percent": False, "unit": "", "apart": ""}
    return {
        key: tables[0][key] if len({table[key] for table in tables}) == 1 else other
        for key, other in keys.items()
    }


def _means(streams: list[Means]) -> Means:
    """Resampled means over streams. Draws of each stream are put in an order of its own, the same for all
    methods, so that streams are independent and methods stay paired.
    """
    found: Means = {}
    for label in streams[0]:
        drawn = [each[label] for each in streams]
        if any(each is None for each in drawn):
            found[label] = None
            continue
        places = [np.random.default_rng(i).permutation(len(each)) for i, each in enumerate(drawn)]
        found[label] = np.mean([each[place] for each, place in zip(drawn, places, strict=True)], axis=0)
    return found


def _rows(tables: dict[str, dict[str, Any]], label: str) -> dict[str, Row]:
    """The lines of a method, by stream."""
    return {name: row for name, table in tables.items() for row in table["rows"] if row["label"] == label}


def _over(rows: dict[str, Row]) -> Row:
    """One line of those of all streams."""
    every = list(rows.values())
    peaks = [row["peak_memory_bytes"] for row in every]
    return {
        **{key: every[0][key] for key in SAME},
        "runs": sum(row["runs"] for row in every),
        "planned": sum(row["planned"] for row in every),
        "problem": next((f"{name}: {row['problem']}" for name, row in rows.items() if row["problem"]), ""),
        **{key: _mean(rows, key) for key in MEAN},
        "peak_memory_bytes": None if None in peaks else max(peaks),
        "identity": "; ".join(dict.fromkeys(row["identity"] for row in every if row["identity"])),
        "folders": [], "curves": [], "inside": [],
        **{f"on {name}": row["average_accuracy"] for name, row in rows.items()},
    }  # fmt: skip


def _mean(rows: dict[str, Row], key: str) -> float | None:
    values = [row[key] for row in rows.values()]
    return None if None in values else float(np.mean(values))
