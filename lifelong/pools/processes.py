"""A pool of processes of this machine."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from lifelong.pools import DIED, Work

CLOSING_SECONDS = 5.0  # for a worker to see that nobody waits for it
SAVING_SECONDS = 30.0  # for a run to reach a place where it can save


class Worker:
    """A process that does one job after another; a new one takes the place of one that died."""

    def __init__(self, work: Work, threads: int) -> None:
        self.work, self.threads = work, threads
        self._start()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, self.work), daemon=True)
        with _environment(OMP_NUM_THREADS=str(self.threads)):  # read when torch is imported
            self.process.start()
        theirs.close()

    def begin(self, job: Any) -> None:
        self.pipe.send(job)

    def end(self) -> str:
        """The problem of the job that has ended, or an empty text."""
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self._start()
            cause = signal.Signals(-code).name if code and code < 0 else f"exit status {code}"
            return DIED.format(cause=cause)

    def close(self) -> None:
        """A run in work is asked to save and to leave; one that cannot in time goes on from its last
        checkpoint when it is taken up again.
        """
        self.pipe.close()
        self.process.join(CLOSING_SECONDS)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(SAVING_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Processes:
    """See `pools.Pool`."""

    def __init__(self, workers: list[Worker]) -> None:
        self._free = workers
        self._busy: dict[Connection, tuple[Worker, Any]] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def begin(self, job: Any) -> None:
        worker = self._free.pop(0)
        worker.begin(job)
        self._busy[worker.pipe] = worker, job

    def end(self) -> tuple[Any, str]:
        worker, job = self._busy.pop(next(iter(wait(list(self._busy)))))
        problem = worker.end()
        self._free.append(worker)
        return job, problem


@contextmanager
def opened(work: Work, number: int, threads: int) -> Iterator[Processes]:
    workers = [Worker(work, threads) for _ in range(number)]
    try:
        yield Processes(list(workers))
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


def serve(pipe: Connection, work: Work) -> None:
    """Do the jobs that come through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes the pipe
    kept: dict[str, Any] = {}
    with suppress(BrokenPipeError):  # nobody waits for it any more
        for job in _received(pipe):
            pipe.send(work(job, kept))


def _received(pipe: Connection) -> Iterator[Any]:
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return
