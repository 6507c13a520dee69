"""Learning without forgetting (LwF): answer new data as the model did before the stage.

    strength * mean over labelled positions of T^2 * KL(softmax(teacher / T) || softmax(student / T))

Li and Hoiem 2016, arXiv:1606.09282, with T = 2: theirs is the cross-entropy of the softened
answers, which differs from the divergence by a constant; the divergence is 0 where nothing changed.
T^2 keeps the gradient's size (Hinton et al. 2015, arXiv:1503.02531). Where a head grows, old labels
only. The teacher is the same network run with the weights that it had when the stage began, so no
second network is held; what is not trained must not change within a stage.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from lifelong.core.axes import Context, Penalty
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.core.teacher import answer_distance, need_batch


@dataclass(frozen=True, kw_only=True)
class Lwf(Penalty):
    """Keep the old model's answers on new data."""

    paper: ClassVar[str] = "Li and Hoiem 2016, arXiv:1606.09282"
    cost: ClassVar[str] = "one copy of the trainable weights; one more forward pass per step"
    verified: ClassVar[tuple[str, ...]] = (
        "exactly 0 at the first step of a stage; None in the first stage",
        "equals the divergence between two separate networks, gradient included",
        "new labels of a grown head do not enter; the network is left as it was",
    )
    needs_outputs: ClassVar[bool] = True
    needs_same_params: ClassVar[bool] = True

    strength: Annotated[float, Range(0)] = 1.0  # weight beside the task's loss; 0 is off
    temperature: Annotated[float, Range(0, open_low=True)] = 2.0  # softens both answers; 1 = as they are

    def init(self, context: Context) -> State:
        return {"teacher": None}

    def begin_stage(self, context: Context, state: State) -> State:
        if not self.strength or context.stage == 0:
            return {"teacher": None}
        return {"teacher": {name: p.detach().clone() for name, p in context.params.items()}}

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.strength or not state["teacher"] or context.num_old_labels == 0:
            return None
        need_batch(context, "lwf")
        if not len(context.outputs.targets):
            return None
        return self.strength * answer_distance(context, state["teacher"], self.temperature)

    def end_stage(self, context: Context, state: State) -> State:
        return {"teacher": None}
