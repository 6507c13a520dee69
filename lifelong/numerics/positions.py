"""Hidden states of any transformer, and which of their positions are real.

Layers are found by structure, not by name: they are the members of the outermost module lists.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

IGNORED = -100  # label of a position that is not learned


def outermost_lists(network: nn.Module) -> list[str]:
    """Names of the module lists that stand in no other: the stacks of a transformer."""
    lists = [name for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    return [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """Members of the outermost module lists, by name: the layers of a transformer."""
    return {
        f"{name}.{index}": layer
        for name in outermost_lists(network)
        for index, layer in enumerate(network.get_submodule(name).children())
    }


@contextmanager
def layer_outputs(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects the hidden states (B, L, H) that each layer gives inside, by the layer's name."""
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, (tuple, list)) else output
            if isinstance(first, Tensor) and first.dim() == 3:
                found[name] = first

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers(network).items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def real_positions(
    hidden: Tensor, batch: Mapping[str, Tensor], encoder_decoder: bool, labelled: bool = False
) -> Tensor:
    """(B, L) bool: positions of `hidden` (B, L, H) that are no pads; with `labelled`, in a decoder,
    those alone that carry a label.

    In an encoder-decoder the two sides are told apart by their lengths; where these are equal, a
    position counts if it is real on either side.
    """
    shape = hidden.shape[:2]
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    read = mask.bool() if mask is not None and mask.shape == shape else None
    learned = labels != IGNORED if labels is not None and labels.shape == shape else None
    if not encoder_decoder and not labelled:
        learned = None
    if read is None and learned is None:
        return torch.ones(shape, dtype=torch.bool, device=hidden.device)
    if read is None or learned is None:
        return learned if read is None else read
    return read | learned if encoder_decoder else read & learned
