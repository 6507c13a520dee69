"""Small streams that tiny models learn in a second."""

import json
import random
from dataclasses import replace

import numpy as np
import yaml

from lifelong.core.stream import Budget, EvalSet, Optimization, Stage, Stream
from lifelong.metrics.accuracy import Accuracy
from lifelong.metrics.perplexity import Perplexity
from lifelong.objectives.causal_lm import CausalLm
from lifelong.objectives.classification import Classification
from lifelong.schedules.constant import Constant

WORDS = {"sky": ("sun moon star cloud rain", "sea fish wave salt sand"),
         "farm": ("hen barn wheat plough mud", "jazz opera drum choir flute"),
         "city": ("tram tower bridge lamp street", "moss fern pine oak birch")}  # fmt: skip


def rows(name, count, seed, vision=False):
    """`count` rows whose label follows from their words (or from the brighter half of an image)."""
    draw = random.Random(f"{name}{seed}")
    made = []
    for i in range(count):
        side = i % 2
        label = f"{name}{side}"
        if vision:
            image = np.random.default_rng([seed, i, len(name)]).integers(0, 100, (16, 16, 3), dtype=np.uint8)
            image[:, side * 8 : side * 8 + 8] += 100
            made.append({"image": image, "label": label})
        else:
            words = draw.choices(WORDS[name][side].split(), k=draw.randint(2, 4))
            made.append({"text": " ".join(words), "label": label, "__source__": f"{name}.jsonl:{i + 1}"})
    return made


def stream(
    vision=False, stages=("sky", "farm"), count=12, objective=None, general=True, budget=None, **settings
):
    objective = objective or Classification()
    settings = {"learning_rate": 3e-3, "batch_size": 4, "schedule": Constant()} | settings
    made = []
    for name in stages:
        labels = (f"{name}0", f"{name}1")
        judge = EvalSet(
            name=name, rows=rows(name, 6, 1, vision), objective=objective, metric=Accuracy(), labels=labels
        )
        made.append(
            Stage(
                name=name,
                rows=rows(name, count, 0, vision),
                evals=(judge,),
                objective=objective,
                labels=labels,
                budget=budget or Budget(epochs=1),
                optimization=Optimization(**settings),
            )
        )
    held = ()
    if general and not vision:
        text = [{"text": row["text"]} for row in rows("city", 4, 2)]
        held = (EvalSet(name="prose", rows=text, objective=CausalLm(), metric=Perplexity()),)
    return Stream(stages=tuple(made), general=held)


def text_stream(count=12, **settings):
    """Continual pretraining on two kinds of words."""
    made = stream(count=count, objective=CausalLm(block_size=32), **settings)
    stages = []
    for stage in made.stages:
        judge = replace(stage.evals[0], metric=Perplexity(), labels=())
        stages.append(replace(stage, evals=(judge,), labels=()))
    return replace(made, stages=tuple(stages))


def project(folder, model, names=("sky", "farm"), count=12, **settings):
    """A folder as a user has it: stream.yaml and data files, for a model that is saved elsewhere."""
    for name in names:
        for part, number, seed in (("train", count, 0), ("test", 6, 1)):
            write_rows(folder / f"{name}.{part}.jsonl", rows(name, number, seed))
    write_rows(folder / "prose.jsonl", [{"text": row["text"]} for row in rows("city", 4, 2)])
    content = {
        "name": "small",
        "model": str(model),
        "output": "out",
        "method": "sequential",
        "precision": "float32",
        "defaults": {"epochs": 1, "batch_size": 4, "learning_rate": 3e-3},
        "stages": [{"name": n, "train": f"{n}.train.jsonl", "eval": f"{n}.test.jsonl"} for n in names],
        "general": [{"name": "prose", "data": "prose.jsonl"}],
    }
    (folder / "stream.yaml").write_text(yaml.safe_dump(content | settings, sort_keys=False))
    return folder


def write_rows(path, made):
    plain = ({key: value for key, value in row.items() if key != "__source__"} for row in made)
    path.write_text("".join(json.dumps(row) + "\n" for row in plain))
