"""Is this like what came before? Autoencoders that know a kind of features, and jumps of a loss.

A descriptor is an autoencoder of one hidden layer, trained on features of one kind; its error on new
features, in standard deviations of its error on its own, says how far they are from that kind (Wang et
al. 2024, arXiv:2403.18886, section 3.3). Features are standardised per row first (mean 0, variance 1),
so that neither the scale of a network's hidden states nor one huge coordinate of them sets the pace.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Descriptor = dict[str, Tensor]  # "down" (h, H), "down_bias", "up" (H, h), "up_bias", "mean", "std", "count"


def train_descriptor(
    features: Tensor, width: int, epochs: int, learning_rate: float, momentum: float, weight_decay: float,
    batch_size: int, generator: torch.Generator,
) -> Descriptor:  # fmt: skip
    """A descriptor of `features` (n, H), by stochastic gradient descent; float32, on their device."""
    rows, size = features.shape
    made = {"down_bias": torch.zeros(width), "up_bias": torch.zeros(size)}
    for name, shape in (("down", (width, size)), ("up", (size, width))):
        bound = 1 / math.sqrt(shape[1])
        made[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    params = {name: nn.Parameter(tensor.to(features.device)) for name, tensor in made.items()}
    optimizer = torch.optim.SGD(
        params.values(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    with torch.enable_grad():
        for _ in range(epochs):
            for chosen in torch.randperm(rows, generator=generator).split(batch_size):
                errors(params, features[chosen.to(features.device)]).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    trained = {name: parameter.detach() for name, parameter in params.items()}
    own = errors(trained, features)
    spread = own.std() if rows > 1 else own.new_zeros(())
    return trained | {"mean": own.mean(), "std": spread, "count": torch.tensor(rows)}


def errors(descriptor: dict[str, Any], features: Tensor) -> Tensor:
    """(n,) mean squared error of reconstructing each row of (n, H)."""
    wanted = functional.layer_norm(features.float(), features.shape[-1:])
    inner = functional.relu(functional.linear(wanted, descriptor["down"], descriptor["down_bias"]))
    return (functional.linear(inner, descriptor["up"], descriptor["up_bias"]) - wanted).square().mean(-1)


def strangeness(descriptor: Descriptor, features: Tensor) -> Tensor:
    """(n,) standard deviations between the error of each row and the mean error on the descriptor's own
    rows; 0 where it has seen fewer than three.
    """
    found = errors(descriptor, features)
    if int(descriptor["count"]) < 3:
        return torch.zeros_like(found)
    return (found - descriptor["mean"]).abs() / descriptor["std"].clamp(min=1e-12)


def jump(losses: Sequence[float], recent: int) -> float:
    """How many standard errors the mean of the last `recent` losses lies above the mean of those before:
    about standard normal where nothing changed and losses are independent.
    """
    before, after = losses[: len(losses) - recent], losses[len(losses) - recent :]
    if len(before) < 2 or not after:
        return 0.0
    mean = sum(before) / len(before)
    variance = sum((each - mean) ** 2 for each in before) / (len(before) - 1)
    rise = sum(after) / len(after) - mean
    return rise / max(math.sqrt(variance * (1 / len(before) + 1 / len(after))), 1e-12)


def onset(losses: Sequence[float], recent: int) -> int:
    """How many of the last `recent` losses, counted from the end, lie nearer to the highest of them than to
    the mean of those before; at least 1.
    """
    before, after = losses[: len(losses) - recent], losses[len(losses) - recent :]
    middle = (sum(before) / len(before) + max(after)) / 2
    low = [place for place, each in enumerate(after, start=1) if each < middle]
    return max(recent - max(low, default=0), 1)
