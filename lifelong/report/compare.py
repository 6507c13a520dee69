"""The comparison at the top: runs of one method with other seeds or orders form one line."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Run = dict[str, Any]
RATIOS = ("general_ability",)  # shares of what was there before: percent whatever the tasks are judged by
BOUNDS = {"joint": "upper", "per_task": "separate"}  # by what becomes of the stream
NAIVE = ("sequential", "naive", "full", "lora")  # plain training, by name


@dataclass(frozen=True)
class Spread:
    """A figure over the runs of a group."""

    mean: float
    low: float
    high: float


@dataclass(kw_only=True)
class Group:
    label: str
    runs: list[Run]
    bound: str  # "lower" (naive), "upper" (joint), "separate" (one model per task) or ""
    finished: bool

    @property
    def num_seeds(self) -> int:
        return len(self.runs)

    def metric(self, name: str) -> Spread | None:
        """None unless every run of the group has the figure."""
        return spread([metrics(run).get(name, {}).get("value") for run in self.runs])

    def half_width(self) -> float | None:
        """Half the 95% interval of one run's average accuracy, from the intervals of its sets, which
        are independent: sqrt(sum of squared half-widths) / sets. None for several runs.
        """
        if len(self.runs) > 1 or not self.runs[0]["evaluations"]:
            return None
        run = self.runs[0]
        known = [s for s in run["evaluations"][-1]["sets"] if s["name"] in columns(run)]
        sets = [s for s in known if s["unit"] == "%" and s["name"] not in erased(run)]
        if not finished(run) or not sets or any(s["low"] is None or s["high"] is None for s in sets):
            return None
        return math.sqrt(sum(((s["high"] - s["low"]) / 2) ** 2 for s in sets)) / len(sets)

    def seconds(self) -> Spread | None:
        return spread([sum(c["seconds"] for c in r["costs"]) if r["costs"] else None for r in self.runs])

    def peak_memory(self) -> float | None:
        peaks = [c.get("peak_memory_bytes") for r in self.runs for c in r["costs"]]
        return max((p for p in peaks if p is not None), default=None)


def spread(values: Sequence[float | None]) -> Spread | None:
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return None
    return Spread(math.fsum(known) / len(known), min(known), max(known))


def metrics(run: Run) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in run["summary"].get("metrics", ())}


def kept_bytes(run: Run) -> float:
    """Kept for the past after the last stage, by methods and memories."""
    last = run["costs"][-1]
    return last["state_bytes"] + last["memory_bytes"]


def finished(run: Run) -> bool:
    return bool(run["summary"].get("finished"))


def is_percent(run: Run) -> bool:
    """Whether every task is judged by a share in [0, 1]."""
    return all(s["unit"] == "%" for row in run["evaluations"] for s in row["sets"] if not s["general"])


class Scale(NamedTuple):
    """What a cell of the accuracy matrix is."""

    word: str  # accuracy, the name of another metric that judges all tasks, or score where several do
    percent: bool
    unit: str  # of a figure; may be empty
    apart: str  # of a difference


WORDS = {"perplexity": "log-likelihood", "exact_match": "exact match", "rouge_l": "ROUGE-L"}


def scale_of(runs: Sequence[Run]) -> Scale:
    """Of runs that stand in one table."""
    every = [s for run in runs for row in run["evaluations"] for s in row["sets"] if not s["general"]]
    names = list(dict.fromkeys(s["metric"] for s in every)) or ["accuracy"]
    word = WORDS.get(names[0], names[0]) if len(names) == 1 else "score"
    if all(is_percent(run) for run in runs):
        return Scale(word, True, "%", "points")
    unit = "nats per token" if names == ["perplexity"] else ""
    return Scale(word, False, unit, unit)


def columns(run: Run) -> list[str]:
    return list((run["summary"].get("matrix") or {}).get("columns", ()))


def erased(run: Run) -> list[str]:
    """Columns that the final model was to forget."""
    matrix = run["summary"].get("matrix") or {"columns": (), "erased": ()}
    pairs = zip(matrix["columns"], matrix["erased"], strict=False)
    return [name for name, row in pairs if row is not None and row < len(matrix["values"])]


def bound_of(run: Run) -> str:
    """What the run is a yardstick for; empty for a method under test."""
    config = run["config"]
    return BOUNDS.get(config["stream"], "lower" if config["method_name"] in NAIVE else "")


def num_rows(run: Run) -> int:
    """Evaluations planned after the untrained one; separate models are judged once, together."""
    return 1 if run["config"]["stream"] == "per_task" else len(run["config"]["stages"])


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Best average accuracy first; groups without one last."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_key(run), []).append(run)
    labels = _labels([members[0] for members in found.values()])
    groups = [
        Group(label=label, runs=members, bound=bound_of(members[0]), finished=finished(members[0]))
        for label, members in zip(labels, found.values(), strict=True)
    ]

    def rank(group: Group) -> tuple[bool, bool, float]:
        average = group.metric("average_accuracy")
        return average is None, not group.finished, -average.mean if average else 0.0

    return sorted(groups, key=rank)


def _key(run: Run) -> str:
    """Equal for runs that differ only in seed, order of the stages, name and folder. A run that has
    not ended is no seed of one that has: its average is over fewer tasks.
    """
    config = run["config"]
    stages = sorted(json.dumps(stage, sort_keys=True) for stage in config["stages"])
    same = (
        config["method_name"],
        config["stream"],
        config["methods"],
        config["model"],
        stages,
        finished(run),
        columns(run) == [],
    )
    return json.dumps(same, sort_keys=True)


def _labels(firsts: Sequence[Run]) -> list[str]:
    """Names of methods; where two groups share one, the settings that tell them apart follow."""
    labels = []
    for run in firsts:
        name = run["config"]["method_name"]
        others = [r for r in firsts if r is not run and r["config"]["method_name"] == name]
        mine = _settings(run)
        telling = [k for k in mine if any(_settings(o).get(k) != mine[k] for o in others)]
        extra = ", ".join(f"{key} {mine[key]}" for key in telling)
        labels.append(f"{name} ({extra})" if extra else name)
    repeated = {label for label in labels if labels.count(label) > 1}
    return [
        f"{label}, {Path(run['folder']).name}" if label in repeated else label
        for label, run in zip(labels, firsts, strict=True)
    ]


def _settings(run: Run) -> dict[str, Any]:
    """By the name of the setting; of two methods with a like-named setting, by method.setting."""
    pairs = [
        (m["name"], key, value) for m in run["config"]["methods"] for key, value in m["settings"].items()
    ]
    keys = [key for _, key, _ in pairs]
    return {key if keys.count(key) == 1 else f"{name}.{key}": value for name, key, value in pairs}
