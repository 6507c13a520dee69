"""One number for all weights of a network, so that an update is never put on other weights."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def fingerprint(network: "nn.Module") -> str:
    """SHA-256 over name, shape, type and bytes of every parameter and saved buffer, by name.

    Tied weights count once. The type counts: the same values in another precision are other bytes.
    About 0.5 s per gigabyte where the processor has SHA instructions.
    """
    import torch

    saved = network.state_dict(keep_vars=True)
    unique = {id(tensor): name for name, tensor in sorted(saved.items(), reverse=True)}
    digest = hashlib.sha256()
    for name in sorted(unique.values()):
        tensor = saved[name].detach()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(memoryview(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
