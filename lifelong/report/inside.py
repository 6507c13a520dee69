"""What diagnostics saw in the models of a bench, beside their accuracy: a table, and all numbers as CSV.

Figures are those after the last stage. The table has few of each diagnostic (`Diagnostic.brief`), as means
over runs.
"""

import csv
import io
from typing import Any

from lifelong.report import formats
from lifelong.report.compare import spread

Key = tuple[str, str]  # diagnostic, figure


def _keys(standings: dict[str, Any]) -> dict[Key, str]:
    """Those that any run has, with what they are called."""
    found: dict[Key, str] = {}
    for row in standings["rows"]:
        for run in row["inside"]:
            for name, about in run["found"].items():
                arrow = {"higher": ", more is better", "lower": ", less is better"}.get(about["better"], "")
                for figure in about["brief"]:
                    found[name, figure] = f"{name}: {figure.replace('_', ' ')}{arrow}"
    return found


def table(standings: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows), best method first; no rows where no run was looked into. A dash where one of a method's
    runs lacks the figure: bounds are not always asked.
    """
    keys, rows = _keys(standings), []
    for row in standings["rows"] if keys else ():
        texts = []
        for name, figure in keys:
            values = [run["found"].get(name, {"brief": {}})["brief"].get(figure) for run in row["inside"]]
            found = spread(values)
            texts.append(formats.number(found and found.mean, 3))
        rows.append([row["label"], formats.score(row["average_accuracy"], standings["percent"]), *texts])
    return ["method", f"average {standings['word']}", *keys.values()], rows


def as_csv(standings: dict[str, Any]) -> str:
    """A line for every run and figure, those of single tasks and layers included."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "order", "seed", "diagnostic", "figure", "value"])
    for row in standings["rows"]:
        for run in row["inside"]:
            for name, about in run["found"].items():
                for figure, value in about["figures"].items():
                    writer.writerow([row["label"], run["order"], run["seed"], name, figure, value])
    return text.getvalue()
