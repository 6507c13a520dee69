"""What goes into modules and comes out of them, with the positions that are no padding.

A forward hook sees (B, L, ...) without knowing which positions are pads. `observe` reads the masks
where the body of the network is called: `attention_mask` (B, L) where there is one. The decoder of
an encoder-decoder is given none: there a position does not count if it reads a pad, or the end
token (labels end with it, so nothing is predicted from it); the first position always counts. Keys
and values of cross-attention read the encoder's states and have its mask. Modules whose rows are
not laid out as (B, L, ...), such as routed experts, count in full.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

See = Callable[[str, Tensor, Tensor, Tensor | None], None]  # name, input, output, real (B, L) or None


def observe(network: nn.Module, modules: Mapping[str, nn.Module], see: See) -> list[RemovableHandle]:
    """Call `see` after every call of one of `modules`; remove the handles to end it. `real` is None
    where every position counts.
    """
    roots = _roots(network)
    inside = {id(module): root for root, body in roots.items() for module in body.modules()}
    masks: dict[str, Tensor | None] = {}
    encoded: list[weakref.ref[Tensor]] = []  # what the encoder gave last

    def entering(root: str) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            masks[root] = _real(network.config, root, kwargs)

        return read

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        encoded[:] = [weakref.ref(output[0])]

    def watching(name: str, root: str) -> Callable[..., None]:
        def called(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            crosses = bool(encoded) and encoded[0]() is args[0]
            real = masks.get("encoder" if crosses else root)
            fits = real is not None and real.shape == output.shape[:-1]
            see(name, args[0], output, real if fits else None)

        return called

    handles = [
        body.register_forward_pre_hook(entering(root), with_kwargs=True) for root, body in roots.items()
    ]
    if "encoder" in roots:
        handles.append(roots["encoder"].register_forward_hook(leaving))
    for name, module in modules.items():
        handles.append(module.register_forward_hook(watching(name, inside.get(id(module), ""))))
    return handles


def _roots(network: nn.Module) -> dict[str, nn.Module]:
    """The modules that are given masks."""
    if network.config.is_encoder_decoder:
        return {"encoder": network.get_encoder(), "decoder": network.get_decoder()}
    return {"body": network.base_model}


def _real(config: Any, root: str, kwargs: Mapping[str, Any]) -> Tensor | None:
    """(B, L) bool, or None where nothing is padded (or nobody says so)."""
    mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool()
    if root != "decoder" or ids is None:
        return None
    special = [token for token in (config.pad_token_id, config.eos_token_id) if token is not None]
    real = ~torch.isin(ids, torch.tensor(special, device=ids.device))
    real[:, 0] = True
    return real
