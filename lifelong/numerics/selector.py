"""Which expert's rows are these like? A uniform sample of rows by expert, and a linear classifier on it.

A sample is {"features": (n, H), "owners": (n,) number of the expert, "when": (n,) step, "count": rows
offered}, on the CPU. Features are standardised per row (mean 0, variance 1) wherever they are used.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lifelong.numerics import reservoir_sampling

Sample = dict[str, Any]
Selector = dict[str, Any]  # "weight" (E, H), "bias" (E,), "numbers": the E experts


def offered(sample: Sample | None, rows: Tensor, owner: int, when: int, size: int, seed: int) -> Sample:
    """The sample once `rows` (n, H) were offered: uniform over all rows so far."""
    kept = [] if sample is None else list(zip(*map(sample.get, ("features", "owners", "when")), strict=True))
    fresh = [(row, torch.tensor(owner), torch.tensor(when)) for row in rows]
    count = 0 if sample is None else sample["count"]
    count = reservoir_sampling.offer(kept, fresh, size, seed, count)
    features, owners, times = (torch.stack(parts) for parts in zip(*kept, strict=True))
    return {"features": features, "owners": owners, "when": times, "count": count}


def moved(sample: Sample, after: int, owner: int, dropped: int | None) -> Sample:
    """Rows taken later than the step `after` belong to `owner`; those of the expert `dropped` are gone."""
    sample = sample | {"owners": torch.where(sample["when"] > after, owner, sample["owners"])}
    stays = sample["owners"] != (-1 if dropped is None else dropped)
    return sample | {key: sample[key][stays] for key in ("features", "owners", "when")}


def fitted(sample: Sample, decay: float) -> Selector | None:
    """None where the sample is empty."""
    if not len(sample["owners"]):
        return None
    numbers, classes = sample["owners"].unique(return_inverse=True)
    weight, bias = softmax_regression(sample["features"], classes, len(numbers), decay)
    return {"weight": weight, "bias": bias, "numbers": numbers.tolist()}


def fitted_all(samples: dict[str, Sample], decay: float) -> dict[str, Selector]:
    found = {name: fitted(sample, decay) for name, sample in samples.items()}
    return {name: each for name, each in found.items() if each is not None}


def one_position(hidden: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """(B, H) on the CPU: one position of each row of (B, L, H), uniform over those that hold a token."""
    if hidden.dim() == 3:
        weights = torch.ones(hidden.shape[:2]) if mask is None else mask.float().cpu()
        at = torch.multinomial(weights, 1, generator=generator)[:, 0].to(hidden.device)
        hidden = hidden[torch.arange(len(hidden), device=hidden.device), at]
    return hidden.float().cpu()


def chosen(selector: Selector, features: Tensor) -> Tensor:
    """(...) index into `numbers` for features (..., H)."""
    inputs = functional.layer_norm(features.float(), features.shape[-1:])
    weight, bias = (selector[key].to(features.device) for key in ("weight", "bias"))
    return functional.linear(inputs, weight, bias).argmax(-1)


def chosen_numbers(selector: Selector, features: Tensor) -> Tensor:
    """(...) number of the expert for features (..., H)."""
    numbers = torch.tensor(selector["numbers"], device=features.device)
    return numbers[chosen(selector, features)]


def softmax_regression(
    features: Tensor, classes: Tensor, num_classes: int, decay: float
) -> tuple[Tensor, Tensor]:
    """Weight (C, H) and bias (C,) that minimise mean cross-entropy + decay / 2 * |weight|^2: convex, so
    the same wherever it starts. `features` (n, H) are standardised per row, `classes` (n,) int64.
    """
    inputs = functional.layer_norm(features.double(), features.shape[-1:])
    weight = nn.Parameter(torch.zeros(num_classes, features.shape[1], dtype=torch.float64))
    bias = nn.Parameter(torch.zeros(num_classes, dtype=torch.float64))
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(inputs @ weight.T + bias, classes) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return weight.detach().float(), bias.detach().float()
