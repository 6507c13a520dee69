"""OSFT, orthogonal subspace fine-tuning: strong directions of each weight stay, weak ones are trained.

    W = U_h S_h V_h + U_l S_l V_l       an SVD at the start of every stage; the first k triples are frozen
    k = floor(share * min(out, in)),  share = least + I * (most - least)  (cut to [0, 1])
    I = |cos(x, W x)| on rows of the finished stage, divided by its mean over the matrices

Nayak et al. 2025, arXiv:2504.07097 (in peft: OSF). Two projections are published. `factors` is the
code's: U_l, S_l, V_l are trained, gradients of U_l lose what lies in U_h, those of V_l what lies in
V_h. `whole` is the paper's equation, G - U_h (U_h^T G V_h^T) V_h, on the gradient of the weight. With
AdamW neither keeps the weights out of the protected subspace, since its steps are no multiples of the
gradient; so the weights are projected after every step as well (`project_update`; False: as published).

Choices here: the absolute value of the cosine, since its sign says nothing of how much passes, and
signed means near 0 cannot be divided by; in the first stage, with no rows before it, every I is 1.
`ranks: fixed` protects `share` of the triples (peft: a half), `growing` that share of the *longer*
side for every stage before (the paper's scripts: 0.07; those of 4 : 1 matrices are then frozen from
the fifth stage on). What a stage learned is part of the weight that the next one divides: nothing
is reset (peft's guide calls `unload`, which loses it), and factors get gradients (in the paper's T5
script they never do). Biases, norms and embeddings stand still. Full SVD in float32.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from lifelong.core.axes import Context, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.low_rank import dimensions, select_modules
from lifelong.numerics.pass_through import pass_through
from lifelong.numerics.spectrum import Triples, triples
from lifelong.numerics.split_weight import join, remove, split, weight_of


@dataclass(frozen=True, kw_only=True)
class Osft(Tuner):
    """Freeze the strong singular directions of each weight and train the weak ones."""

    paper: ClassVar[str] = "Nayak et al. 2025, arXiv:2504.07097"
    cost: ClassVar[str] = (
        "one SVD per matrix and stage; 4 k (out + in + 1) bytes kept per matrix; up to twice the forward pass"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "under AdamW the protected subspace stays within 1e-5; without the projection of updates it does not",
        "nothing is lost between stages; all protected: nothing trains",
        "nothing protected: `whole` equals plain fine-tuning of these matrices",
        "importance equals the mean cosine of each row alone without padding",
    )
    persistent: ClassVar[bool] = False
    rewrites_base: ClassVar[bool] = True  # the strong part of a weight stands in its place

    train: Literal["factors", "whole"] = "factors"  # the code's projection, or the paper's
    project_update: bool = True  # project weights after each step too; False: gradients only, as published
    ranks: Literal["importance", "fixed", "growing"] = "importance"  # how many triples each matrix protects
    least: Annotated[float, Range(0, 1)] = 0.1  # importance: share at importance 0
    most: Annotated[float, Range(0, 1)] = 0.8  # importance: share at mean importance
    share: Annotated[float, Range(0, 1)] = 0.5  # fixed: share of the triples; growing: per stage before
    num_examples: Annotated[int, Range(1)] = 64  # rows of the finished stage that importance is measured on
    batch_size: Annotated[int, Range(1)] = 8  # rows per pass of the measurement
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"high": {module: {"up", "sizes", "down"}}, "importance": {module: number}}."""
        model.network.requires_grad_(False)
        select_modules(model.network, self.targets)
        high = {}
        for name, kept in (state["high"] if state else {}).items():
            # of a file the memory may be aligned otherwise, and products then round otherwise
            high[name] = {key: tensor.to(model.device).clone() for key, tensor in kept.items()}
            split(model.network.get_submodule(name), Triples(**high[name]), self.train == "whole")
        return {"high": high, "importance": dict(state["importance"]) if state else {}}

    def begin_stage(self, context: Context, state: State) -> State:
        high = {}
        for name, module in select_modules(context.model.network, self.targets).items():
            kept = state["high"].get(name)
            weight = join(module, Triples(**kept)) if kept else weight_of(module)
            found = triples(weight)
            number = self._protected(dimensions(module), state["importance"].get(name, 1.0), context.stage)
            strong, weak = found.part(0, number), found.part(number)
            split(module, strong, self.train == "whole")
            if "low" in module._modules:
                module.low.load(weak)
            high[name] = strong._asdict()
        return {"high": high, "importance": state["importance"]}

    def before_update(self, context: Context, state: State) -> State:
        self._project(context, state, gradients=True)
        return state

    def after_update(self, context: Context, state: State) -> State:
        if self.project_update:
            self._project(context, state, gradients=False)
        return state

    def end_stage(self, context: Context, state: State) -> State:
        """Measure importance on rows of the stage, for the next one."""
        if self.ranks != "importance":
            return state
        modules = {name: context.model.network.get_submodule(name) for name in state["high"]}
        found = pass_through(context.model.network, modules, self._forwards(context))
        mean = sum(found.values()) / max(len(found), 1)
        return {**state, "importance": {name: value / mean if mean else 1.0 for name, value in found.items()}}

    def fold(self, model: Model, state: State) -> None:
        for name, kept in state["high"].items():
            module = model.network.get_submodule(name)
            weight = join(module, Triples(**kept))
            remove(module)
            weight_of(module).copy_(weight)

    def _project(self, context: Context, state: State, gradients: bool) -> None:
        for name, kept in state["high"].items():
            module = context.model.network.get_submodule(name)
            if "low" in module._modules:
                module.low.project(Triples(**kept), gradients)

    def _protected(self, sides: tuple[int, int], importance: float, stage: int) -> int:
        """k, the number of triples that stand still."""
        wanted = min(sides) * self.share
        if self.ranks == "importance":
            wanted = min(sides) * (self.least + importance * (self.most - self.least))
        if self.ranks == "growing":
            wanted = max(sides) * self.share * stage
        return min(max(math.floor(wanted + 1e-9), 0), min(sides))

    def _forwards(self, context: Context) -> Iterator[None]:
        generator = torch.Generator().manual_seed(context.seed)
        order = torch.randperm(len(context.examples), generator=generator)[: self.num_examples].tolist()
        for start in range(0, len(order), self.batch_size):
            chosen = [context.examples[i] for i in order[start : start + self.batch_size]]
            for batch in context.batches(chosen):
                with context.autocast():
                    context.objective.forward(context.model.network, batch)
                yield
