"""Two plain models of one architecture become one: the straight line between their weights.

    weight = left + share * (right - left)        in float32, rounded once to the type of `left`

Files are read and written one tensor at a time, so memory is a few tensors, whatever the models are.
Share 0 gives the bits of `left`, share 1 those of `right`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lifelong.errors import UserError
from lifelong.models.heads import NAME
from lifelong.models.routed import is_routed
from lifelong.store.files import read_json, whole_folder
from lifelong.store.tensors import read_header, write_tensors

HEAD = f"{NAME}.json"  # labels of a head beside the weights
Places = dict[str, Path]  # file that holds a tensor, by its name


def merge_models(left: str | Path, right: str | Path, output: str | Path, share: float = 0.5) -> Path:
    """Write the model at `share` of the way from `left` to `right`, with all else as in `left`.

    Raises UserError where a folder is no plain model, where the two do not have the same tensors, or
    where `output` is in use.
    """
    left, right, output = Path(left), Path(right), Path(output)
    if not 0 <= share <= 1:
        raise UserError(f"merge: share must be in [0, 1]; got {share:g}.")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} exists and is no empty folder; name another one.")
    mine, theirs = _files(left), _files(right)
    partners = {name: file for file, slots in theirs.items() for name in slots}
    _check(mine, theirs, left, right)
    _check_beside(left, right)
    with whole_folder(output) as folder:
        for each in left.iterdir():
            if each.is_file() and each not in mine:
                shutil.copy2(each, folder / each.name)
        for file, slots in mine.items():
            _, metadata = read_header(file)
            write_tensors(folder / file.name, slots, metadata, _between(file, slots, partners, share))
    return output


def _files(folder: Path) -> dict[Path, dict[str, Any]]:
    """Headers of the files of a plain model."""
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise UserError(
            f"merge: {folder} is no model folder with safetensors. A stage of a run becomes one with "
            "`lifelong export RUN_FOLDER OUTPUT --stage NAME`."
        )
    try:
        return {file: read_header(file)[0] for file in files}
    except (ValueError, OverflowError, MemoryError) as error:
        raise UserError(f"merge: {folder} is damaged ({type(error).__name__}: {error}).") from None


def _check(mine: dict[Path, Any], theirs: dict[Path, Any], left: Path, right: Path) -> None:
    shapes = [
        {n: s["shape"] for slots in found.values() for n, s in slots.items()} for found in (mine, theirs)
    ]
    odd = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    if odd:
        raise UserError(
            f"merge: {left} and {right} are not two states of one model: {len(odd)} weights differ in shape "
            f"or are in one of them only, first `{odd[0]}`."
        )


def _check_beside(left: Path, right: Path) -> None:
    for folder in (left, right):
        if is_routed(folder):
            raise UserError(f"merge: {folder} has a tuner beside its base, which has no straight line.")
    labels = [read_json(each) if each.exists() else None for each in (left / HEAD, right / HEAD)]
    if labels[0] != labels[1]:
        raise UserError(f"merge: the label heads of {left} and {right} are for other labels.")


def _between(file: Path, slots: dict[str, Any], partners: Places, share: float) -> Iterator[Tensor]:
    with safe_open(file, framework="pt") as own:
        opened: dict[Path, Any] = {}
        for name in sorted(slots, key=lambda each: slots[each]["data_offsets"]):
            there = partners[name]
            if there not in opened:
                opened[there] = safe_open(there, framework="pt")
            yield _lerp(own.get_tensor(name), opened[there].get_tensor(name), share)


def _lerp(left: Tensor, right: Tensor, share: float) -> Tensor:
    if not left.is_floating_point():
        return left if share < 0.5 else right.to(left.dtype)
    return torch.lerp(left.float(), right.float(), share).to(left.dtype)
