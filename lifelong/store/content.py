"""Fingerprints of plain values and of rows: what they hold counts, not where they came from."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = "__source__"  # column of a row that says where it was read; no part of its content


def digest(value: Any) -> str:
    """SHA-256 of plain values and of rows; images and arrays count by their bytes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_content).encode()).hexdigest()


def row_digest(row: Mapping[str, Any]) -> str:
    """12 hex digits for one row, whatever file and line it stands in."""
    return digest({key: value for key, value in row.items() if key != SOURCE})[:12]


def rows_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of rows in their order."""
    return digest([{key: value for key, value in row.items() if key != SOURCE} for row in rows])


def tensors_digest(tensors: Mapping[str, "Tensor"]) -> str:
    """SHA-256 over name, shape, type and bytes of every tensor, by name.

    The type counts: the same values in another precision are other bytes. About 0.5 s per gigabyte where
    the processor has SHA instructions.
    """
    import torch

    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(memoryview(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return found.hexdigest()


def sources_digest(package: Path) -> str:
    """SHA-256 of the sources of a package: two states of one version differ."""
    found = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        found.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()


def _content(value: Any) -> str:
    if isinstance(value, (date, time, Decimal)):
        return str(value)
    return hashlib.sha256(value if isinstance(value, bytes) else value.tobytes()).hexdigest()
