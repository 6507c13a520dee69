"""A second tree of modules over the weights of a network: what it was before anything is added to it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def twin(network: nn.Module, share: bool) -> nn.Module:
    """The network as it is, in evaluation mode. Hooks and modules that the original gets later are not in
    it. With `share` both trees read the same memory; else the weights are copies, on the CPU.
    """
    made = {
        id(p): nn.Parameter(p.detach() if share else p.detach().cpu().clone(), requires_grad=False)
        for p in network.parameters()
    }
    found = copy.deepcopy(network, made).eval()
    return found if share else found.cpu()


@contextmanager
def placed(network: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Inside, a twin is on the device; afterwards where it was."""
    home = next(network.parameters()).device
    try:
        yield network.to(device)
    finally:
        network.to(home)
