"""Does a merge of two models run at the speed of the disk?"""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.figure import Figure, Settings
from lifelong.models.merging import merge_models

LIMIT = 2.0
CHUNK = 1 << 22  # bytes read at once


def measure(settings: Settings) -> list[Figure]:
    """Merging two files, against reading one and copying the other; the result is on the disk."""
    size = 256 if settings.quick else 2048
    found = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("left", "right"):
            (folder / name).mkdir()
            tensors = {f"weight{i}": torch.randn(size, size) for i in range(16)}
            save_file(tensors, folder / name / "model.safetensors")
            (folder / name / "config.json").write_text(json.dumps({}))
        for number in range(settings.repeats(2, 6)):
            begun = time.perf_counter()
            merge_models(folder / "left", folder / "right", folder / f"merged{number}")
            middle = time.perf_counter()
            plain_copy(folder, folder / f"copy{number}")
            found.append((middle - begun, time.perf_counter() - middle))
        num_bytes = (folder / "left/model.safetensors").stat().st_size
    ours, other = (statistics.median(each) for each in zip(*found[1:], strict=True))
    return [
        Figure(
            question=f"Seconds to merge two models of {num_bytes / 2**20:.0f} MiB in float32, against "
            "reading one and copying the other",
            ours=ours, baseline=other, unit="s", value=statistics.median(a / b for a, b in found[1:]),
            limit=None if settings.quick else LIMIT,
        )
    ]  # fmt: skip


def plain_copy(folder: Path, target: Path) -> None:
    with (folder / "right/model.safetensors").open("rb") as other:
        while other.read(CHUNK):
            pass
    with (folder / "left/model.safetensors").open("rb") as source, target.open("wb") as copy:
        while chunk := source.read(CHUNK):
            copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
