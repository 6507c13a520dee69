"""How far weights have moved: figures of one parameter, of a layer and of all.

norm             Frobenius norm of the difference
relative         norm / norm of the weight before
effective_rank   exp of the entropy of the singular values' shares; None where they are not given
moved            share of the entries that differ
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lifelong.numerics.spectrum import effective_rank

Sizes = Mapping[str, tuple[float, int]]  # norm and number of entries of every parameter before, by name


def sizes_of(params: Mapping[str, Tensor]) -> Sizes:
    return {name: (float(value.detach().float().norm()), value.numel()) for name, value in params.items()}


def figures(name: str, change: Tensor, sizes: Sizes, singular: Tensor | None = None) -> dict[str, Any]:
    """Of one parameter; `singular` values of the change, where they are known."""
    norm, whole = float(change.double().norm()), sizes.get(name, (0.0, change.numel()))[0]
    return {
        "name": name, "size": change.numel(), "norm": norm, "relative": norm / whole if whole else None,
        "effective_rank": effective_rank(singular) if singular is not None and change.any() else None,
        "moved": float((change != 0).float().mean()) if change.numel() else 0.0,
    }  # fmt: skip


def layer_of(name: str) -> str:
    """The block that a parameter lies in: its name up to the first number, or all of it."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[: number + 1]) if number is not None else name


def told(found: list[dict[str, Any]], sizes: Sizes) -> dict[str, Any]:
    """Figures of parameters, of the layers that they lie in, and of all."""
    layers: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        layers.setdefault(layer_of(each["name"]), []).append(each)
    return {
        "parameters": found,
        "layers": [_sum(name, members, sizes) for name, members in layers.items()],
        "total": _sum("all", found, sizes),
    }


def _sum(name: str, members: list[dict[str, Any]], sizes: Sizes) -> dict[str, Any]:
    """Of a layer: norms add in squares, ranks are averaged over its matrices, `moved` is of all entries."""
    norm = sum(each["norm"] ** 2 for each in members) ** 0.5
    inside = {key: each for key, each in sizes.items() if name == "all" or layer_of(key) == name}
    whole = sum(value**2 for value, _ in inside.values()) ** 0.5
    entries = {key: each for key, (_, each) in inside.items()} | {m["name"]: m["size"] for m in members}
    size = sum(entries.values())
    ranks = [each["effective_rank"] for each in members if each["effective_rank"]]
    return {
        "name": name, "size": size, "norm": norm, "relative": norm / whole if whole else None,
        "effective_rank": sum(ranks) / len(ranks) if ranks else None,
        "moved": sum(each["moved"] * each["size"] for each in members) / size if size else 0.0,
    }  # fmt: skip
