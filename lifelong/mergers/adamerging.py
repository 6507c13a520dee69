"""AdaMerging: how much of an update each layer keeps is learned by making answers certain.

    theta = before + clip(lambda_l, 0, 1) * (after - before) in layer l
    minimise over lambda:  sum over stages of the mean entropy of answers on unlabelled rows, by Adam

Yang et al. 2024, arXiv:2310.02575: their tasks are learned apart and merged at once; here
a stage begins from the merged model, and when it ends the coefficients of its own update are learned
on rows of all stages so far (`num_examples` kept of each). Coefficients of earlier stages stay.
`granularity` is the paper's: one coefficient per layer, or one for the task. Where an answer is more
than one token, entropies are those of its tokens given the answer's earlier ones.

Open choices: rows are training rows with their labels unused (test rows, as in the paper, would be
judged twice); what lies outside the blocks has a coefficient of its own, and the rows of a growing
head are kept as trained. 0 iterations and init 0.3 are task arithmetic.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.core import head
from lifelong.core.axes import Context, Merger
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.depth import Depth, depth
from lifelong.numerics.segment import Segment, ends


@dataclass(frozen=True, kw_only=True)
class Adamerging(Merger):
    """Learn per layer how much of a stage's update makes answers on all stages certain."""

    paper: ClassVar[str] = "Yang et al. 2024, arXiv:2310.02575"
    cost: ClassVar[str] = "iterations * stages batches, forward and back, per stage; num_examples rows kept"
    verified: ClassVar[tuple[str, ...]] = (
        "0 iterations equal task arithmetic; init 1 with 0 iterations changes no bit",
        "the slope is that of finite differences, and 0 where a coefficient is clipped",
        "the entropy of a uniform answer over C labels is ln C; learning lowers the entropy",
    )

    granularity: Literal["layer", "task"] = "layer"  # a coefficient per layer, or one in all
    init_ratio: Annotated[float, Range(0, 1)] = 0.3  # of all coefficients before learning
    iterations: Annotated[int, Range(0)] = 500  # of Adam, at the end of each stage
    learning_rate: Annotated[float, Range(0, open_low=True)] = 1e-3  # of Adam
    batch_size: Annotated[int, Range(1)] = 16  # rows of each stage per iteration
    num_examples: Annotated[int, Range(1)] = 64  # unlabelled rows kept of each stage

    def init(self, context: Context) -> State:
        return {"before": None, "rows": [], "ratios": []}

    def begin_stage(self, context: Context, state: State) -> State:
        return {**state, "before": {name: p.detach().clone() for name, p in context.params.items()}}

    def end_stage(self, context: Context, state: State) -> State:
        """State: {"rows": [{"stage", "examples"}], "ratios": [those of each finished stage]}."""
        depths, params = depth(context.model.network), context.params
        before = {name: value.to(params[name].device) for name, value in state["before"].items()}
        generator = torch.Generator().manual_seed(context.seed)
        order = torch.randperm(len(context.examples), generator=generator)[: self.num_examples].tolist()
        kept = {"stage": context.stage, "examples": [context.examples[i] for i in order]}
        rows = [*state["rows"], kept]
        ratios = torch.full((self.count(depths),), self.init_ratio, dtype=torch.float64)
        if self.iterations:
            ground, after = ends(
                params,
                lambda: context.tuner.interpolate(context, context.tuner_state, before, lambda name: 0.0),
            )
            segment = Segment(
                context.model.network, params, ground, after, lambda name: self.group(name, depths)
            )
            ratios = self.learned(context, segment, rows, ratios, generator)
            segment.move([1.0] * len(ratios))
        clipped = ratios.clamp(0, 1).tolist()

        def ratio(name: str) -> float:
            number = self.group(name, depths)
            return 1.0 if number is None else clipped[number]

        context.tuner_state = context.tuner.interpolate(context, context.tuner_state, before, ratio)
        return {"before": None, "rows": rows, "ratios": [*state["ratios"], clipped]}

    def count(self, depths: Depth) -> int:
        """Number of coefficients: one per block and one for the rest."""
        return 1 if self.granularity == "task" else depths.count + 1

    def group(self, name: str, depths: Depth) -> int | None:
        if name.startswith(head.NAME):
            return None
        index = depths.of(name)
        if self.granularity == "task":
            return 0
        return depths.count if index is None else index

    def learned(
        self,
        context: Context,
        segment: Segment,
        rows: list[State],
        ratios: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Coefficients after all iterations, not clipped."""
        point = ratios.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([point], lr=self.learning_rate)
        for _ in range(self.iterations):
            segment.move(point.detach().clamp(0, 1))
            slope = torch.zeros_like(ratios)
            for each in rows:
                order = torch.randperm(len(each["examples"]), generator=generator)[: self.batch_size]
                chosen = [each["examples"][i] for i in order.tolist()]
                loss = partial(entropy, context, each["stage"], chosen)
                slope += segment.slopes(loss, len(ratios))[1]
            inside = (point.detach() >= 0) & (point.detach() <= 1)
            point.grad = torch.where(inside, slope, 0.0)
            optimizer.step()
        return point.detach()


def entropy(context: Context, stage: int, examples: list[State]) -> Tensor:
    """Mean entropy of the answers to rows of one stage, in nats."""
    objective, model = context.objectives[stage], context.model
    batch = {key: value.to(model.device) for key, value in objective.collate(examples, model).items()}
    with context.autocast():
        logits = objective.forward(model.network, batch).logits
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean()
