"""Adaptive model averaging: a share of a stage's update is kept, more of it in layers where it matters.

    theta(a) = before + a_g * (after - before) in layer group g of K,   mean of a_g = alpha
    minimise over a:  mean of KL(answers after || answers of theta(a)) on rows of the stage

Lin et al. 2024, arXiv:2309.06256 (the alignment tax): plain averaging holds more of the old than
penalties or replay do, and low layers gain most by it. The ratios are learned by distillation from
the model after the stage, under the constraint on their mean. K = 1 is plain averaging.

Open choices (the paper leaves the optimiser open): steps along the normalised gradient, projected on
{mean alpha, 0 <= a_g <= 1}, each shorter than the last; the best point met is taken; all steps see
the same rows. Groups have equal numbers of blocks; what lies outside the blocks goes with the block
before it (embeddings with the first), and the rows of a growing head are kept as trained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core import head
from lifelong.core.axes import Batch, Context, Merger
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.depth import depth
from lifelong.numerics.distillation import kl_divergence
from lifelong.numerics.segment import Segment, ends
from lifelong.numerics.simplex import projected
from lifelong.numerics.swap import evaluating


@dataclass(frozen=True, kw_only=True)
class Ama(Merger):
    """Average the models before and after a stage, with ratios learned per group of layers."""

    paper: ClassVar[str] = "Lin et al. 2024, arXiv:2309.06256"
    cost: ClassVar[str] = "steps passes over num_examples rows, forward and back; 3 copies of trained weights"
    verified: ClassVar[tuple[str, ...]] = (
        "the mean of the ratios is alpha to 1e-9; one group equals plain averaging",
        "learned ratios answer more like the model after the stage than equal ones do",
        "alpha 1 changes no bit",
    )

    alpha: Annotated[float, Range(0, 1)] = 0.5  # mean share of the update that is kept
    num_groups: Annotated[int, Range(1)] = 3  # K, of layers by depth
    steps: Annotated[int, Range(0)] = 10  # of the optimisation; 0 keeps all ratios equal
    step_size: Annotated[float, Range(0, open_low=True)] = 0.2  # length of the first step, in ratios
    num_examples: Annotated[int, Range(1)] = 64  # rows of the stage that answers are compared on
    batch_size: Annotated[int, Range(1)] = 8  # rows per pass

    def init(self, context: Context) -> State:
        return {"before": None, "ratios": []}

    def begin_stage(self, context: Context, state: State) -> State:
        return {**state, "before": {name: p.detach().clone() for name, p in context.params.items()}}

    def end_stage(self, context: Context, state: State) -> State:
        """State: {"ratios": [those of each finished stage]}."""
        group = self.groups(context)
        before = {name: value.to(context.params[name].device) for name, value in state["before"].items()}
        ratios = [self.alpha] * self.num_groups
        if self.num_groups > 1 and self.steps and 0 < self.alpha < 1:
            ratios = self._learned(context, before, group)

        def ratio(name: str) -> float:
            number = group(name)
            return 1.0 if number is None else ratios[number]

        context.tuner_state = context.tuner.interpolate(context, context.tuner_state, before, ratio)
        return {"before": None, "ratios": [*state["ratios"], ratios]}

    def groups(self, context: Context) -> Callable[[str], int | None]:
        """Group of a parameter by name; None for the growing head."""
        depths = depth(context.model.network)

        def group(name: str) -> int | None:
            if name.startswith(head.NAME):
                return None
            return depths.nearest(name) * self.num_groups // max(depths.count, 1)

        return group

    def _learned(
        self, context: Context, before: dict[str, Tensor], group: Callable[[str], int | None]
    ) -> list[float]:
        """The weights are left as they were after the stage."""
        network, tuner = context.model.network, context.tuner
        ground, after = ends(
            context.params,
            lambda: tuner.interpolate(context, context.tuner_state, before, lambda name: 0.0),
        )
        batches = self._batches(context)
        with torch.no_grad(), evaluating(network), context.autocast():
            wanted = [context.objective.forward(network, batch).logits for batch in batches]
        segment = Segment(network, context.params, ground, after, group)
        point = torch.full((self.num_groups,), self.alpha, dtype=torch.float64)
        best, lowest = point, float("inf")
        for step in range(self.steps + 1):
            segment.move(point)
            total, slope = 0.0, torch.zeros_like(point)
            for batch, answers in zip(batches, wanted, strict=True):

                def loss(batch: Batch = batch, answers: Tensor = answers) -> Tensor:
                    with context.autocast():
                        logits = context.objective.forward(network, batch).logits
                    return kl_divergence(logits, answers, 1.0).sum()

                value, found = segment.slopes(loss, self.num_groups)
                total, slope = total + value, slope + found
            if total < lowest:
                best, lowest = point, total
            size = self.step_size * (1 - step / (self.steps + 1)) / slope.norm().clamp(min=1e-30)
            point = projected(point - size * slope, self.alpha)
        segment.move([1.0] * self.num_groups)
        return best.tolist()

    def _batches(self, context: Context) -> list[Batch]:
        generator = torch.Generator().manual_seed(context.seed)
        order = torch.randperm(len(context.examples), generator=generator)[: self.num_examples].tolist()
        found: list[Batch] = []
        for start in range(0, len(order), self.batch_size):
            found += context.batches([context.examples[i] for i in order[start : start + self.batch_size]])
        return found
