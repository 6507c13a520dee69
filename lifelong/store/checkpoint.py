"""One checkpoint: tensors, plain values, checksums. What has not changed lies on the disk once.

    state.safetensors    tensors that no earlier checkpoint holds
    <checksum>.shared    state.safetensors of an earlier checkpoint, as a hard link
    pieces.json          the tensors that lie in shared files, wholly or as far as they had grown then
    state.json           plain values
    manifest.json        SHA-256 of the other files; the fingerprint of what they come from

A tensor is compared with the one of its name in the checkpoint before. Where it has the same bits it
is not written again; where it has grown along one dimension and begins with the same bits, what it
has grown by is written. So the sum over the stages of a method that keeps one low-rank pair per
stage grows with the stages, not with their square. Every folder is whole by itself: an earlier one
may go without harm to it. A file system without hard links gets copies.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lifelong.store.files import checksum, flushed_checksum, parse, read_json, sealed

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
OWN = "state.safetensors"
SMALL = 1024  # bytes; a smaller tensor is written again rather than looked up


class Pieces(NamedTuple):
    """A tensor is the files' tensors of its name, joined along `dim`."""

    files: list[str]
    dim: int


class Checkpoint:
    """Reads a checkpoint one tensor at a time."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.folder = folder
        self.parts: dict[str, str] = read_json(folder / "manifest.json")["parts"]
        known = read_json(folder / "pieces.json") if "pieces.json" in self.parts else []
        stored = [name for name in self.parts if not name.endswith(".json")]
        self._files = {name: safe_open(folder / name, framework="pt") for name in stored}
        self.pieces = {name: Pieces([OWN], 0) for name in self._files[OWN].keys()}
        for each in known:
            self.pieces |= {name: Pieces(each["files"], each["dim"]) for name in each["tensors"]}

    def tensor(self, name: str) -> "Tensor":
        import torch

        files, dim = self.pieces[name]
        found = [self._files[file].get_tensor(name) for file in files]
        return found[0] if len(found) == 1 else torch.cat(found, dim)

    def shared_as(self, file: str) -> str:
        """What one of its files is called in a later checkpoint."""
        return f"{self.parts[file][:16]}.shared" if file == OWN else file


def write_checkpoint(
    folder: Path, tensors: Mapping[str, "Tensor"], tree: Any, before: Path | None = None, run: str = ""
) -> None:
    """Into an empty folder. `before` is the checkpoint of the stage before, whole; `run` the fingerprint
    of the configuration so far.
    """
    import torch
    from safetensors.torch import save_file

    earlier = Checkpoint(before) if before else None
    own, pieces, shared = {}, {}, {}
    for name, tensor in tensors.items():
        own[name] = tensor.detach().contiguous()
        known = _begins(name, own[name], earlier) if earlier else None
        if known is None:
            continue
        length, (files, dim) = known
        shared |= {earlier.shared_as(file): file for file in files}
        pieces[name] = Pieces([earlier.shared_as(file) for file in files], dim)
        rest = own.pop(name).narrow(dim, length, tensor.shape[dim] - length)
        if rest.numel():
            own[name] = rest.clone(memory_format=torch.contiguous_format)
            pieces[name].files.append(OWN)
    save_file(own, folder / OWN)
    (folder / "state.json").write_text(json.dumps(tree), encoding="utf-8")
    names = [OWN, "state.json"]
    if pieces:
        (folder / "pieces.json").write_text(json.dumps(_grouped(pieces)), encoding="utf-8")
        names.append("pieces.json")
    parts = {name: flushed_checksum(folder / name) for name in names}
    for name, file in shared.items():
        link(earlier.folder / file, folder / name)
        parts[name] = earlier.parts[file]
    manifest = sealed({"format": FORMAT, "run": run, "parts": parts})
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _grouped(pieces: Mapping[str, Pieces]) -> list[dict[str, Any]]:
    """Most tensors are made of the same files; these are written once."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for name, (files, dim) in pieces.items():
        found.setdefault((dim, *files), []).append(name)
    return [{"files": files, "dim": dim, "tensors": names} for (dim, *files), names in found.items()]


def _begins(name: str, new: "Tensor", earlier: Checkpoint) -> tuple[int, Pieces] | None:
    """(length, the pieces of an earlier checkpoint that make the first `length` entries of a tensor along
    their dimension), or None where it has changed otherwise than by growing.
    """
    import torch

    if name not in earlier.pieces:
        return None
    old, (files, joined) = earlier.tensor(name), earlier.pieces[name]
    if old.dtype != new.dtype or old.dim() != new.dim() or old.numel() * old.element_size() < SMALL:
        return None
    dims = [dim for dim, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)) if a != b]
    dim = dims[0] if dims else joined
    if len(dims) > 1 or old.shape[dim] > new.shape[dim] or (len(files) > 1 and dim != joined):
        return None
    begun = new.narrow(dim, 0, old.shape[dim]).cpu().contiguous()
    same = torch.equal(*(each.contiguous().reshape(-1).view(torch.uint8) for each in (old, begun)))
    return (old.shape[dim], Pieces(files, dim)) if same else None


def read_checkpoint(folder: Path) -> tuple[dict[str, "Tensor"], Any]:
    """(tensors by path, plain values) of a checkpoint, as `write_checkpoint` got them."""
    found = Checkpoint(folder)
    return {name: found.tensor(name) for name in found.pieces}, read_json(folder / "state.json")


def broken(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        parts = parse(folder / "manifest.json")["parts"]
        for name in dict.fromkeys([OWN, "state.json", *parts]):
            if checksum(folder / name) != parts[name]:
                return f"{name} has another checksum"
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json: {type(error).__name__}, {error}"
    return None


def link(source: Path, target: Path) -> None:
    """A second name for a file that is never written in place; a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one that knows no links
        shutil.copy2(source, target)
