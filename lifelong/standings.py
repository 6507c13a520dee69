"""What a bench says: one line per method over its seeds and orders, with intervals.

average accuracy   mean over tasks at the end, mean over runs; 95 % interval over runs and rows
difference         to sequential training, on the same runs and rows: a paired interval
rank               mean over runs of the rank by average accuracy, 1 is best
tied               the paired interval of the difference to the best method holds 0
time               seconds of training in units of sequential training's in the same run
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lifelong import bench as benches
from lifelong.core.matrix import AccuracyMatrix, mean
from lifelong.numerics.crossed import interval, ranks, resampled_means
from lifelong.report import compare
from lifelong.store.run import read_run
from lifelong.streams.bench_cells import Cell
from lifelong.streams.bench_file import BOUNDS, Bench
from lifelong.streams.benchmark import written
from lifelong.streams.tuning import PROTOCOL, Tuning

SEED = 0  # of the resamples
NAIVE = "sequential"
METRICS = (
    "average_accuracy", "forgetting", "backward_transfer", "learning_accuracy", "general_ability",
    "erased_accuracy", "erasure_gap",
)  # fmt: skip
Run = dict[str, Any]
Means = dict[str, np.ndarray | None]  # (B,) resampled means of average accuracy, by method


class Judged(NamedTuple):
    """The runs of a bench on one stream, by method."""

    cells: dict[str, list[Cell]]
    runs: dict[str, list[Run]]  # those that are finished
    means: Means  # None where a run is missing


def judged(bench: Bench) -> Judged:
    labels = list(dict.fromkeys(cell.label for cell in bench.cells))
    cells = {label: [cell for cell in bench.cells if cell.label == label] for label in labels}
    runs = {label: _runs(cells[label]) for label in labels}
    tables = {label: _tables(cells[label], found) for label, found in runs.items()}
    return Judged(cells, runs, _means(tables))


def _means(tables: "dict[str, Tables | None]") -> Means:
    """Methods that are judged on the same sets share the draws."""
    found: Means = dict.fromkeys(tables)
    alike: dict[Any, list[str]] = {}
    for label, each in tables.items():
        if each is not None:
            key = tuple(table.shape for table in each.scores), tuple(w is None for w in each.weights)
            alike.setdefault(key, []).append(label)
    for labels in alike.values():
        scores = [np.stack(sets) for sets in zip(*(tables[label].scores for label in labels), strict=True)]
        made = resampled_means(scores, SEED, weights=tables[labels[0]].weights)
        found |= dict(zip(labels, made, strict=True))
    return found


def of(bench: Bench, known: Judged | None = None) -> dict[str, Any]:
    """Of a bench on one stream. Plain values: `rows` by average accuracy, best first, what failed last."""
    cells, runs, means = known or judged(bench)
    values = {label: _mean(found, "average_accuracy") for label, found in runs.items()}
    best = best_of(values, means)
    placed, told = _ranks(runs), [run for found in runs.values() for run in found]
    plans = {run["order"]: _matrix(run) for run in told if run["config"]["stream"] == "sequence"}
    rows = [
        {
            "label": label,
            "bound": label in BOUNDS,
            "runs": len(runs[label]),
            "planned": len(cells[label]),
            "problem": next(filter(None, map(benches.problem_of, cells[label])), ""),
            **_of_each(runs[label], plans),
            **{name: _mean(runs[label], name) for name in METRICS},
            "interval": None if means[label] is None else interval(means[label]),
            "difference": difference(label, NAIVE, values, means),
            "tied": is_tied(label, best, values, means),
            "rank": placed.get(label),
            **_cost(label, runs),
            **_tuned(bench.tuning, label),
            "identity": _identity(runs[label], told),
        }
        for label in cells
    ]
    return {
        "name": bench.settings.name, "rows": sorted(rows, key=by_accuracy), "tuning": _tuning(bench.tuning),
        "visible": list(dict.fromkeys(run["summary"]["visible"] for run in told)),
        "seeds": list(bench.settings.seeds), "orders": 1 + max(cell.order for cell in bench.cells),
        **compare.scale_of(told)._asdict(), "streams": {},
    }  # fmt: skip


def _of_each(runs: Sequence[Run], plans: dict[int, AccuracyMatrix]) -> dict[str, list[Any]]:
    """What is told run by run."""
    return {
        "folders": [str(run["folder"]) for run in runs],
        "curves": [curve(run, plans) for run in runs],
        "inside": [looked(run) for run in runs],
    }


def _tuning(tuning: Tuning | None) -> dict[str, Any] | None:
    """The stream on which settings were chosen, and what it cost; None where none were searched."""
    if tuning is None:
        return None
    cells = [cell for trial in tuning.trials for cell in trial.cells]
    chosen, found = cells[0].chosen, tuning.chosen.values()
    stages = [stage.name for stage in chosen.listed] or [_called(written(chosen.named))]
    return {
        "protocol": PROTOCOL, "file": str(tuning.file), "stages": stages,
        "seeds": len({cell.seed for cell in cells}), "orders": 1 + max(cell.order for cell in cells),
        "runs": sum(each["runs"] for each in found), "seconds": sum(each["seconds"] for each in found),
    }  # fmt: skip


def _called(named: dict[str, dict[str, Any]]) -> str:
    """A named stream with its settings, but for where its files lie."""
    ((name, about),) = named.items()
    return f"{name} {json.dumps({key: value for key, value in about.items() if key != 'path'})}"


def _tuned(tuning: Tuning | None, label: str) -> dict[str, Any]:
    """The settings that were chosen for a method, and how."""
    found = tuning.chosen.get(label) if tuning else None
    if found is None:
        return {"settings": "", "tuning_score": None, "trials": 0, "tuning_runs": 0, "tuning_seconds": 0.0}
    return {
        "settings": ", ".join(found["changes"]), "tuning_score": found["score"],
        "trials": len(found["trials"]), "tuning_runs": found["runs"], "tuning_seconds": found["seconds"],
    }  # fmt: skip


def _identity(runs: Sequence[Run], every: Sequence[Run]) -> str:
    """Could an answer use which task its row is of? `every` run is of the same stages; joined ones do not
    tell how each task is asked.
    """
    if not runs:
        return ""
    if runs[0]["config"]["stream"] == "per_task":
        return "visible: a model of its own"
    apart = next((run for run in every if run["config"]["stream"] != "joint"), runs[0])
    stages = [stage for stage in apart["config"]["stages"] if not stage["erases"]]
    if runs[0]["config"]["candidates"] == "task" and len({tuple(stage["labels"]) for stage in stages}) > 1:
        return "visible: labels of the task"
    if not all(stage["labels"] for stage in stages):
        return "as the prompts tell"  # free text
    asked = {json.dumps(stage["objective"], sort_keys=True) for stage in stages}
    return "hidden" if len(asked) == 1 else "visible: wording of the prompt"


def _runs(cells: Sequence[Cell]) -> list[Run]:
    """Finished runs in the order of their cells; an unfinished one leaves a method incomplete."""
    return [read_run(cell.folder) | {"order": cell.order} for cell in cells if benches.finished(cell)]


def _matrix(run: Run) -> AccuracyMatrix:
    return AccuracyMatrix.from_dict(run["summary"]["matrix"])


def curve(run: Run, plans: dict[int, AccuracyMatrix]) -> dict[str, Any]:
    """Scores after each stage: of every task from the stage that taught it on, and the average over the tasks
    taught so far and not erased. A bound is judged once: at the end of its order, whose plan says when a task
    comes. Stages and places count from 1.
    """
    matrix = _matrix(run)
    plan = matrix if run["config"]["stream"] == "sequence" else plans.get(run["order"], matrix)
    stages = range(1 + len(plan.values) - len(matrix.values), 1 + len(plan.values))
    places = dict(zip(plan.columns, plan.taught, strict=True))
    tasks = [
        {
            "name": name,
            "place": 1 + places.get(name, taught),
            "erased": next((stage for k, stage in enumerate(stages) if i in matrix.gone(k)), None),
            "values": [row[i] if k >= taught else None for k, row in enumerate(matrix.values)],
        }
        for i, (name, taught) in enumerate(zip(matrix.columns, matrix.taught, strict=True))
    ]
    average = [mean(row[i] for i in matrix.known(k)) for k, row in enumerate(matrix.values)]
    return {
        "order": run["order"], "seed": run["config"]["seed"], "stages": list(stages),
        "average": average, "tasks": tasks,
    }  # fmt: skip


def looked(run: Run) -> dict[str, Any]:
    """What diagnostics said after the last stage, by their ids; none where the run has none. A run from
    before there were brief figures shows all.
    """
    last = (run.get("diagnostics") or [{"diagnostics": []}])[-1]["diagnostics"]
    found = {
        each["id"]: {
            "better": each["better"], "figures": each["figures"], "brief": each.get("brief", each["figures"])
        }
        for each in last
    }  # fmt: skip
    return {"order": run["order"], "seed": run["config"]["seed"], "found": found}


def _metric(run: Run, name: str) -> float | None:
    return compare.metrics(run).get(name, {}).get("value")


def _mean(runs: Sequence[Run], name: str) -> float | None:
    found = compare.spread([_metric(run, name) for run in runs])
    return None if found is None else found.mean


class Tables(NamedTuple):
    """Final scores of the evaluation set of every task that was not erased, in the order of their names."""

    scores: list[np.ndarray]  # (S, R) each
    weights: list[np.ndarray | None]  # (R,) each, None where rows weigh alike


def _tables(cells: Sequence[Cell], runs: Sequence[Run]) -> Tables | None:
    """None where a run is missing, or a figure is no mean over rows."""
    if len(runs) < len(cells):
        return None
    scores: dict[str, list[np.ndarray]] = {}
    weights: dict[str, np.ndarray | None] = {}
    for run in runs:
        gone = compare.erased(run)
        sets = [s for s in run["evaluations"][-1]["sets"] if not s["general"] and s["name"] not in gone]
        rows = _scores(run, [each["name"] for each in sets])
        for each in sets:
            name, told = each["name"], np.asarray(rows[each["name"]])  # (R, 2)
            weighs = _weighs(told, each["benefit"])
            if weighs is None:
                return None
            scores.setdefault(name, []).append(told[:, 0])
            weights[name] = told[:, 1] if weighs else None
    names = sorted(scores)
    return Tables([np.asarray(scores[name]) for name in names], [weights[name] for name in names])


def _weighs(told: np.ndarray, benefit: float) -> bool | None:
    """Is the figure of a set the mean of its rows' scores by their tokens, as perplexity's is, or the plain
    mean? None: neither. `told` has score and tokens of each row.
    """
    if not len(told) or np.isnan(told).any():
        return None
    if math.isclose(told[:, 0].mean(), benefit, rel_tol=1e-6, abs_tol=1e-9):
        return False
    known = (told[:, 1] > 0).all() and math.isclose(
        np.average(told[:, 0], weights=told[:, 1]), benefit, rel_tol=1e-6, abs_tol=1e-9
    )
    return True if known else None


def _scores(run: Run, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """(score, tokens) of every row after the last stage, in the order of the rows; not a number where a row
    has none. A run of separate models keeps them in the run of each task.
    """
    folder, found = Path(run["folder"]), {name: [] for name in names}
    parts = sorted((folder / "per_task").glob("*")) if run["config"]["stream"] == "per_task" else [folder]
    for part in parts:
        stage = sorted((part / "stages").glob("[0-9]*-*"))[-1]
        own = {each["name"] for each in json.loads((stage / "evaluation.json").read_text())["sets"]}
        for line in (stage / "answers.jsonl").read_text(encoding="utf-8").splitlines():
            answer = json.loads(line)
            if answer["set"] in found and answer["set"] in own:
                pair = float(answer.get("score", math.nan)), float(answer.get("tokens", 1))
                found[answer["set"]].append(pair)
    return found


def by_accuracy(row: dict[str, Any]) -> tuple[bool, float]:
    """Key by which rows of a table are sorted."""
    return row["average_accuracy"] is None, -(row["average_accuracy"] or 0)


def best_of(values: dict[str, float | None], means: Means) -> str | None:
    """The method of the highest average accuracy; bounds are none."""
    known = [label for label in values if means[label] is not None and label not in BOUNDS]
    return max(known, key=values.get, default=None)


def difference(
    label: str, other: str | None, values: dict[str, float | None], means: Means
) -> dict[str, float] | None:
    """Of average accuracy (`values`) to `other`'s, paired over runs and rows."""
    if label == other or other is None or means.get(label) is None or means.get(other) is None:
        return None
    low, high = interval(means[label] - means[other])
    return {"value": values[label] - values[other], "low": low, "high": high}


def is_tied(label: str, best: str | None, values: dict[str, float | None], means: Means) -> bool:
    """Can it not be told from the best method? No bound can be tied."""
    if label == best or label in BOUNDS:
        return label == best
    apart = difference(label, best, values, means)
    return apart is not None and apart["high"] >= 0


def _ranks(runs: dict[str, list[Run]]) -> dict[str, float]:
    """Mean rank of every complete method that is no bound."""
    most = max((len(found) for found in runs.values()), default=0)
    known = {
        label: [_metric(run, "average_accuracy") for run in found]
        for label, found in runs.items()
        if found and len(found) == most and label not in BOUNDS
    }
    placed = [ranks([values[i] for values in known.values()]) for i in range(most)] if known else []
    return {label: float(np.mean([each[i] for each in placed])) for i, label in enumerate(known)}


def _cost(label: str, runs: dict[str, list[Run]]) -> dict[str, float | None]:
    """Mean seconds of training and of evaluation, the ratio to sequential training, peak bytes, and bytes
    kept for the past per task."""
    mine = runs[label]
    if not mine:
        return dict.fromkeys(("seconds", "evaluation_seconds", "time", "peak_memory_bytes", "kept_bytes"))

    def total(run: Run, key: str) -> float:
        return sum(cost.get(key, 0.0) for cost in run["costs"])

    plain = {_place(run): total(run, "seconds") for run in runs.get(NAIVE, ())}
    shares = [total(run, "seconds") / plain[_place(run)] for run in mine if plain.get(_place(run))]
    kept = [compare.kept_bytes(run) / max(len(run["config"]["stages"]), 1) for run in mine]
    return {
        "seconds": float(np.mean([total(run, "seconds") for run in mine])),
        "evaluation_seconds": float(np.mean([total(run, "evaluation_seconds") for run in mine])),
        "time": float(np.mean(shares)) if shares else None,
        "peak_memory_bytes": max(cost["peak_memory_bytes"] for run in mine for cost in run["costs"]),
        "kept_bytes": float(np.mean(kept)),
    }


def _place(run: Run) -> str:
    """Order and seed: the name of the folder, the same for every method."""
    return Path(run["folder"]).name
