"""Searches the settings of a bench on its tuning stream and freezes what did best there (`streams.tuning`).

    score   final average accuracy on the tuning stream, mean over its orders and seeds
    best    the highest score; of equal ones the fewest tokens trained, then the fewest bytes kept, then the
            first in the search
    cost    seconds of training and judging, summed over the runs of all trials

The reported stream is read once, to see that it is another one; no model trains on it or is judged by it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lifelong import bench as benches
from lifelong.errors import UserError
from lifelong.report import compare
from lifelong.store.run import read_run
from lifelong.streams import apart
from lifelong.streams.bench_cells import Cell
from lifelong.streams.bench_file import Bench
from lifelong.streams.tuning import Trial, Tuning, freeze

Found = dict[str, Any]


def check(bench: Bench) -> None:
    """Raise UserError where settings cannot be searched for this bench, or must not."""
    if bench.tuning is None:
        raise UserError(
            "nothing to tune: the bench file has no `tune`, which names another stream and what is searched."
        )
    benches.check(bench, made=False)  # what is finished has the settings that were frozen before


def run(bench: Bench, listen: Callable[[benches.Told], None] = lambda told: None) -> Tuning:
    """Make the runs that are not finished, and freeze the best settings of every method. `bench` is read
    without those that were frozen before.
    """
    check(bench)
    searching = benches.searching(bench)
    benches.run(searching, listen)
    chosen = {label: chosen_for(bench.tuning, label) for label in bench.tuning.labels}
    found = bench.tuning._replace(chosen=chosen, rows=apart.identity(benches.streams_of(searching)))
    freeze(found)
    return found


def chosen_for(tuning: Tuning, label: str) -> Found:
    """What the file says of a method: its best settings, and all that were tried."""
    tried = [_result(trial) for trial in tuning.of(label)]
    place = best(tried)
    if place is None:
        raise UserError(
            f"{label}: none of its {len(tried)} trials was finished, so nothing is frozen. The first one: "
            f"{tried[0]['problem']}"
        )
    keep = ("changes", "score", "seconds", "runs", "problem")
    return {
        "changes": tried[place]["changes"],
        "score": tried[place]["score"],
        "runs": sum(each["runs"] for each in tried),
        "seconds": round(sum(each["seconds"] for each in tried), 3),
        "search": tuning.digest(label),
        "trials": [{key: each[key] for key in keep if each[key] != ""} for each in tried],
    }


def best(tried: list[Found]) -> int | None:
    """Place of the trial that is chosen; None where none has a score."""
    places = [i for i, each in enumerate(tried) if each["score"] is not None]
    return max(
        places,
        key=lambda i: (tried[i]["score"], -tried[i]["tokens"], -tried[i]["kept_bytes"], -i),
        default=None,
    )


def _result(trial: Trial) -> Found:
    """Score and cost of a trial; it has no score unless all its runs were finished."""
    done = [_figures(cell.folder) for cell in trial.cells if benches.finished(cell)]
    scores = [each["score"] for each in done]
    whole = len(done) == len(trial.cells) and None not in scores
    return {
        "changes": list(trial.changes),
        "score": round(float(np.mean(scores)), 9) if whole else None,
        "seconds": round(sum(each["seconds"] for each in done), 3),
        "runs": len(done),
        "tokens": sum(each["tokens"] for each in done),
        "kept_bytes": sum(each["kept_bytes"] for each in done),
        "problem": "" if whole else _problem(trial.cells),
    }


def _figures(folder: Path) -> dict[str, Any]:
    run = read_run(folder)
    costs = run["costs"]
    return {
        "score": compare.metrics(run)["average_accuracy"]["value"],
        "seconds": sum(cost["seconds"] + cost.get("evaluation_seconds", 0.0) for cost in costs),
        "tokens": sum(cost["tokens"] for cost in costs),
        "kept_bytes": compare.kept_bytes(run),
    }


def _problem(cells: tuple[Cell, ...]) -> str:
    told = next(filter(None, map(benches.problem_of, cells)), "its runs define no average accuracy")
    return told.strip().splitlines()[-1]
