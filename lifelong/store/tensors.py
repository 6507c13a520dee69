"""Writing safetensors one tensor at a time: the sizes are known before the first value is."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Slot = dict[str, Any]  # of a header: dtype, shape, data_offsets


def read_header(file: Path) -> tuple[dict[str, Slot], dict[str, str]]:
    """(slots by name, metadata) of a file; no tensor is read."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    metadata = header.pop("__metadata__", {})
    return header, metadata


def write_tensors(
    file: Path, slots: Mapping[str, Slot], metadata: Mapping[str, str], tensors: Iterable["Tensor"]
) -> None:
    """`tensors` come in the order of the slots' offsets; one is held at a time."""
    import torch

    order = sorted(slots, key=lambda name: slots[name]["data_offsets"])
    head = json.dumps({"__metadata__": dict(metadata)} | {name: slots[name] for name in order}).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for name, tensor in zip(order, tensors, strict=True):
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            begin, end = slots[name]["data_offsets"]
            assert raw.nbytes == end - begin, f"{name} has another size than its slot"
            stream.write(memoryview(raw))
        stream.flush()
        os.fsync(stream.fileno())
