"""`lifelong eval`: a model, or a node of its history, on the sets of a stream or on public benchmarks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.errors import UserError, nearest
from lifelong.store import lineage

if TYPE_CHECKING:
    from lifelong.core.model import Model

HARNESSES = ("lm-eval",)
HEADS = ("task", "metric", "value", "stderr", "rows", "shots")


def on_stream(
    name: str, stream: Path | None, changes: Sequence[str], stage: str | None, below: Path, as_json: bool
) -> None:
    from lifelong.streams.config import read

    if stream is None:
        raise UserError("eval: name a stream file after the model, or public benchmarks: --harness lm-eval "
                        "--tasks NAMES.")  # fmt: skip
    chosen = read(stream, changes)
    from lifelong import launch
    from lifelong.cli.tables import print_sets

    known: Model | str = loaded(name, stage, below) if lineage.names_node(name, below) else name
    print_sets(launch.judge(known, chosen, stream.parent, stage), as_json)


def on_benchmarks(
    name: str, harness: str, given: Sequence[str], tasks: str, stage: str | None, below: Path,
    limit: int | None, folders: Sequence[Path], rows_at_once: int, as_json: bool,
) -> None:  # fmt: skip
    names = [each.strip() for each in tasks.split(",") if each.strip()]
    if harness not in HARNESSES:
        raise UserError(f"--harness: there is no `{harness}`.{nearest(harness, HARNESSES)}")
    if given:
        raise UserError(f"eval: with --harness no stream file and no overrides; got {given[0]}.")
    if not names:
        raise UserError("--tasks: name at least one, such as arc_easy; `lm-eval ls tasks` lists them.")
    from lifelong.models import harness as benchmarks

    known = benchmarks.tasks_of(names, folders)
    model = loaded(name, stage, below)
    result = benchmarks.evaluate(model, known, limit=limit, rows_at_once=rows_at_once)
    found = benchmarks.figures(result)
    if as_json:
        print(json.dumps({"model": name, "lm_eval": result["lm_eval_version"], "figures": found}))
    else:
        print_figures(found)


def loaded(name: str, stage: str | None, below: Path) -> "Model":
    """A model as `restore.load` knows it, or that of a node."""
    from lifelong.models import restore

    if stage is None and lineage.names_node(name, below):
        return restore.at(lineage.find(name, below))
    return restore.load(name, stage)


def print_figures(found: Sequence[dict[str, Any]]) -> None:
    """One line per task and metric; of several answers taken from one text (filters) each has its own."""
    lines = [HEADS]
    for each in found:
        error = "" if each["stderr"] is None else f"{each['stderr']:.4f}"
        metric = each["metric"] + ("" if each["filter"] in ("", "none") else f" ({each['filter']})")
        lines.append(
            (each["task"], metric, f"{each['value']:.4f}", error, str(each["rows"]), str(each["shots"]))
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    for line in lines:
        cells = [text.ljust(width) if i < 2 else text.rjust(width)
                 for i, (text, width) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        print("  ".join(cells).rstrip())
