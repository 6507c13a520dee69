"""log.jsonl: one sealed line per optimiser step."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from lifelong.errors import UserError
from lifelong.store.files import plain_disk_errors, sealed_line, unsealed, write_text

FILE = "log.jsonl"


class Log:
    """The writer's view of the log of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, None

    def append(self, record: dict[str, Any]) -> None:
        with plain_disk_errors(self.folder):
            if self.file is None:
                self.file = (self.folder / FILE).open("a", encoding="utf-8")
            self.file.write(sealed_line(record) + "\n")

    def flush(self) -> None:
        if self.file is not None:
            with plain_disk_errors(self.folder):
                self.file.flush()
                os.fsync(self.file.fileno())

    def cut(self, stage: int, step: int) -> list[str]:
        """Forget lines from (stage, step) on: they will be written again. Returns what is said of earlier
        ones that are damaged.
        """
        self.close()  # the file is replaced, so the handle would write into the void
        path, kept, notices = self.folder / FILE, [], []
        lines = raw_lines(path)
        for number, line in enumerate(lines, start=1):
            try:
                record = parse_line(line)
            except ValueError as error:
                if line.endswith("\n"):  # else the last line of a killed process
                    notices.append(f"{path}, line {number} is damaged ({error}) and left out.")
                continue
            if (record["stage"], record["step"]) < (stage, step):
                kept.append(line)
        if len(kept) < len(lines):
            write_text(path, "".join(kept))
        return notices

    def close(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):  # a full disk; lines since the last flush are written again
                self.file.close()
            self.file = None


def read_log(folder: Path) -> list[Any]:
    """Records of the log of a run; the last line may be in the midst of being written."""
    path, found = folder / FILE, []
    for number, line in enumerate(raw_lines(path), start=1):
        try:
            found.append(parse_line(line))
        except ValueError as error:
            if line.endswith("\n"):
                raise UserError(
                    f"{path}, line {number} is damaged ({error}). Put a good copy back, or run the same "
                    "command again: it leaves the line out."
                ) from None
    return found


def raw_lines(path: Path) -> list[str]:
    """Lines with their ends; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        return list(lines)


def parse_line(line: str) -> dict[str, Any]:
    """ValueError where the line is damaged."""
    record = unsealed(json.loads(line))
    if not isinstance(record, dict) or not {"stage", "step"} <= record.keys():
        raise ValueError("it has no stage and step")
    return record
