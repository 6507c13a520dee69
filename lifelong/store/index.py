"""What the nodes below a folder say, kept in one file: a cache, of which nothing depends.

`.lifelong.sqlite` in the folder that run folders lie in holds, for each stage, what its files said and
their size, time and number on the disk then. A stage whose files are others is read from them; so the file
may be deleted, or be damaged, locked, of another version, or in a folder that cannot be written: then
the files are read, and where that can be done it is written anew. Nobody waits for it.
"""

import json
import os
import sqlite3
import zlib
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

NAME = ".lifelong.sqlite"
VERSION = 1
WORTH = 64  # stages read from their files before they are kept: fewer cost no time
ALL = (
    "SELECT folder, stamp, record, checksum FROM nodes "
    "WHERE typeof(folder) = 'text' AND typeof(stamp) = 'text' AND typeof(record) = 'text'"
)
STAMPED = ("node.json", "guard.json")  # what is said of a stage follows from these


class Index:
    """Of the run folders below `folder`; read when made."""

    def __init__(self, folder: Path) -> None:
        self.file, self.start = folder / NAME, len(str(folder / "x")) - 1
        self.known: dict[str, tuple[str, str, int]] = {}  # by stage folder: stamp, record, their checksum
        self.fresh: dict[str, tuple[str, str, int]] = {}
        self.seen: set[str] = set()
        self.whole = False  # a file of this version that can be read
        self.busy = False  # another process writes it
        if self.file.exists():
            self._read()

    def _read(self) -> None:
        try:
            with closing(self._open("ro")) as database:
                if database.execute("PRAGMA user_version").fetchone()[0] == VERSION:
                    self.known = {folder: rest for folder, *rest in database.execute(ALL)}
                    self.whole = True
        except sqlite3.Error as error:
            self.busy = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY

    def find(self, stage: Path) -> dict[str, Any] | None:
        """What the files of a stage say, if they are still those."""
        folder = str(stage)[self.start :]
        self.seen.add(folder)
        stamp, record, checksum = self.known.get(folder, ("", "", None))
        if checksum is None or stamp != _stamp(stage) or checksum != _checksum(folder, stamp, record):
            return None
        return json.loads(record)

    def add(self, stage: Path, stamp: str, record: dict[str, Any]) -> None:
        """`stamp` is from before the files were read."""
        folder, text = str(stage)[self.start :], json.dumps(record)
        self.fresh[folder] = (stamp, text, _checksum(folder, stamp, text))

    def stamp(self, stage: Path) -> str:
        return _stamp(stage)

    def save(self) -> None:
        """Keep what is new, and drop stages that are gone; without waiting, and without a word where it
        cannot be.
        """
        gone = self.known.keys() - self.seen
        if self.busy or len(self.fresh) + len(gone) < WORTH:
            return
        with suppress(sqlite3.Error, OSError):
            if not self.whole:
                self.file.unlink(missing_ok=True)
            with closing(self._open("rwc")) as database, database:
                database.execute("PRAGMA synchronous = OFF")  # a torn file is found out and made anew
                if not self.whole:
                    database.execute("CREATE TABLE IF NOT EXISTS nodes (folder TEXT PRIMARY KEY, stamp TEXT, "
                                     "record TEXT, checksum INTEGER)")  # fmt: skip
                    database.execute(f"PRAGMA user_version = {VERSION}")
                database.executemany("DELETE FROM nodes WHERE folder = ?", [(each,) for each in gone])
                rows = [(folder, *rest) for folder, rest in self.fresh.items()]
                database.executemany("INSERT OR REPLACE INTO nodes VALUES (?, ?, ?, ?)", rows)

    def _open(self, mode: str) -> sqlite3.Connection:
        address = f"{self.file.absolute().as_uri()}?mode={mode}"
        return sqlite3.connect(address, timeout=0, uri=True)


def _stamp(stage: Path) -> str:
    """Of the files, as they are now; a file that is replaced has another number."""
    found = []
    for name in STAMPED:
        with suppress(FileNotFoundError):
            about = os.stat(f"{stage}/{name}")
            found.append(f"{name} {about.st_size} {about.st_mtime_ns} {about.st_ino}")
    return "; ".join(found)


def _checksum(*texts: str) -> int:
    return zlib.crc32("\0".join(texts).encode())
