"""Streams on which plain training breaks a budget: 200 rows judge each of two tasks."""

from dataclasses import replace

import tiny
import tiny_stream

from lifelong import launch
from lifelong.core.engine import Settings
from lifelong.core.stream import Budget, Guard
from lifelong.tuners.full import Full


def stream(guard=None, rows=200, budget=None, **settings):
    """sky, then farm. At a rate of 3e-3 farm is learned, and sky falls from 100 % below 50 %."""
    budget = budget or Budget(epochs=3)
    settings = {"learning_rate": 3e-3} | settings
    made = tiny_stream.stream(count=60, general=False, budget=budget, **settings)
    stages = [
        replace(each, evals=(replace(each.evals[0], rows=tiny_stream.rows(each.name, rows, 1)),))
        for each in made.stages
    ]
    return replace(made, stages=tuple(stages), guard=guard)


def train(folder, guard, methods=None, notices=None, listen=None, **changes):
    def hear(event):
        if event.kind == "notice" and notices is not None:
            notices.append(event.text)
        if listen is not None:
            listen(event)

    made = stream(guard, **changes)
    return launch.run(
        tiny.model("llama"), made, methods or [Full()], output=folder, settings=Settings(), listen=hear
    )


def guard(**settings):
    return Guard(**{"allowed_drop_fraction": 0.1} | settings)
