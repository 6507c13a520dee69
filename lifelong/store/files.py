"""Files that are whole or absent: atomic writes, checksums, a lock."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lifelong.errors import UserError

CHECKSUM = "checksum"  # the entry of a record that proves the others
TEMPORARY = re.compile(r"\..+\.(\d+)\.[a-z0-9_]{8}")  # .name.process.random
ASIDE = re.compile(r"\.(.+)\.aside")
CAUSES = {
    errno.ENOSPC: "no space is left on the disk; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some and run the same command again",
    errno.EFBIG: "files may not grow so large here (ulimit -f, or the file system); choose another `output`",
    errno.EIO: "the disk reports an input/output error; look at it, or choose another `output`",
    errno.EROFS: "the file system is read-only; choose another `output`",
    errno.EACCES: "permission denied; choose another `output`",
    errno.EPERM: "the operation is not permitted; choose another `output`",
    errno.ENOTDIR: "a part of the path is a file; choose another `output`",
}


@contextmanager
def plain_disk_errors(path: Path) -> Iterator[None]:
    """A full disk or a read-only folder becomes a UserError that names the place."""
    try:
        yield
    except Exception as error:
        cause = CAUSES.get(_number(error))
        if cause is None:
            raise
        raise UserError(f"cannot write {path}: {cause}. Nothing finished was lost.") from error


def _number(error: Exception) -> int | None:
    """errno of a failed write. safetensors writes from Rust, whose errors tell it in words only."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else None


def write_text(path: Path, text: str) -> None:
    """Replace `path` in one step: readers see the old or the new text, never a part."""
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
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


def write_record(path: Path, record: dict[str, Any]) -> None:
    """With a checksum, which `read_json` looks at."""
    write_json(path, sealed(record))


def read_json(path: Path) -> Any:
    """The value in `path`. A record is compared with its checksum, which is then left out."""
    try:
        return parse(path)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}). Put a good copy back, or remove the folder "
            f"{path.parent} and run the same command again."
        ) from None


def parse(path: Path) -> Any:
    """As `read_json`, with a ValueError (UnicodeDecodeError among them) where the file is damaged."""
    return unsealed(json.loads(path.read_text(encoding="utf-8")))


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its checksum, so that a reader knows a byte that has changed since."""
    return record | {CHECKSUM: _digest(json.dumps(record))}


def sealed_line(record: dict[str, Any]) -> str:
    """`sealed` as JSON, written once for the checksum and the line; `record` is not empty."""
    text = json.dumps(record)
    return f'{text[:-1]}, "{CHECKSUM}": "{_digest(text)}"}}'


def unsealed(value: Any) -> Any:
    """Inverse of `sealed`; other values stay as they are. ValueError where the checksum fails."""
    if not isinstance(value, dict) or CHECKSUM not in value:
        return value
    record = {key: each for key, each in value.items() if key != CHECKSUM}
    if _digest(json.dumps(record)) != value[CHECKSUM]:
        raise ValueError("it has another checksum")
    return record


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Write into the folder given; it appears as `path` only when the block ends well."""
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(path)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            _sync(temporary)
            os.chmod(temporary, 0o755)
            if path.exists():
                os.replace(path, _aside(path))
            os.replace(temporary, path)
            _sync(path.parent)
            _put_back(path)
        except BaseException:
            _put_back(path)
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_folder(path: Path) -> None:
    """A reader sees all of it or nothing; `sweep` finishes what a killed process began."""
    gone = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
    os.replace(path, gone)  # which is empty
    shutil.rmtree(gone)


def _prefix(path: Path) -> str:
    return f".{path.name}.{os.getpid()}."


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.aside")


def _put_back(path: Path) -> None:
    """The folder that was moved aside returns, unless a new one has taken its place."""
    aside = _aside(path)
    if not path.exists() and aside.exists():
        os.replace(aside, path)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Mend what killed writers left below `folder`: remove their temporary parts, and put back what
    they had moved aside. A part whose writer lives is left alone.
    """
    for path in list(folder.rglob(".*")):
        temporary, aside = TEMPORARY.fullmatch(path.name), ASIDE.fullmatch(path.name)
        if aside and path.is_dir():
            _put_back(path.with_name(aside[1]))
        elif temporary and not _lives(int(temporary[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Another process of that number; numbers are given anew, this one's as well."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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


def flushed_checksum(path: Path) -> str:
    """The checksum of a file that is flushed to the disk meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        flushed = pool.submit(_sync, path)
        digest = checksum(path)
        flushed.result()
    return digest


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
        with plain_disk_errors(self.path):
            self.file.truncate(0)
            os.write(self.file.fileno(), str(os.getpid()).encode())

    def release(self) -> None:
        self.file.close()
