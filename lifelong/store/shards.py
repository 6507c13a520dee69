"""The tensors of a checkpoint, read one at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lifelong.store.checkpoint import Checkpoint


class Shards(Mapping[str, Any]):
    """Tensors below `prefix` by the rest of their names. Each is read from the disk when it is asked for
    and kept nowhere, so that a pass over all takes the memory of one or two.
    """

    def __init__(self, checkpoint: Path, prefix: str) -> None:
        self.checkpoint = Checkpoint(checkpoint)
        names = self.checkpoint.pieces
        self.names = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}

    def __getitem__(self, name: str) -> Any:
        return self.checkpoint.tensor(self.names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
