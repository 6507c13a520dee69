"""Small streams in which a stage erases, as objects and as files."""

from dataclasses import replace

import tiny_stream

from lifelong.core.stream import Budget, Erasure, Stage, Stream


def erase_stage(target, places, name="forget", others=(), budget=None):
    """A stage that erases the rows of `target` at `places`."""
    return Stage(
        name=name,
        rows=[*(target.rows[i] for i in places), *others],
        evals=(),
        objective=target.objective,
        budget=budget or Budget(epochs=1),
        optimization=target.optimization,
        erases=Erasure(stage=target.name, places=tuple(places)),
    )


def stream(places=(0, 2, 4, 6, 8, 10), stages=("sky", "farm"), at=2, erase_budget=None, **settings):
    """The tiny stream with a stage that erases rows of `sky` (by default those of label sky0) put in at
    `at`; the evaluation rows of sky0 have a column of their own.
    """
    made = tiny_stream.stream(stages=stages, general=False, **settings)
    sky, *rest = made.stages
    (judge,) = sky.evals
    kept, gone = ([r for r in judge.rows if (r["label"] == "sky0") == which] for which in (False, True))
    gone_set = replace(judge, name="sky.forget", rows=gone, erased_by="forget")
    sky = replace(sky, evals=(replace(judge, rows=kept), gone_set))
    learned = [sky, *rest]
    return Stream(stages=(*learned[:at], erase_stage(sky, places, budget=erase_budget), *learned[at:]))


def files(folder, *erasures, names=("sky", "farm"), **settings):
    """A stream file with erase stages at its end; the rows of each stage alternate between two labels."""
    project = tiny_stream.project(folder, "model", names, **settings)
    stages = [{"name": n, "train": f"{n}.train.jsonl", "eval": f"{n}.test.jsonl"} for n in names]
    return {
        "name": "small", "model": "model", "method": "sequential", "precision": "float32",
        "defaults": {"epochs": 1, "batch_size": 4}, "stages": [*stages, *erasures],
    }, project  # fmt: skip
