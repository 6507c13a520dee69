"""Where the jobs of a bench are done: processes of this machine, or a Ray cluster. One contract for both.

A worker keeps what it has loaded from one job to the next. A job that fails, or whose process dies, is
told by its problem and stops no other.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

Work = Callable[
    [Any, dict[str, Any]], str
]  # (job, what this worker keeps) -> problem, empty if all went well
DIED = "its process died ({cause}); it may have been too large for the memory"


class Pool(Protocol):
    """Workers that do one job after another."""

    @property
    def num_free(self) -> int:
        """Jobs that may be begun now."""

    def begin(self, job: Any) -> None: ...

    def end(self) -> tuple[Any, str]:
        """Wait until a job ends, whichever; the job and its problem."""


def opened(work: Work, number: int, threads: int, cluster: str) -> AbstractContextManager[Pool]:
    """`number` workers of `threads` threads, closed at the end: here, or on the Ray cluster that is named.
    `work` is a function of a module. What was begun and has not ended is stopped.
    """
    if cluster:
        from lifelong.pools import ray

        return ray.opened(work, number, threads, cluster)
    from lifelong.pools import processes

    return processes.opened(work, number, threads)
