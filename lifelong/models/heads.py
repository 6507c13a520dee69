"""The label head of an encoder beside its checkpoint: lifelong_head.safetensors and .json."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lifelong.errors import UserError
from lifelong.store.files import write_json

if TYPE_CHECKING:
    from torch import nn

NAME = "lifelong_head"


def write_head(network: "nn.Module", folder: Path) -> None:
    """Nothing is written where the network has no head."""
    from safetensors.torch import save_file

    head = dict(network.named_children()).get(NAME)
    if head is None:
        return
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in head.state_dict().items()}
    save_file(tensors, folder / f"{NAME}.safetensors")
    write_json(folder / f"{NAME}.json", {"labels": head.labels})


def read_head(network: "nn.Module", folder: Path) -> bool:
    """Put the head on the network where the folder has one."""
    from safetensors.torch import load_file
    from torch import nn

    from lifelong.core.head import LabelHead

    file = folder / f"{NAME}.safetensors"
    if not file.is_file():
        return False
    tensors = load_file(file)
    labels = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["labels"]
    rows, width = tensors["weight"].shape
    expansion = tensors.get("expansion")
    if rows != len(labels):
        raise UserError(f"model: {file} has {rows} rows for {len(labels)} labels; export it again.")
    head = LabelHead(width, next(network.parameters()).device, expansion)
    network.add_module(NAME, head)
    head.labels, head.current = labels, list(range(rows))
    head.weight, head.bias = (nn.Parameter(tensors[key].to(head.weight.device)) for key in ("weight", "bias"))
    return True
