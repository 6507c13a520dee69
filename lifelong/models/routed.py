"""What a tuner learned, beside the plain base that it acts on: lifelong_tuner.safetensors and .json.

The JSON holds the tuner's name and settings, the plain values of its state, and the fingerprint of
the base, so that the parts are put together again or not at all.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lifelong.errors import UserError
from lifelong.models.sources import plain_errors
from lifelong.store.files import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

NAME = "lifelong_tuner"


class Learned(NamedTuple):
    tuner: str  # name of the method
    settings: dict[str, Any]
    state: dict[str, Any]
    params: Mapping[str, "Tensor"]  # trainable parameters, those of a label head left out
    base: str  # fingerprint of the base's weights


def write_learned(learned: Learned, folder: Path) -> None:
    from safetensors.torch import save_file

    from lifelong.core import state as states

    tensors, tree = states.split({"state": learned.state, "params": dict(learned.params)})
    plain = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, folder / f"{NAME}.safetensors", metadata={"format": "pt"})
    about = {"tuner": learned.tuner, "settings": learned.settings, "base": learned.base, "content": tree}
    write_json(folder / f"{NAME}.json", about)


def is_routed(folder: str | Path) -> bool:
    return (Path(folder) / f"{NAME}.json").is_file()


def read_learned(folder: Path) -> Learned:
    from safetensors.torch import load_file

    from lifelong.core import state as states

    about = read_json(folder / f"{NAME}.json")
    try:
        with plain_errors(str(folder / f"{NAME}.safetensors"), local=True):
            tensors = load_file(folder / f"{NAME}.safetensors")
        content = states.join(tensors, about["content"])
        return Learned(about["tuner"], about["settings"], content["state"], content["params"], about["base"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: {NAME}.json and .safetensors do not fit each other ({error}).") from None
