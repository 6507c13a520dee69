"""Live progress: stage, step, loss, tokens per second, time left."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


@contextmanager
def watching(quiet: bool = False, title: str = "") -> Iterator[Callable[[Any], None]]:
    """A listener for the engine: a live line in a terminal, one line per stage elsewhere."""
    if quiet:
        yield lambda event: None
    elif sys.stderr.isatty():
        with _bar() as bar:
            yield _Live(bar, title)
    else:
        yield _Lines(title)


def _bar() -> Progress:
    columns = (
        TextColumn("{task.fields[what]:<24}"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:>5.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=8)


class _Live:
    """One line that follows the run."""

    def __init__(self, bar: Progress, title: str) -> None:
        self.bar, self.title = bar, title
        self.task = bar.add_task("", what=title, note="loading", total=1)

    def __call__(self, event: Any) -> None:
        if event.kind == "notice":
            self.bar.console.print(f"note: {event.text}")
            return
        note = event.text
        if event.kind == "step":
            note = f"loss {event.loss:6.3f}  {event.tokens_per_second:7.0f} tokens/s  {clock(event.seconds_left)} left"
        what = f"{self.title} {'judge' if event.kind == 'evaluation' else 'stage'} {event.stage}"
        self.bar.update(
            self.task, what=what.strip(), note=note, completed=event.step, total=max(event.num_steps, 1)
        )


class _Lines:
    """For logs: a line every ten seconds and at the end of each stage."""

    def __init__(self, title: str) -> None:
        self.title, self.last = title, 0.0

    def __call__(self, event: Any) -> None:
        if event.kind == "notice":
            print(f"note: {event.text}", file=sys.stderr, flush=True)
            return
        done = event.step == event.num_steps
        if event.kind == "step" and (done or time.monotonic() - self.last > 10):
            self.last = time.monotonic()
            print(
                f"{self.title} stage {event.stage} step {event.step}/{event.num_steps} loss {event.loss:.3f} "
                f"{event.tokens_per_second:.0f} tokens/s {clock(event.seconds_left)} left".strip(),
                file=sys.stderr,
                flush=True,
            )


def clock(seconds: float) -> str:
    """Minutes and seconds; '?' where unknown."""
    if seconds != seconds:
        return "?"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
