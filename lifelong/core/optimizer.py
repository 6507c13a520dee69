"""The optimiser of a stage, begun afresh at each."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lifelong.core.stream import Optimization


def optimizer(params: Iterable[Tensor], settings: Optimization) -> torch.optim.Optimizer:
    """One group of all parameters. `sgd` adds weight_decay times the weight to the gradient (no decoupled
    decay, as `adamw` has) and with momentum 0 keeps nothing between steps.
    """
    shared = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(list(params), momentum=settings.momentum, **shared)
    return torch.optim.AdamW(list(params), betas=(settings.beta1, settings.beta2), **shared)
