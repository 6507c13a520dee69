"""Live progress: stage, step, loss, tokens per second, time left."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

BETWEEN_LINES = 10.0  # seconds, where no terminal listens


@contextmanager
def watching(
    quiet: bool = False, title: str = "", stages: Sequence[str] = ()
) -> Iterator[Callable[[Any], None]]:
    """A listener for the engine: a live line in a terminal, some plain lines elsewhere. Warnings are
    told in any case, on stderr.
    """
    if quiet:
        yield _only_notices
    elif sys.stderr.isatty():
        with _bar() as bar:
            yield _Live(bar, title, stages)
    else:
        yield _Lines(title, stages)


def stage_names(chosen: Any) -> list[str]:
    """Names for the progress line, in the order in which stages are counted."""
    joint = [list(each) for each in chosen.method] == [["joint"]]
    if joint or chosen.named is None:
        return ["joint"] if joint else [stage.name for stage in chosen.listed]
    return []  # known once the data are read


def _only_notices(event: Any) -> None:
    if event.kind == "notice":
        print(f"note: {event.text}", file=sys.stderr, flush=True)


def _bar() -> Progress:
    columns = (
        TextColumn("{task.fields[what]}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(
        *columns, console=Console(stderr=True, highlight=False), refresh_per_second=8, transient=True
    )


class _Live:
    """One line that follows the run; a finished stage or evaluation leaves a line behind."""

    def __init__(self, bar: Progress, title: str, stages: Sequence[str]) -> None:
        self.bar, self.title, self.stages = bar, title, stages
        self.task = bar.add_task("", what="loading the model", note="", total=1)

    def __call__(self, event: Any) -> None:
        if event.kind == "notice":
            self.bar.console.print(f"note: {event.text}", soft_wrap=True, markup=False)
            return
        if event.kind == "step":
            self._show(event, where(event, self.stages), pace(event))
        elif event.kind == "evaluation":
            self._show(event, "judging " + after(event, self.stages), event.text)
        if event.step == event.num_steps:
            self.bar.console.print(_line(event, self.title, self.stages), soft_wrap=True, markup=False)

    def _show(self, event: Any, what: str, note: str) -> None:
        what = f"{self.title} {what}".strip()
        self.bar.update(self.task, what=what, note=note, completed=event.step, total=max(event.num_steps, 1))


class _Lines:
    """For logs: a line every ten seconds, and at the end of each stage and of each evaluation."""

    def __init__(self, title: str, stages: Sequence[str]) -> None:
        self.title, self.stages, self.last = title, stages, 0.0

    def __call__(self, event: Any) -> None:
        if event.kind == "notice":
            return _only_notices(event)
        done = event.step == event.num_steps
        due = event.kind == "step" and time.monotonic() - self.last > BETWEEN_LINES
        if done or due:
            self.last = time.monotonic()
            print(_line(event, self.title, self.stages), file=sys.stderr, flush=True)


def _line(event: Any, title: str, stages: Sequence[str]) -> str:
    if event.kind == "evaluation":
        text = f"judged {after(event, stages)} on {event.num_steps} sets"
    else:
        text = f"{where(event, stages)}  step {event.step}/{event.num_steps}  {pace(event)}"
    return f"{title} {text}".strip()


def where(event: Any, stages: Sequence[str]) -> str:
    """`stage 2/5 mail`, or the number alone where names are not known."""
    if event.stage > len(stages):
        return f"stage {event.stage}"
    return f"stage {event.stage}/{len(stages)} {stages[event.stage - 1]}"


def after(event: Any, stages: Sequence[str]) -> str:
    if event.stage == 0:
        return "the untrained model"
    return "after " + (stages[event.stage - 1] if event.stage <= len(stages) else f"stage {event.stage}")


def pace(event: Any) -> str:
    return f"loss {event.loss:.3f}  {event.tokens_per_second:.0f} tokens/s  {clock(event.seconds_left)} left"


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes; '?' where unknown."""
    if seconds != seconds:
        return "?"
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60}:{whole % 60:02d}"
