"""Run folders with made-up but consistent files, written without training."""

import json

from lifelong.store import node
from lifelong.store.files import write_record

BASE = "ab" * 32


def config(stages, **changes):
    made = {
        "fingerprint": "f", "name": "made", "method_name": "lora", "stream": "sequence", "seed": 0,
        "precision": "float32", "candidates": "task", "general": [{"name": "prose", "num_rows": 3}],
        "model": {"name": "tiny", "fingerprint": BASE, "source": {"name": "tiny"}},
        "methods": [{"axis": "tuners", "name": "lora", "settings": {"rank": 2}}],
        "stages": [
            {"name": name, "data": f"{i}" * 64, "budget": {"epochs": 1.0}, "labels": []}
            for i, name in enumerate(stages, 1)
        ],
    }  # fmt: skip
    return made | changes


def make(run, stages=("sky", "farm"), weights=None, seal=True, **changes):
    """A finished run; `weights` are texts that stand for what the stages learned."""
    run.mkdir(parents=True)
    write(run / "config.json", config(stages, **changes))
    write(run / "environment.json", {"lifelong": "0.1.0", "code": "0.1.0+aaaa"})
    log = [{"stage": i, "step": k, "loss": 1.0} for i in range(len(stages)) for k in range(2)]
    (run / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in log))
    for row in range(len(stages) + 1):
        name = stages[row - 1] if row else "untrained"
        text = (weights or stages)[row - 1] if row else ""
        add_stage(run, row, name, stages, text)
        if seal:
            node.seal(run, run / "stages" / f"{row:03d}-{name}")
    return run


def add_stage(run, row, name, sets, weights, value=0.5):
    folder = run / "stages" / f"{row:03d}-{name}"
    (folder / "checkpoint").mkdir(parents=True)
    found = [
        {"name": each, "metric": "accuracy", "unit": "%", "value": value, "benefit": value, "task": i,
         "general": False, "data": each}
        for i, each in enumerate(sets)
    ]  # fmt: skip
    prose = {"name": "prose", "metric": "perplexity", "unit": "", "value": 9.0, "benefit": -2.2,
             "task": None, "general": True, "data": "prose"}  # fmt: skip
    if row:
        (folder / "checkpoint/state.safetensors").write_text(weights * 100)
        write(folder / "checkpoint/manifest.json", {"parts": {"state.safetensors": weights}})
        write(folder / "cost.json", {"name": name, "seconds": 2.0})
    write(folder / "evaluation.json", {"stage": name, "seconds": 1.0, "sets": [*found, prose]})
    return folder


write = write_record


def contents(folder):
    """Every file below a folder with its bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
