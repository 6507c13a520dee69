"""One number for all weights of a network, so that an update is never put on other weights."""

from typing import TYPE_CHECKING

from lifelong.store.content import tensors_digest

if TYPE_CHECKING:
    from torch import nn


def fingerprint(network: "nn.Module") -> str:
    """Digest of every parameter and saved buffer, by name. Tied weights count once."""
    saved = network.state_dict(keep_vars=True)
    unique = {id(tensor): name for name, tensor in sorted(saved.items(), reverse=True)}
    return tensors_digest({name: saved[name] for name in unique.values()})
