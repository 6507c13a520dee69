"""A pool on a Ray cluster: every job is a task, so that jobs wait where there are fewer processors than
workers, and Ray replaces a process that died.

All machines of the cluster see the folder that the bench is started in, under the same path, and have
the same packages. A job starts in that folder, so that relative paths mean what they mean here. GPUs of
the cluster are shared out among the workers, at most one each.
"""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from lifelong.errors import UserError
from lifelong.pools import DIED, Work

LOCAL = "local"
ANSWER_SECONDS = 5.0
_KEPT: dict[str, Any] = {}  # of a process of the cluster, from one task to the next


class RayPool:
    """See `pools.Pool`."""

    def __init__(self, ray: Any, work: Work, number: int, threads: int) -> None:
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / number)
        self._ray, self._number, self._work = ray, number, work
        self._task = ray.remote(_served).options(
            num_cpus=threads, num_gpus=gpus, max_retries=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},  # read when torch is imported
        )  # fmt: skip
        self._busy: dict[Any, Any] = {}

    @property
    def num_free(self) -> int:
        return self._number - len(self._busy)

    def begin(self, job: Any) -> None:
        self._busy[self._task.remote(self._work, job, os.getcwd())] = job

    def end(self) -> tuple[Any, str]:
        (task, *_), _ = self._ray.wait(list(self._busy), num_returns=1)
        job = self._busy.pop(task)
        try:
            return job, self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return job, DIED.format(cause=" ".join(str(error).split())[:300])


@contextmanager
def opened(work: Work, number: int, threads: int, address: str) -> Iterator[RayPool]:
    ray, handler = _library(), signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here = {"num_cpus": number * threads, "include_dashboard": False} if address == LOCAL else {}
    try:
        _reach(address)
        ray.init(address, log_to_driver=False, logging_level="error", **here)
    except (OSError, ValueError, RuntimeError) as error:
        told = " ".join(str(error).split())[:240]
        raise UserError(
            f"ray: `{address}` must be local, auto or HOST:PORT of a cluster that runs; none answered "
            f"({told}). Start one with `ray start --head`, or leave `ray` out."
        ) from None
    signal.signal(signal.SIGTERM, handler)  # Ray takes it for its own
    with redirect_stdout(sys.stderr):  # Ray tells of processes that died
        try:
            yield RayPool(ray, work, number, threads)
        finally:
            ray.shutdown()


def _library() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("ray: a bench on a cluster needs the package: pip install 'lifelong[ray]'") from None
    return ray


def _reach(address: str) -> None:
    """OSError where nobody listens; Ray itself would wait for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()


def _served(work: Work, job: Any, folder: str) -> str:
    if not Path(folder).is_dir():
        return f"{folder} is not on {os.uname().nodename}: all machines of a cluster must see it"
    os.chdir(folder)
    return work(job, _KEPT)
