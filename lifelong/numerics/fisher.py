"""Diagonal Fisher information of a network's answers.

    F_i = 1/n sum_x (d log p(y|x) / d theta_i)^2,  log p(y|x) = sum over labelled positions of x

    empirical: y as given in the data; true: y drawn from the model, one sample per position

(Kunstner et al. 2019, arXiv:1905.12558, eqs. 2 and 3.) The gradient of each example is squared, not
that of a batch mean, so the figure does not depend on the batch size.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lifelong.errors import UserError
from lifelong.numerics.per_example import PerExample, Scores

if TYPE_CHECKING:
    from lifelong.core.axes import Batch, Context, Outputs


def diagonal_fisher(
    context: "Context", kind: Literal["empirical", "true"], num_examples: int, batch_size: int, seed: int
) -> dict[str, Tensor]:
    """Mean squared score of `num_examples` examples drawn without repeats, float32, by name.

    The same for every batch size up to rounding: which examples are taken and which labels are
    sampled depends on (seed, stage, example) alone.
    """
    model, objective, batches = context.model, context.objective, context.batches
    if model is None or objective is None or batches is None or not len(context.examples):
        raise UserError(
            "importance is measured on the stage's examples: give Context(model=..., objective=..., "
            "examples=[at least one], batches=...)."
        )
    series = PerExample(model.network, context.params)
    total = {
        name: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for name, p in context.params.items()
    }
    chosen = _chosen(context, num_examples, seed)
    for numbers, batch in _pieces(context, chosen, batch_size):
        keys = [f"{seed}/{context.stage}/{number}" for number in numbers] if kind == "true" else None

        def scores(batch: "Batch" = batch, num: int = len(numbers), keys: list[str] | None = keys) -> Scores:
            with context.autocast():
                outputs = objective.forward(model.network, batch)
            return Scores(log_likelihoods(outputs, num, keys), outputs.owners)

        for name, squares in series.squared_sum(scores).items():
            total[name] += squares
    for name, value in total.items():
        value /= len(chosen)
        if not torch.isfinite(value).all():
            raise UserError(
                f"importance of `{name}` is not finite after stage {context.stage}: the gradient of an "
                "example overflowed; lower the learning rate or keep this parameter in float32."
            )
    return total


def log_likelihoods(outputs: "Outputs", num: int, keys: Sequence[str] | None = None) -> Tensor:
    """(num,) log-likelihood of each example; with `keys` (one per example) of sampled labels."""
    log_p = torch.log_softmax(outputs.logits.float(), dim=-1)
    targets = outputs.targets if keys is None else _sampled(log_p.detach(), outputs.owners, keys)
    taken = log_p.gather(-1, targets[:, None])[:, 0]
    return taken.new_zeros(num).index_add(0, outputs.owners, taken)


def _sampled(log_p: Tensor, owners: Tensor, keys: Sequence[str]) -> Tensor:
    """(N,) labels by inverting the distribution function, with each example's own generator."""
    uniform = torch.empty(len(owners), dtype=torch.float64)
    on_cpu = owners.cpu()
    for index, key in enumerate(keys):
        mine = (on_cpu == index).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(_number(key))
        uniform[mine] = torch.rand(len(mine), dtype=torch.float64, generator=generator)
    below = log_p.double().exp().cumsum(-1)
    wanted = uniform.to(log_p.device)[:, None] * below[:, -1:]  # rounding: the last sum is not quite 1
    return torch.searchsorted(below, wanted, right=True)[:, 0].clamp(max=log_p.shape[-1] - 1)


def _number(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def _chosen(context: "Context", num_examples: int, seed: int) -> list[int]:
    """The first of a permutation, by length so that little of a batch is padding."""
    generator = torch.Generator().manual_seed(_number(f"{seed}/{context.stage}"))
    order = torch.randperm(len(context.examples), generator=generator)[:num_examples].tolist()
    return sorted(order, key=lambda number: context.objective.length(context.examples[number]))


def _pieces(context: "Context", chosen: list[int], batch_size: int) -> Iterator[tuple[list[int], Any]]:
    """(numbers of the examples, their batch). `Context.batches` may cut smaller, in the given order."""
    for start in range(0, len(chosen), batch_size):
        numbers = chosen[start : start + batch_size]
        made = list(context.batches([context.examples[number] for number in numbers]))
        if len(made) == 1:
            yield numbers, made[0]
            continue
        for batch in made:
            size = len(next(iter(batch.values())))
            yield numbers[:size], batch
            numbers = numbers[size:]
        assert not numbers, "Context.batches left examples out"
