"""Runs the cells of a bench file on a pool of processes: resumes, skips what is done, and goes on
where one fails.

A process keeps the model that it has loaded and hands a copy to every run. Runs that differ in the
method alone share the evaluation of the untrained model.
"""

import copy
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lifelong.errors import UserError
from lifelong.store.configuration import configuration
from lifelong.store.content import digest
from lifelong.store.files import write_json
from lifelong.store.run import UNTRAINED
from lifelong.streams import build
from lifelong.streams.bench_file import Bench, Cell

if TYPE_CHECKING:
    from lifelong.core.stream import Stream

FAILED = "failed.json"
CLOSING_SECONDS = 5.0


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
    done = len(bench.cells) - len(waiting)
    with pool(min(bench.settings.workers, len(waiting)), bench) as workers:
        busy: dict[Connection, tuple[Cell, float]] = {}
        while waiting or busy:
            for worker in [each for each in workers if each.pipe not in busy]:
                if waiting:
                    cell = waiting.pop(0)
                    worker.begin(cell, _untrained(bench, cell))
                    busy[worker.pipe] = cell, time.monotonic()
            for pipe in wait(list(busy)):
                worker = next(each for each in workers if each.pipe is pipe)
                (cell, begun), problem = busy.pop(pipe), worker.end()
                done += 1
                _record(cell, problem)
                listen(Told(cell, done, len(bench.cells), time.monotonic() - begun, problem))


def check(bench: Bench) -> None:
    """Raise UserError for a run that cannot work, or is finished with other settings or rows, before any is
    begun; weights are not read, and the rows of a stream once.
    """
    cells = {(each.label, each.order): each for each in bench.cells}.values()
    for _, group in groupby(sorted(cells, key=_stream), _stream):
        stream = None
        for cell in group:
            try:
                stream = stream or build.stream(cell.chosen, bench.folder)
                _check_cell(bench, cell, stream)
            except UserError as error:
                raise UserError(f"{cell.label}, order {cell.order}: {error}") from None


def _stream(cell: Cell) -> str:
    return digest(cell.chosen.resolved() | {"method": None})


def _check_cell(bench: Bench, cell: Cell, stream: "Stream") -> None:
    """All seeds of a method on one order of the stages."""
    from lifelong import launch

    methods = build.methods(cell.chosen.method)
    stream = launch.planned(stream, methods)
    done = [each for each in bench.cells if each[:2] == cell[:2] and finished(each)]
    plan = launch.plan_of(stream, methods) if done else {}
    for each in done:
        made = configuration(each.folder)
        other = [name for name, value in plan.items() if made.get(name) != value]
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


# the processes -------------------------------------------------------------------------------


class Worker:
    """A process that makes one run after another; a new one takes the place of one that died."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._start()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, self.bench.folder), daemon=True)
        with _environment(OMP_NUM_THREADS=str(self.bench.settings.threads)):  # read when torch is imported
            self.process.start()
        theirs.close()

    def begin(self, cell: Cell, untrained: Path | None) -> None:
        self.pipe.send((cell, untrained))

    def end(self) -> str:
        """The problem of the run that has ended, or an empty text."""
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self._start()
            cause = signal.Signals(-code).name if code and code < 0 else f"exit status {code}"
            return f"its process died ({cause}); it may have been too large for the memory"

    def close(self) -> None:
        self.pipe.close()
        self.process.join(CLOSING_SECONDS)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


@contextmanager
def pool(number: int, bench: Bench) -> Iterator[list[Worker]]:
    """`number` workers, closed at the end; what they had begun goes on at the next call."""
    workers = [Worker(bench) for _ in range(number)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Inside, the environment that a new process gets."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def serve(pipe: Connection, folder: Path) -> None:
    """Make the runs that come through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes the pipe
    models: dict[str, Any] = {}
    for cell, untrained in _received(pipe):
        try:
            make(cell, untrained, folder, models)
            problem = ""
        except UserError as error:
            problem = str(error)
        except Exception:
            problem = traceback.format_exc(limit=-3)
        pipe.send(problem)


def _received(pipe: Connection) -> Iterator[tuple[Cell, Path | None]]:
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


def make(cell: Cell, untrained: Path | None, folder: Path, models: dict[str, Any]) -> None:
    """One run, on a copy of the model that this process keeps."""
    from lifelong import launch
    from lifelong.report import write_report

    choice = cell.chosen.model
    key = f"{choice.model_dump_json()} {cell.seed if choice.is_drawn else ''}"
    if key not in models:
        models.clear()  # one at a time is kept
        models[key] = launch.load_model(cell.chosen, cell.seed)
    model = copy.deepcopy(models[key])
    launch.run(model, cell.chosen, output=cell.folder, seed=cell.seed, folder=folder, untrained=untrained)
    write_report([cell.folder], cell.folder / "report.html")
