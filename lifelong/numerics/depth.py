"""How deep in a network a parameter lies, for any architecture."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn


class Depth(NamedTuple):
    block: Mapping[str, int]  # index of the block by the prefix of its parameters' names
    count: int  # blocks in all
    beside: Mapping[str, int]  # block before each parameter that lies outside; the first where none is

    def of(self, name: str) -> int | None:
        """Block of a parameter; None outside all blocks (embeddings, last norm, heads)."""
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            found = self.block.get(".".join(parts[:end]))
            if found is not None:
                return found
        return None

    def nearest(self, name: str) -> int:
        """Its block, or for a parameter outside the one before it."""
        index = self.of(name)
        return self.beside.get(name, 0) if index is None else index

    def share(self, name: str) -> float | None:
        """0 at the first block, 1 at the last (also where there is one only); None outside."""
        index = self.of(name)
        if index is None:
            return None
        return index / (self.count - 1) if self.count > 1 else 1.0


def depth(network: nn.Module) -> Depth:
    """Blocks are the members of the outermost lists of modules, in the order in which the network holds
    them: an encoder's before its decoder's. Lists inside a block (experts, layers of a block) are part
    of it.
    """
    found: dict[str, int] = {}
    outer: list[str] = []
    for name, module in network.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{each}.") for each in outer):
            continue
        outer.append(name)
        for number in range(len(module)):
            found[f"{name}.{number}"] = len(found)
    made = Depth(found, len(found), {})
    beside, last = {}, 0
    for name, _ in network.named_parameters():
        index = made.of(name)
        last = last if index is None else index
        if index is None:
            beside[name] = last
    return made._replace(beside=beside)
