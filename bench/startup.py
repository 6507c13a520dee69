"""How long until the program answers, also on a long history, and does it load what it does not need?"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.figure import Figure, Settings
from bench.session import SEED, SMALL, llama, random_texts, stream_of
from lifelong import launch
from lifelong.core.composition import Methods
from lifelong.core.engine import Settings as RunSettings
from lifelong.core.stream import EvalSet
from lifelong.metrics.perplexity import Perplexity
from lifelong.objectives.causal_lm import CausalLm
from lifelong.store import index
from lifelong.store.files import write_json
from lifelong.store.node import seal
from lifelong.tuners.lora import Lora

LIMIT = 0.3  # seconds
INDEX_LIMIT = 0.4
LOG_LIMIT = 0.5
TURNS = 7
HEAVY = ("torch", "transformers", "accelerate", "numpy", "datasets", "peft")
CALL = "import sys; sys.argv = ['lifelong', *sys.argv[1:]]; from lifelong.cli.main import main; main()"
LOADED = (
    "import atexit, sys; atexit.register(lambda: sys.stderr.write('loaded: ' + ' '.join("
    f"m for m in {HEAVY!r} if m in sys.modules) + '\\n')); "
)


def measure(settings: Settings) -> list[Figure]:
    with tempfile.TemporaryDirectory() as place:
        run = str(finished_run(Path(place) / "run"))
        page = str(Path(place) / "report.html")
        verbs = {"--help": ["--help"], "methods": ["methods"], "report": ["report", run, "--output", page],
                 "log": ["log", run]}  # fmt: skip
        history = Path(place) / "history"
        num_nodes = long_history(history)
        return [
            wall_time("--help", ["--help"], LIMIT),
            wall_time(f"log FOLDER-OF-{num_nodes}-NODES", ["log", str(history)], INDEX_LIMIT),
            wall_time(
                f"log FOLDER-OF-{num_nodes}-NODES without an index",
                ["log", str(history)],
                LOG_LIMIT,
                (history / index.NAME).unlink,
            ),
            *(imports(name, words) for name, words in verbs.items()),
        ]


def wall_time(
    name: str, words: list[str], limit: float, before: Callable[[], object] = lambda: None
) -> Figure:
    """Fresh processes, `before()` each; a bare interpreter takes turns with them."""
    script = Path(sys.executable).parent / "lifelong"
    command = [*([str(script)] if script.exists() else [sys.executable, "-c", CALL]), *words]
    ours, bare = [], []
    for _ in range(TURNS + 1):
        before()
        ours.append(seconds(command))
        bare.append(seconds([sys.executable, "-c", "pass"]))
    ours, bare = ours[1:], bare[1:]  # the first one fills the disk cache
    return Figure(
        question=f"Seconds until `lifelong {name}` has answered, against a Python that does nothing; "
        f"median of {TURNS} fresh processes",
        ours=statistics.median(ours), baseline=statistics.median(bare), unit="s",
        value=statistics.median(ours), value_unit="s", limit=limit,
        spread=f"from {min(ours):.3f} to {max(ours):.3f} s",
    )  # fmt: skip


def seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def imports(name: str, words: list[str]) -> Figure:
    """Which heavy packages a fresh process of one verb has loaded when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED + CALL, *words], capture_output=True, text=True, check=True
    )
    loaded = next(line for line in done.stderr.splitlines() if line.startswith("loaded:")).split()[1:]
    return Figure(
        question=f"Heavy packages that `lifelong {name}` loads (of {', '.join(HEAVY)})",
        ours=None, baseline=None, unit="", value=len(loaded), value_unit="packages", limit=0,
        arithmetic=f"loaded: {', '.join(loaded)}" if loaded else "none of them",
    )  # fmt: skip


def long_history(folder: Path) -> int:
    """20 runs of 50 stages, each judged on 50 sets; returns the number of nodes."""
    names = [f"task{i}" for i in range(50)]
    common = {"name": "x", "model": {"name": "m", "fingerprint": "ab" * 32}, "stream": "sequence", "seed": 0}
    for number in range(20):
        run = folder / f"run{number}"
        stages = [{"name": name, "data": "d" * 64, "budget": {"epochs": 1.0}} for name in names]
        write_json(run / "config.json", common | {"fingerprint": "f", "methods": [], "stages": stages})
        for row in range(len(names) + 1):
            stage = run / "stages" / f"{row:03d}-{names[row - 1] if row else 'untrained'}"
            sets = [{"name": n, "unit": "%", "value": 0.5, "task": i, "general": False}
                    for i, n in enumerate(names)]  # fmt: skip
            write_json(stage / "evaluation.json", {"sets": sets})
            if row:
                write_json(stage / "cost.json", {"seconds": 12.3, "tokens": 10000, "steps": 30})
                write_json(stage / "checkpoint" / "manifest.json", {"parts": {"state": f"{number} {row}"}})
            seal(run, stage)
    return 1 + 20 * len(names)


def finished_run(folder: Path) -> Path:
    """A run of two steps, for the report to read."""
    size = SMALL._replace(tokens=16)
    rows, objective = random_texts(size, 2 * size.batch_size), CausalLm(block_size=size.tokens)
    stream = stream_of(rows, objective, size.batch_size, steps=2)
    judge = EvalSet(name="stage 1", rows=rows[:4], objective=objective, metric=Perplexity())
    stream = replace(stream, stages=(replace(stream.stages[0], evals=(judge,)),))
    model, methods = llama(size, "cpu"), Methods(tuner=Lora(rank=2), name="lora")
    launch.execute(model, stream, methods, folder, RunSettings(seed=SEED), {}, lambda event: None)
    return folder
