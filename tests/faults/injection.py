"""Where a run is hit, and what must be left of it."""

import functools
import importlib
import json
import os
import resource
import signal
from dataclasses import dataclass
from typing import Any

from lifelong.store import files
from lifelong.store.checkpoint import broken

RECIPES = {
    "sequential": "sequential",
    "o_lora_replay": "o_lora_replay",
    "ewc": "[full, {ewc: {num_examples: 4}}]",
    "skill_it": "[lora, {skill_it: {round_steps: 2, held_out: 0.2}}]",
    "aioli": "[lora, {aioli: {round_steps: 4, repeats: 1, probe_steps: 1, held_out: 0.2}}]",
    "sema": "[{sema: {threshold: 0.0, descriptor_epochs: 2, scan_batch: 4}}]",
    "tame": "[{tame: {window: 2, warm_up: 2, recent: 1, threshold: 0.0, least_steps: 1}}]",
    "per_task": "per_task",
    "ama": "[o_lora, {ama: {steps: 2, num_groups: 2, num_examples: 4}}]",
}
PLACES = {  # kinds of work by the functions that do it
    "model": "lifelong.launch:load_model",
    "start": "lifelong.core.life:Life.restore",
    "step": "lifelong.core.engine:gradients",
    "update": "lifelong.core.life:Life.update",
    "memory": "lifelong.core.engine:remember",
    "evaluation": "lifelong.core.evaluation:judge",
    "record": "lifelong.store.run:RunFolder.write_evaluation",
    "checkpoint": "lifelong.store.run:RunFolder.save",
    "end of a stage": "lifelong.core.life:Life.end_stage",
    "importance": "lifelong.penalties.ewc:Ewc.end_stage",
    "mixture": "lifelong.core.feeding:part_losses",
    "merge": "lifelong.mergers.ama:Ama.end_stage",
    "expansion by scan": "lifelong.tuners.sema:Sema.begin_stage",
    "expansion by jump": "lifelong.tuners.tame:Tame._switched",
    "summary": "lifelong.store.run:RunFolder.write_summary",
    "report": "lifelong.report:write_report",
}
CALLS = ("replace", "fsync", "mkdir", "chmod", "unlink", "rmdir")  # of os: what moves and removes files
TIMES = {"time", "seconds", "evaluation_seconds", "tokens_per_second", "peak_memory_bytes", "checksum"}


def wrap(place, before):
    """`before()` runs whenever the place is entered."""
    module, _, path = PLACES[place].partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    real = getattr(owner, name)

    def entered(*args, **kwargs):
        before()
        return real(*args, **kwargs)

    setattr(owner, name, entered)


@dataclass
class Counting:
    """Leaves counts.json: visits of every place, and calls that move or remove files."""

    def __enter__(self):
        self.found = dict.fromkeys([*PLACES, "calls"], 0)
        for place in PLACES:
            wrap(place, functools.partial(self.count, place))
        at_every_call(functools.partial(self.count, "calls"))

    def count(self, name):
        self.found[name] += 1

    def __exit__(self, *_):
        with open("counts.json", "w") as file:
            json.dump(self.found, file)


@dataclass
class Announcing:
    """Tells the other end of `pipe` when a place is entered for the given time."""

    place: str
    visit: int
    pipe: Any

    def __enter__(self):
        wrap(self.place, self.entered)

    def entered(self):
        self.visit -= 1
        if self.visit == 0:
            self.pipe.send_bytes(b"here")

    def __exit__(self, *_):
        self.pipe.close()


@dataclass
class AtCall:
    """Death right before a call that moves, flushes or removes a file."""

    number: int

    def __enter__(self):
        at_every_call(self.called)

    def called(self):
        self.number -= 1
        if self.number <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def __exit__(self, *_):
        pass


@dataclass
class Failing:
    """From one call on, moving, making and flushing files fails; removing them does not."""

    number: int
    error: int

    def __enter__(self):
        at_every_call(self.called, ("replace", "fsync", "mkdir"))

    def called(self):
        self.number -= 1
        if self.number <= 0:
            raise OSError(self.error, os.strerror(self.error))

    def __exit__(self, *_):
        pass


@dataclass
class SmallFiles:
    """No file may grow beyond `num_bytes`."""

    num_bytes: int

    def __enter__(self):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does: the write fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, self.num_bytes))

    def __exit__(self, *_):
        pass


def at_every_call(before, names=CALLS):
    for name in names:
        real = getattr(os, name)

        def called(*args, real=real, **kwargs):
            before()
            return real(*args, **kwargs)

        setattr(os, name, called)


def learned(folder):
    """Everything in a run folder that must not depend on what happened on the way: weights, memories,
    mixtures, moments, answers, figures and losses to the bit; no file less, none left over.
    """
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".json" and path.name not in ("manifest.json", "environment.json"):
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.name == "log.jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        else:
            known = path.suffix == ".safetensors" or path.name == "answers.jsonl"
            found[name] = path.read_bytes() if known else None
    return found


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def check_whole(folder):
    """No part of a file stands where a whole one is expected."""
    for path in folder.rglob("*.json"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            if path.parent.parent.name != "checkpoints":  # old ones are removed file by file
                files.read_json(path)
    for path in folder.glob("stages/*/checkpoint"):
        assert broken(path) is None, path
    ended = {path.parent.name[:3] for path in folder.glob("stages/*/checkpoint")}
    for path in sorted(folder.glob("checkpoints/[0-9]*"))[-1:]:
        assert path.name[:3] in ended or broken(path) is None, path
    for path in folder.glob("report.html"):
        assert path.read_text().rstrip().endswith("</html>")
