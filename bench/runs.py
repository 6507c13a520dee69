"""What does a bench save beside the same runs one after another, and what does judging cost a run?

MiniLM on a small CLINC150, whose folder the environment variable LIFELONG_BENCH_CLINC150 names (train.jsonl
and test.jsonl). A bench keeps processes, the loaded model and the untrained model's evaluation, and goes on
with as many processes as there are workers; alone every run is `lifelong run` in a fresh process. All have
one thread. With `--quick` what starts outweighs what is measured, so nothing has a limit then.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from bench.figure import Figure, Settings
from lifelong.errors import UserError
from lifelong.store.files import read_json

FOLDER = "LIFELONG_BENCH_CLINC150"
LIMIT, JUDGING_LIMIT = 0.7, 15.0  # of the time of fresh processes; % of a run
METHODS = {
    "lora": "lora", "ewc": ["lora", "ewc"], "l2": ["lora", "l2"], "si": ["lora", "si"],
    "reservoir": ["lora", "reservoir"], "o_lora": "o_lora", "orthogonal": ["o_lora", "orthogonal"],
    "nmc": ["frozen", "nmc"],
}  # fmt: skip
CALL = "import sys; sys.argv = ['lifelong', *sys.argv[1:]]; from lifelong.cli.main import main; main()"


def measure(settings: Settings) -> list[Figure]:
    data = os.environ.get(FOLDER, "")
    if not Path(data, "train.jsonl").is_file():
        raise UserError(
            f"bench runs: {FOLDER} must name a folder with train.jsonl and test.jsonl; got `{data}`."
        )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        return [
            *sharing(settings, folder, Path(data).resolve()),
            judging(settings, folder, Path(data).resolve()),
        ]


def sharing(settings: Settings, folder: Path, data: Path) -> list[Figure]:
    """A bench of two workers, one of one worker, and the same runs alone."""
    methods = dict(list(METHODS.items())[: settings.repeats(2, 8)])
    seeds = list(range(settings.repeats(1, 3)))
    small = stream(data, rows_per_label=settings.repeats(2, 5), eval_rows=50)
    content = {"name": "runs", "stream": small, "methods": methods, "seeds": seeds, "bounds": False}
    (folder / "bench.yaml").write_text(yaml.safe_dump(content))
    pooled = {
        workers: seconds(folder, "bench", "bench.yaml", f"workers={workers}", f"output=pool{workers}")
        for workers in (2, 1)
    }
    alone = 0.0
    for label, method in methods.items():
        (folder / "run.yaml").write_text(yaml.safe_dump(small | {"name": "runs", "method": method}))
        for seed in seeds:
            alone += seconds(folder, "run", "run.yaml", f"seed={seed}", f"output=alone/{label}-{seed}")
    about = f"{len(methods)} methods and {len(seeds)} seeds of MiniLM on a small CLINC150"
    return [
        Figure(
            question=f"A bench of {about}, workers: {workers}, beside the same runs one after another in "
            "fresh processes",
            ours=pooled[workers], baseline=alone, unit="s", value=pooled[workers] / alone,
            limit=LIMIT if workers == 2 and not settings.quick else None,
        )
        for workers in (2, 1)
    ]  # fmt: skip


def judging(settings: Settings, folder: Path, data: Path) -> Figure:
    """A run of plain LoRA that judges all stages after each."""
    rows, epochs = settings.repeats(2, 20), settings.repeats(1, 3)
    content = stream(data, rows_per_label=rows, eval_rows=100, epochs=epochs)
    (folder / "run.yaml").write_text(yaml.safe_dump(content | {"name": "runs", "method": "lora"}))
    seconds(folder, "run", "run.yaml", "output=judged")
    stages = sorted((folder / "judged" / "stages").iterdir())
    judged = [read_json(stage / "evaluation.json")["seconds"] for stage in stages]
    trained = sum(read_json(stage / "cost.json")["seconds"] for stage in stages[1:])
    share = 100 * sum(judged) / (sum(judged) + trained)
    return Figure(
        question=f"Judging all {len(judged) - 1} stages of CLINC150 before the first and after each, 100 "
        f"rows per stage, beside training on {rows} rows per intent for {epochs} epochs",
        ours=sum(judged), baseline=trained, unit="s", value=share, value_unit="% of the run",
        limit=None if settings.quick else JUDGING_LIMIT,
        spread=f"an evaluation takes {statistics.median(judged):.2f} s (median of {len(judged)})",
    )  # fmt: skip


def stream(data: Path, rows_per_label: int, eval_rows: int, epochs: int = 1) -> dict[str, Any]:
    cut = {"path": str(data), "num_stages": 5, "rows_per_label": rows_per_label, "eval_rows": eval_rows}
    defaults = {"epochs": epochs, "batch_size": 16, "learning_rate": 1e-3}
    return {"model": "minilm", "defaults": defaults, "stages": {"clinc150": cut}}


def seconds(folder: Path, *words: str) -> float:
    """Of a command in a fresh process."""
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CALL, *words], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return time.perf_counter() - begun
