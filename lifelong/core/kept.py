"""Features that were computed already, of a network whose body stands still.

A head on a body that never moves is judged after every stage on the same batches. What the body makes of
one is kept under the digest of the batch as it enters the network, and of all else that its bits may depend
on; so what is found has the bits of the pass that it stands for. Features of another body are dropped.

Kept are at most LIMIT_BYTES, in the memory of the host: 87,000 rows of 384 float32 features. What does not
fit is computed every time: evaluation sets come round in the same order, where to drop the oldest in favour
of the newest would be to find nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lifelong.core.values import Batch
from lifelong.store.content import tensors_digest

LIMIT_BYTES = 2**27


class Kept:
    """Features by batch. Copies of a model share one, so that runs on copies do as well."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes, self.num_bytes = limit_bytes, 0
        self._found: dict[str, Tensor] = {}
        self._body = ""  # digest of the weights that all of it belongs to
        self._marks: list[tuple[int, int]] = []  # where they lie, and how often they were written

    def recall(
        self, network: nn.Module, head: nn.Module, batch: Batch, asked: str, compute: Callable[[], Tensor]
    ) -> Tensor:
        """What `compute` makes of a batch (on the host) by `network` without its `head`."""
        device = next(network.parameters()).device
        self._look_at(network, head)
        key = f"{tensors_digest(batch)} {asked} {_conditions(network, device)}"
        if key in self._found:
            return self._found[key].to(device)
        made = compute()
        if self.num_bytes + made.nbytes <= self.limit_bytes:
            self._found[key] = made.detach().cpu().clone()
            self.num_bytes += made.nbytes
        return made

    def look_again(self) -> None:
        """The weights are read before the next features are looked up: a run begins."""
        self._marks = []

    def _look_at(self, network: nn.Module, head: nn.Module) -> None:
        """Drop all that another body made. Inside a run weights are read again where they were written or
        exchanged; what goes by `.data` past the count of writes is the tuner's promise (`keeps_body`).
        """
        own = {id(each) for each in (*head.parameters(), *head.buffers())}
        named = (*network.named_parameters(), *network.named_buffers())
        body = {name: each for name, each in named if id(each) not in own}
        marks = [(each.data_ptr(), each._version) for each in body.values()]
        if marks == self._marks:
            return
        digest = tensors_digest(body)
        if digest != self._body:
            self._found.clear()
            self._body, self.num_bytes = digest, 0
        self._marks = marks


def _conditions(network: nn.Module, device: torch.device) -> str:
    """What a pass may round differently by."""
    lower = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    attention = network.config._attn_implementation
    return f"{device} {lower} {attention} {torch.get_num_threads()} {torch.get_float32_matmul_precision()}"
