"""The table of a bench of made-up runs, as `lifelong.standings.of` gives it."""

import random
from pathlib import Path

from lifelong.report import curves
from lifelong.report.standings import as_page


def row(label, found, folders=None):
    """A line of the table; `found` are the curves of its runs."""
    folders = folders or [f"{label}/order0-seed{seed}" for seed in range(len(found))]
    return {
        "label": label, "bound": label in ("sequential", "joint"), "runs": len(found), "planned": len(found),
        "problem": "", "folders": [str(folder) for folder in folders], "curves": found, "inside": [],
        "average_accuracy": 0.5, "forgetting": 0.1, "backward_transfer": -0.1, "learning_accuracy": 0.6,
        "general_ability": None, "erased_accuracy": None, "erasure_gap": None, "interval": (0.4, 0.6),
        "difference": None, "tied": False, "rank": 1.0, "seconds": 12.0, "evaluation_seconds": 3.0,
        "time": 1.0, "peak_memory_bytes": 2**30, "kept_bytes": 2.0**20, "settings": "", "tuning_score": None,
        "trials": 0, "tuning_runs": 0, "tuning_seconds": 0.0, "identity": "hidden",
    }  # fmt: skip


def standings(rows, percent=True):
    return {
        "name": "made", "rows": rows, "tuning": None, "visible": [], "seeds": [0, 1], "orders": 1,
        "streams": {}, "word": "accuracy", "percent": percent,
        "unit": "%" * percent, "apart": "points" * percent,
    }  # fmt: skip


def figures(rows, percent=True):
    return curves.figures(standings(rows, percent))


def page(rows):
    """The page as text."""
    return as_page(standings(rows), Path())


def many(num_methods, num_stages, num_runs, label="a method of some name {}"):
    """Lines of methods that forget a little at every stage; the first are the bounds."""
    draw = random.Random(0)
    names = ["joint", "sequential", *(label.format(i) for i in range(num_methods - 2))]
    return [
        row(name, [_curve(draw, num_stages, name == "joint", order) for order in range(num_runs)])
        | {"time": 1.0 + i, "average_accuracy": 0.9 - i / num_methods}
        for i, name in enumerate(names)
    ]


def _curve(draw, num_stages, joint, order):
    stages = [num_stages] if joint else list(range(1, num_stages + 1))
    places = draw.sample(range(num_stages), num_stages)
    tasks = [
        {
            "name": f"task {places[i]}", "place": 1 + i, "erased": None,
            "values": [None if s <= i else max(0.9 - 0.03 * (s - i) * draw.random(), 0.0) for s in stages],
        }
        for i in range(num_stages)
    ]  # fmt: skip
    rows = [[task["values"][k] for task in tasks] for k in range(len(stages))]
    average = [sum(filter(None, each)) / sum(v is not None for v in each) for each in rows]
    return {"order": order, "seed": order, "stages": stages, "average": average, "tasks": tasks}
