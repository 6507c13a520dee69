"""A graft: the few weights of a tuned model that are put into the model before tuning.

    theta(gamma) = before + gamma (tuned - before)
    gamma = m + (1 - 2 m) sigmoid(S - bias),   m = 1 where |tuned - before| is among the largest
    S <- S - rate (1 - 2 m) dL/dtheta (tuned - before) sig (1 - sig),   sig = sigmoid(S - bias)

Panigrahi et al. 2023, arXiv:2302.06600. With S at 0 and a bias of 10, gamma begins next to m, and a
weight enters or leaves the graft where the loss asks for it long enough. Weights are tensors by name;
nothing here needs a run.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def largest(changes: Weights, share: float) -> dict[str, Tensor]:
    """Bool by name: where |change| is above that of rank share * entries, over all tensors together. The
    entry of that rank and its equals are not.
    """
    sizes = torch.cat([each.abs().flatten() for each in changes.values()])
    rank = max(1, math.floor(share * len(sizes)))
    bound = sizes.kthvalue(len(sizes) - rank + 1).values
    return {name: each.abs() > bound for name, each in changes.items()}


def grafted(before: Weights, tuned: Weights, gamma: Weights) -> dict[str, Tensor]:
    """theta(gamma). Where gamma is bool every entry is that of one of the two models, to the bit."""
    found = {}
    for name, part in gamma.items():
        if part.dtype == torch.bool:
            found[name] = torch.where(part, tuned[name], before[name])
        else:
            found[name] = torch.lerp(before[name].float(), tuned[name].float(), part).to(before[name].dtype)
    return found


def gammas(masks: Weights, scores: Weights, bias: float) -> dict[str, Tensor]:
    """Between 0 and 1, float32."""
    found = {name: (scores[name] - bias).sigmoid() for name in masks}
    return {name: torch.where(mask, 1 - found[name], found[name]) for name, mask in masks.items()}


def descend(
    scores: Mapping[str, Tensor], masks: Weights, changes: Weights, slopes: Weights, bias: float, rate: float
) -> None:
    """One plain gradient step on the scores, in place; `slopes` are dL/dtheta."""
    for name, score in scores.items():
        sig = (score - bias).sigmoid()
        sign = torch.where(masks[name], -1.0, 1.0)
        score -= rate * sign * slopes[name].float() * changes[name] * sig * (1 - sig)


def learn(
    before: Weights,
    tuned: Weights,
    loss_of: Callable[[Weights], float],
    slopes_of: Callable[[Weights], Weights],
    share: float,
    passes: int,
    bias: float,
    rate: float,
) -> dict[str, Tensor]:
    """Bool by name: of all rounded grafts on the way, the one with the least loss; at first `largest`."""
    changes = {name: tuned[name].float() - before[name].float() for name in before}
    masks = largest(changes, share)
    scores = {name: torch.zeros_like(each) for name, each in changes.items()}
    best, least = masks, loss_of(grafted(before, tuned, masks))
    for _ in range(passes):
        slopes = slopes_of(grafted(before, tuned, gammas(masks, scores, bias)))
        descend(scores, masks, changes, slopes, bias, rate)
        rounded = {name: each > 0.5 for name, each in gammas(masks, scores, bias).items()}
        loss = loss_of(grafted(before, tuned, rounded))
        if loss < least:
            best, least = rounded, loss
    return best
