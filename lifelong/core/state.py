"""What a method remembers: nested dicts and lists of tensors and plain values.

`split` separates a state into named tensors and a JSON tree, so that any state is saved as
safetensors plus JSON and comes back equal to the last bit; `join` is its inverse.
"""

from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]

_TENSOR = "__tensor__"


def split(state: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """(tensors by path, the same tree with each tensor replaced by a reference to its path)."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node.detach()
            return {_TENSOR: path}
        if isinstance(node, dict):
            for key in node:
                if not isinstance(key, str):
                    raise TypeError(f"state key {key!r} at '{path}' must be a string")
            return {key: walk(value, f"{path}/{key}" if path else key) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return [walk(value, f"{path}/{index}") for index, value in enumerate(node)]
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise TypeError(f"state at '{path}' holds a {type(node).__name__}; use tensors and plain values")

    return tensors, walk(state, prefix)


def join(tensors: dict[str, Tensor], tree: Any) -> Any:
    """Inverse of `split`; tuples come back as lists."""
    if isinstance(tree, dict):
        if set(tree) == {_TENSOR}:
            return tensors[tree[_TENSOR]]
        return {key: join(tensors, value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [join(tensors, value) for value in tree]
    return tree


def copy(state: Any) -> Any:
    """Deep copy in which no tensor shares memory with the original."""
    tensors, tree = split(state)
    return join({name: tensor.clone() for name, tensor in tensors.items()}, tree)


def equal(left: Any, right: Any) -> bool:
    """Same tree and bit-identical tensors (dtype and shape included; NaN equals NaN)."""
    (tensors, tree), (others, other) = split(left), split(right)
    return tree == other and all(same_bits(tensor, others[name]) for name, tensor in tensors.items())


def same_bits(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    raw = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (left, right)]
    return bool(torch.equal(*raw))


def moved(state: Any, device: torch.device) -> Any:
    """The same state with every tensor on `device`."""
    tensors, tree = split(state)
    return join({name: tensor.to(device) for name, tensor in tensors.items()}, tree)


def num_bytes(state: Any) -> int:
    """Tensors by their storage; text and numbers as their JSON would take, about."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(num_bytes(value) for value in state.values())
    if isinstance(state, (list, tuple)):
        return sum(num_bytes(value) for value in state)
    return len(state.encode()) if isinstance(state, str) else 4


def fitted(value: Tensor, parameter: Tensor) -> Tensor:
    """A moment in the shape of its parameter: the leading block is kept, the rest is zero."""
    if value.dim() == 0 or value.shape == parameter.shape:
        return value
    grown = value.new_zeros(parameter.shape)
    block = tuple(slice(min(a, b)) for a, b in zip(value.shape, parameter.shape, strict=True))
    grown[block] = value[block]
    return grown
