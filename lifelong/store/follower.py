"""A run folder as the other processes of a run see it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lifelong.store.run import RunFolder, stage_names


class Follower(RunFolder):
    """The view of a process that trains beside the one that writes: it reads the same files."""

    def __init__(self, path: Path, stages: Iterable[str]) -> None:
        self.path, self.stages, self.notices = Path(path), stage_names(stages), []
        self._sound: set[Path] = set()

    def _nothing(self, *content: Any) -> None:
        pass

    write = write_summary = write_environment = write_evaluation = take_over = forget = discard = _nothing
    seal = save = _remove = log = flush_log = cut_log = close = _nothing
