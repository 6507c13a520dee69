"""Small runs with a mixing, and what they drew."""

import json

import tiny
import tiny_stream

from lifelong import launch
from lifelong.core import feeding
from lifelong.core.axes import Context
from lifelong.core.composition import compose
from lifelong.core.engine import Settings
from lifelong.tuners.lora import Lora


def at(step, stage=0, seed=0):
    return Context(params={}, step=step, stage=stage, seed=seed)


def train(path, *methods, stream=None, order="sequence", listen=lambda event: None, **settings):
    stream = stream or tiny_stream.stream(general=False, stages=("sky", "farm", "city"))
    made = compose([Lora(rank=2), *methods], Lora(), order)
    return launch.run(tiny.model("llama"), stream, made, output=path, listen=listen,
                      settings=Settings(checkpoint_seconds=0.0, **settings))  # fmt: skip


def log_of(run):
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "checksum")} for line in lines]


def drawn_rows(monkeypatch):
    """A list that fills with (stage, step, [(task, row)]) of every step."""
    seen, real = [], feeding.next_rows

    def watch(life, plan):
        rows, first = real(life, plan)
        sources = [(life.pool[r].task, life.row(r)["__source__"]) for r in rows]
        seen.append((life.stage, life.step, sources))
        return rows, first

    monkeypatch.setattr("lifelong.core.engine.next_rows", watch)
    return seen
