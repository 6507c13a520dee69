"""Files that are whole or absent: atomic writes, checksums, a lock."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lifelong.errors import UserError


@contextmanager
def plain_disk_errors(path: Path) -> Iterator[None]:
    """A full disk or a read-only folder becomes a UserError that names the place."""
    try:
        yield
    except OSError as error:
        causes = {
            errno.ENOSPC: "no space is left on the disk; free some and run the same command again",
            errno.EDQUOT: "the disk quota is used up; free some and run the same command again",
            errno.EROFS: "the file system is read-only; choose another `output`",
            errno.EACCES: "permission denied; choose another `output`",
            errno.ENOTDIR: "a part of the path is a file; choose another `output`",
        }
        if error.errno not in causes:
            raise
        raise UserError(f"cannot write {path}: {causes[error.errno]}. Nothing finished was lost.") from error


def write_text(path: Path, text: str) -> None:
    """Replace `path` in one step: readers see the old or the new text, never a part."""
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError among them
        raise UserError(
            f"{path} is damaged, since it is not JSON ({error}). Put a good copy back, or remove the folder "
            f"{path.parent} and run the same command again."
        ) from None


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Write into the folder given; it appears as `path` only when the block ends well."""
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            _sync(temporary)
            os.chmod(temporary, 0o755)
            old = None
            if path.exists():
                old = path.with_name(f".{path.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                os.replace(path, old)
            os.replace(temporary, path)
            _sync(path.parent)
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


class Lock:
    """Held while a process writes a run folder; the system releases it when the process ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        with plain_disk_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a+")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            owner = self.file.read().strip() or "unknown"
            self.file.close()
            raise UserError(
                f"run folder {folder} is in use by process {owner}. Wait for it, stop it, "
                "or choose another `output`."
            ) from None
        self.file.truncate(0)
        self.file.write(str(os.getpid()))
        self.file.flush()

    def release(self) -> None:
        self.file.close()
