"""Run dicts as `read_run` gives them, made of made-up but consistent numbers."""

import math
import random

from lifelong.core.axes import MatrixMetric
from lifelong.core.discover import load, names
from lifelong.core.matrix import AccuracyMatrix, GeneralSet

TASKS = ("reviews", "spam or not", "whose sentence", "which century", "intent")
VISIBLE = (
    "Each row was answered among the labels of its own task: the task's identity was visible at test time."
)
SETTINGS = {"sequential": {}, "joint": {}, "ewc": {"strength": 10.0}, "reservoir": {"size": 200}}


def table(method, num_tasks, generator):
    """(untrained row, rows after each stage): scores of tasks taught one after another."""
    keep = {"sequential": 0.72, "ewc": 0.85, "reservoir": 0.95}[method]
    peak = [0.91, 0.97, 0.84, 0.78, 0.93, 0.88, 0.8][:num_tasks]
    untrained = [0.5, 0.48, 0.34, 0.21, 0.09, 0.3, 0.2][:num_tasks]
    rows, now = [], list(untrained)
    for stage in range(num_tasks):
        now = [
            u + (a - u) * (keep if i < stage else 1.0)
            for i, (a, u) in enumerate(zip(now, untrained, strict=True))
        ]
        now[stage] = peak[stage] - (0.03 if method == "ewc" else 0.0)
        now = [round(200 * min(a + generator.uniform(-0.02, 0.02), 1)) / 200 for a in now]
        rows.append(list(now))
    return untrained, rows


def run(method="sequential", seed=0, num_tasks=5, done=None, tasks=TASKS, steps=240, settings=None):
    """`done` stages of `num_tasks`; joint training has one stage that teaches all tasks."""
    generator = random.Random(f"{method} {seed}")
    tasks = [*tasks[:num_tasks]]
    joint = method == "joint"
    if joint:
        untrained, rows = table("reservoir", num_tasks, generator)
        rows = [[a + 0.02 for a in rows[-1]]]
        stage_names = ["joint"]
    else:
        untrained, rows = table(method, num_tasks, generator)
        stage_names = tasks
    rows = rows[: len(rows) if done is None else done]
    general = {
        "arithmetic": (
            "Accuracy",
            "%",
            "higher",
            [0.42] + [0.42 - 0.03 * k for k in range(1, len(rows) + 1)],
        ),
        "old prose": ("Perplexity", "", "lower", [14.2] + [14.2 + 0.9 * k for k in range(1, len(rows) + 1)]),
    }
    matrix = AccuracyMatrix(
        columns=tuple(tasks),
        values=tuple(map(tuple, rows)),
        taught=(0,) * num_tasks if joint else tuple(range(num_tasks)),
        sizes=(200,) * num_tasks,
        units=("%",) * num_tasks,
        untrained=tuple(untrained),
        general=tuple(
            GeneralSet(name=n, metric=m, better=b, values=tuple(v)) for n, (m, _, b, v) in general.items()
        ),
    )
    return {
        "folder": f"runs/{method}-{seed}",
        "config": {
            "name": "five small tasks",
            "seed": seed,
            "stream": "joint" if joint else "sequence",
            "method_name": method,
            "methods": [
                {"axis": "tuners", "name": "lora", "settings": {"rank": 8}},
                {"axis": "penalties", "name": method, "settings": settings or SETTINGS[method]},
            ],
            "model": {
                "name": "SmolLM2-135M-Instruct",
                "kind": "causal",
                "parameters": 134515008,
                "fingerprint": "f00d",
            },
            "stages": [
                {
                    "name": n,
                    "num_rows": 600,
                    "num_eval_rows": 200,
                    "objective": "instructions",
                    "budget": {"epochs": 1},
                }
                for n in stage_names
            ],
            "candidates": "task",
            "precision": "float32",
        },
        "environment": {"python": "3.12", "torch": "2.13", "device": "cpu", "threads": 4},
        "log": [entry for k in range(len(rows)) for entry in log(k, steps, method, generator)],
        "evaluations": evaluations(tasks, stage_names, [untrained, *rows], general),
        "costs": [cost(n, k, method) for k, n in enumerate(stage_names[: len(rows)], start=1)],
        "summary": {
            "matrix": matrix.to_dict(),
            "metrics": metrics(matrix),
            "visible": VISIBLE,
            "finished": len(rows) == len(stage_names),
        },
    }


def metrics(matrix):
    classes = {name: load(name, "metrics") for name in names("metrics")}
    return [
        {"id": name, "title": c.title, "value": c().value(matrix), "formula": c.formula, "better": c.better}
        for name, c in classes.items()
        if issubclass(c, MatrixMetric)
    ]


def log(stage, steps, method, generator):
    for step in range(steps):
        loss = (
            0.3
            + 2.2 * math.exp(-step / (0.2 * steps)) * generator.uniform(0.8, 1.2)
            + generator.uniform(0, 0.25)
        )
        penalties = {"ewc": 0.1 * stage * step / steps} if method == "ewc" and stage else {}
        yield {"stage": stage, "step": step, "loss": loss, "penalties": penalties, "learning_rate": 1e-3,
               "tokens": 900, "seconds": 0.4}  # fmt: skip


def evaluations(tasks, stage_names, rows, general):
    found = []
    for k, row in enumerate(rows):
        sets = [
            {"name": n, "task": i, "general": False, "metric": "Accuracy", "unit": "%", "value": a,
             "benefit": a, "count": 200, "low": max(a - 0.06, 0), "high": min(a + 0.05, 1)}
            for i, (n, a) in enumerate(zip(tasks, row, strict=True))
        ]  # fmt: skip
        for n, (metric, unit, better, values) in general.items():
            v = values[k]
            benefit = -math.log(v) if better == "lower" else v
            sets.append(
                {"name": n, "task": None, "general": True, "metric": metric, "unit": unit, "value": v,
                 "benefit": benefit, "count": 100, "low": 0.95 * v, "high": 1.05 * v}
            )  # fmt: skip
        found.append({"stage": stage_names[k - 1] if k else None, "sets": sets})
    return found


def cost(name, number, method):
    return {
        "name": name, "seconds": 96.0 + number, "evaluation_seconds": 21.5, "tokens": 216000,
        "pad_tokens": 9500, "truncated_rows": 3, "steps": 240, "tokens_per_second": 2220.0,
        "peak_memory_bytes": 1_900_000_000 + 4_000_000 * number,
        "state_bytes": 1_843_200 * number, "memory_bytes": 120_000 * number if method == "reservoir" else 0,
    }  # fmt: skip


def family(seeds=(0, 1)):
    """Six runs: two methods with two seeds, and both bounds."""
    found = [run(method, seed) for method in ("reservoir", "ewc") for seed in seeds]
    return [*found, run("sequential"), run("joint")]
