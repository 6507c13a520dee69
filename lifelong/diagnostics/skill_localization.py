"""Skill localization: how few of the tuned weights carry what a stage has taught?

A graft puts some weights of the tuned model into the pretrained one (see numerics.graft): it begins
with the `share` of weights that have moved most and learns on rows of the stage, by plain gradient
steps, which enter and leave. Panigrahi et al. 2023, arXiv:2302.06600: 0.01 % of the weights
brought back over 95 % of what tuning had gained.

    recovered = (figure of the graft - pretrained) / (tuned - pretrained)     on the stage's own sets

Weights are what modules compute with all that a tuner adds beside them, so that low-rank updates count
by entry as well; where a module is routed there is no such weight, and only their number is told. Figures
are means over the stage's sets, more is better; a label head, where there is one, is the tuned model's in
all three. The tuned network itself is read and never written.

Choices here: one gradient step for every pass over `num_examples` rows; the best graft is that with
the least loss on the same rows, rounded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from lifelong.core import head
from lifelong.core.axes import Batch, Context, Diagnostic
from lifelong.core.evaluation import candidates, judge
from lifelong.core.settings import Range
from lifelong.numerics import graft, low_rank
from lifelong.numerics.swap import differentiating, swapped
from lifelong.numerics.twin import placed


@dataclass(frozen=True, kw_only=True)
class SkillLocalization(Diagnostic):
    """Find the few weights that carry what a stage has taught, and judge them alone."""

    paper: ClassVar[str] = "Panigrahi et al. 2023, arXiv:2302.06600"
    cost: ClassVar[str] = (
        "after each stage `passes` times two forward and one backward pass over num_examples rows, three "
        "evaluations of the stage's sets, and six copies of the weights that moved"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "gamma 0 is the pretrained and gamma 1 the tuned model, to the bit",
        "as many weights are in at first as exceed the threshold: one fewer than the share",
        "a step equals the gradient by autograd; finds weights that matter though they moved little",
        "changes no bit of a run",
    )
    title: ClassVar[str] = "Skill localization (graft)"
    needs_base: ClassVar[bool] = True

    share: Annotated[float, Range(0, 1, open_low=True)] = 0.0001  # of the weights, in the first graft
    passes: Annotated[int, Range(0)] = 10  # gradient steps; 0: the weights that moved most
    num_examples: Annotated[int, Range(1)] = 64  # rows of the stage that it learns from, at most
    batch_size: Annotated[int, Range(1)] = 8  # rows per pass through the network
    learning_rate: Annotated[float, Range(0)] = 1e7  # of the scores S; large, since sig (1 - sig) is small
    bias: float = 10.0  # of the scores

    def measure(self, context: Context) -> dict[str, float]:
        if not context.stream.stages[context.stage].evals:
            return {}
        names = [name for name, _ in context.base.named_parameters()]
        now = low_rank.computed_weights(context.model.network, names, context.routed)
        skipped = sum(value is None for value in now.values())
        if skipped:
            return {"left out": float(skipped)}
        with placed(context.base, context.model.device) as base, wearing(base, context.model.network):
            whole = sum(parameter.numel() for name, parameter in base.named_parameters() if name in now)
            params = {n: p for n, p in base.named_parameters() if n in now and not p.equal(now[n].to(p))}
            if not params:
                return {"share %": 0.0, "pretrained": (figure := _figure(context, base)), "tuned": figure}
            before = {name: parameter.detach() for name, parameter in params.items()}
            tuned = {name: now[name].to(before[name]) for name in params}
            loss_of, slopes_of = self._asked(context, base, params)
            mask = graft.learn(before, tuned, loss_of, slopes_of, self.share, self.passes, self.bias,
                               self.learning_rate)  # fmt: skip
            with swapped(params, graft.grafted(before, tuned, mask)):
                found = {"graft": _figure(context, base)}
            found = {
                "pretrained": _figure(context, base),
                "tuned": _figure(context, context.model.network),
                **found,
            }
        gained = found["tuned"] - found["pretrained"]
        recovered = {"recovered": (found["graft"] - found["pretrained"]) / gained} if gained else {}
        return {"share %": 100 * sum(int(each.sum()) for each in mask.values()) / whole, **found, **recovered}

    def _asked(
        self, context: Context, base: nn.Module, params: dict[str, nn.Parameter]
    ) -> tuple[Callable[[graft.Weights], float], Callable[[graft.Weights], graft.Weights]]:
        """Mean loss per labelled position of the chosen rows, and its gradient, with other weights."""
        generator = torch.Generator().manual_seed(context.seed)
        order = torch.randperm(len(context.examples), generator=generator)[: self.num_examples].tolist()
        groups = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        batches = [b for group in groups for b in context.batches([context.examples[i] for i in group])]
        number = sum(context.objective.labelled(batch) for batch in batches)

        def loss(batch: Batch) -> Tensor:
            with context.autocast():
                return context.objective.loss(context.objective.forward(base, batch)).sum() / number

        def loss_of(weights: graft.Weights) -> float:
            with torch.no_grad(), swapped(params, weights):
                return sum(float(loss(batch)) for batch in batches)

        def slopes_of(weights: graft.Weights) -> graft.Weights:
            found = {name: torch.zeros_like(each, dtype=torch.float32) for name, each in weights.items()}
            with torch.enable_grad(), swapped(params, weights), differentiating(base, params):
                for batch in batches:
                    slopes = torch.autograd.grad(loss(batch), list(params.values()), allow_unused=True)
                    for total, slope in zip(found.values(), slopes, strict=True):
                        total += 0 if slope is None else slope.float()
            return found

        return loss_of, slopes_of


@contextmanager
def wearing(base: nn.Module, network: nn.Module) -> Iterator[None]:
    """Inside, the base has the label head of the network, where there is one."""
    worn = head.find(network)
    if worn is not None:
        base.add_module(head.NAME, worn)
    try:
        yield
    finally:
        if worn is not None:
            delattr(base, head.NAME)


def _figure(context: Context, network: nn.Module) -> float:
    """Mean over the stage's evaluation sets."""
    own = context.stream.stages[context.stage].evals
    answering = context.model.answering if network is context.model.network else None
    model = replace(context.model, network=network, answering=answering)
    with context.autocast():
        found = [judge(model, each, candidates(context.stream, each, context.stage + 1))[0] for each in own]
    return sum(each["benefit"] for each in found) / len(found)
