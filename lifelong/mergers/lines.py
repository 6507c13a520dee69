"""LiNeS: scale a stage's update by depth, little in shallow layers and wholly in deep ones.

    ratio(block l of 0 ... L - 1) = alpha + beta * l / (L - 1);   alpha outside all blocks

Wang et al. 2024, arXiv:2410.17146. Shallow layers hold what all tasks share, so that an update
scaled down there keeps the new task and gives back much of the old. For one task at a time the
authors take beta = 1 - alpha and choose alpha on a trade-off of both; 0.5 here is no one's choice
but the middle. Blocks are found in the network itself, for any architecture (an encoder's before its
decoder's), where the authors match a part of the name; L = 1 counts as the deepest.

Open choice: the rows of a growing head are kept as trained (theirs is frozen).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from lifelong.core import head
from lifelong.core.axes import Context, Merger
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.depth import depth


@dataclass(frozen=True, kw_only=True)
class Lines(Merger):
    """Keep a share of each stage's update that grows with depth."""

    paper: ClassVar[str] = "Wang et al. 2024, arXiv:2410.17146"
    cost: ClassVar[str] = "one copy of the trainable weights during a stage; one pass over them at its end"
    verified: ClassVar[tuple[str, ...]] = (
        "ratios .2, .6, 1 for three blocks with alpha .2 and beta .8",
        "blocks of all five architectures in the order of their computation",
        "alpha 1 with beta 0 changes no bit; 0 with 0 gives the weights before the stage",
    )

    alpha: Annotated[float, Range(0, 1)] = 0.5  # share kept in the first block and outside all blocks
    beta: Annotated[float, Range(0, 1)] = 0.5  # added to it from the first block to the last

    def init(self, context: Context) -> State:
        return {"before": None}

    def begin_stage(self, context: Context, state: State) -> State:
        return {"before": {name: p.detach().clone() for name, p in context.params.items()}}

    def end_stage(self, context: Context, state: State) -> State:
        depths = depth(context.model.network)

        def ratio(name: str) -> float:
            if name.startswith(head.NAME):
                return 1.0
            return self.alpha + self.beta * (depths.share(name) or 0.0)

        before = {name: value.to(context.params[name].device) for name, value in state["before"].items()}
        context.tuner_state = context.tuner.interpolate(context, context.tuner_state, before, ratio)
        return {"before": None}
