"""Runs the cells of a bench file on a pool (see `pools`): resumes, skips what is done, and goes on
where one fails.

A worker keeps the model that it has loaded and hands a copy to every run; copies share the features of a
body that no method moves. Runs that differ in the method alone share the evaluation of the untrained model.
"""

import copy
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lifelong import pools
from lifelong.errors import UserError
from lifelong.store.configuration import configuration
from lifelong.store.content import digest
from lifelong.store.files import write_json
from lifelong.store.run import UNTRAINED
from lifelong.streams import apart, build
from lifelong.streams.bench_cells import Cell
from lifelong.streams.bench_file import Bench
from lifelong.streams.tuning import FOLDER, Tuning

if TYPE_CHECKING:
    from lifelong.core.stream import Stream

FAILED = "failed.json"


class Job(NamedTuple):
    """What a worker is given."""

    cell: Cell
    untrained: Path | None  # evaluation of the untrained model, as another run made it


class Told(NamedTuple):
    """What is said after every run."""

    cell: Cell
    done: int
    total: int
    seconds: float  # of this run
    problem: str  # empty where all went well


def run(bench: Bench, listen: Callable[[Told], None] = lambda told: None) -> None:
    """Make every run that is not finished; a run that fails is recorded and left."""
    check(bench)
    waiting = [cell for cell in bench.cells if not finished(cell)]
    if not waiting:
        return
    chosen, done = bench.settings, len(bench.cells) - len(waiting)
    begun: dict[Path, float] = {}  # by folder, when
    with pools.opened(attempt, min(chosen.workers, len(waiting)), chosen.threads, chosen.ray) as pool:
        while waiting or begun:
            while waiting and pool.num_free:
                cell = waiting.pop(0)
                begun[cell.folder] = time.monotonic()
                pool.begin(Job(cell, _untrained(bench, cell)))
            (cell, *_), problem = pool.end()
            done += 1
            _record(cell, problem)
            listen(Told(cell, done, len(bench.cells), time.monotonic() - begun.pop(cell.folder), problem))


def check(bench: Bench, made: bool = True) -> None:
    """Raise UserError for a run that cannot work, or (`made`) is finished with other settings or rows, before
    any is begun, and for settings that were searched on the stream that is reported. Weights are not read,
    and the rows of a stream once.
    """
    cells = {each.line: each for each in bench.cells}.values()
    for _, group in groupby(sorted(cells, key=_stream), _stream):
        stream = None
        for cell in group:
            try:
                stream = stream or build.stream(cell.chosen, cell.start)
                _check_cell(bench, cell, stream, made)
            except UserError as error:
                raise UserError(f"{cell.called}, order {cell.order}: {error}") from None
    if bench.tuning is not None:
        _check_tuning(bench, bench.tuning)


def _check_tuning(bench: Bench, tuning: Tuning) -> None:
    """It is another stream, and the one that the frozen settings were found on."""
    searched = streams_of(searching(bench))
    apart.check_apart(streams_of(bench), searched)
    if tuning.rows not in ("", apart.identity(searched)):
        raise UserError(
            f"the rows of the tuning stream have changed since {tuning.file} was written. Put them back, or "
            f"remove {bench.output / FOLDER} and run `lifelong tune {tuning.bench}` again."
        )


def searching(bench: Bench) -> Bench:
    """The runs of all trials, as a bench."""
    cells = tuple(cell for trial in bench.tuning.trials for cell in trial.cells)
    return bench._replace(cells=cells, tuning=None)


def streams_of(bench: Bench) -> "list[Stream]":
    """Every sequence of rows that a bench trains and judges, once."""
    return [build.stream(each.chosen, each.start) for each in {c.rows: c for c in bench.cells}.values()]


def _stream(cell: Cell) -> str:
    return digest(cell.chosen.resolved() | {"method": None, "start": str(cell.start)})


def _check_cell(bench: Bench, cell: Cell, stream: "Stream", made: bool) -> None:
    """All seeds of a method on one order of the stages."""
    from lifelong import launch

    methods = build.methods(cell.chosen.method)
    stream = launch.planned(stream, methods)
    done = [each for each in bench.cells if made and each.line == cell.line and finished(each)]
    plan = launch.plan_of(stream, methods) if done else {}
    for each in done:
        theirs = configuration(each.folder)
        other = [name for name, value in plan.items() if theirs.get(name) != value]
        if other:
            raise UserError(
                f"{each.folder} is finished, with other settings or rows (it differs in {', '.join(other)}). "
                "Remove it, or choose another `output`."
            )


def finished(cell: Cell) -> bool:
    """Has it been made?"""
    summary = cell.folder / "summary.json"
    try:
        return bool(json.loads(summary.read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError, KeyError):
        return False


def problem_of(cell: Cell) -> str:
    """Why the last attempt failed; empty where it did not."""
    file = cell.folder.with_name(f"{cell.folder.name}.{FAILED}")
    return json.loads(file.read_text(encoding="utf-8"))["problem"] if file.exists() else ""


def _record(cell: Cell, problem: str) -> None:
    file = cell.folder.with_name(f"{cell.folder.name}.{FAILED}")
    if problem:
        write_json(file, {"problem": problem})
    else:
        file.unlink(missing_ok=True)


def _untrained(bench: Bench, cell: Cell) -> Path | None:
    """The untrained model's evaluation in a finished run of the same sequence, whatever its method."""

    def in_sequence(each: Cell) -> bool:
        return build.methods(each.chosen.method).stream == "sequence"

    for other in bench.cells if in_sequence(cell) else ():
        alike = other.rows == cell.rows and (other.seed == cell.seed or not cell.chosen.model.is_drawn)
        if alike and finished(other) and in_sequence(other):
            return other.folder / "stages" / UNTRAINED
    return None


# in a worker ---------------------------------------------------------------------------------


def attempt(job: Job, models: dict[str, Any]) -> str:
    """Make a run; the problem, or an empty text."""
    try:
        make(*job, models)
    except UserError as error:
        return str(error)
    except Exception:
        return traceback.format_exc(limit=-3)
    return ""


def make(cell: Cell, untrained: Path | None, models: dict[str, Any]) -> None:
    """One run, on a copy of the model that this worker keeps."""
    from lifelong import launch
    from lifelong.core import memory
    from lifelong.report import write_report

    memory.release()
    choice = cell.chosen.model
    key = f"{choice.model_dump_json()} {cell.seed if choice.is_drawn else ''}"
    if key not in models:
        models.clear()  # one at a time is kept
        models[key] = launch.load_model(cell.chosen, cell.seed)
    model = replace(models[key], network=copy.deepcopy(models[key].network))
    launch.run(model, cell.chosen, output=cell.folder, seed=cell.seed, folder=cell.start, untrained=untrained)
    write_report([cell.folder], cell.folder / "report.html")
