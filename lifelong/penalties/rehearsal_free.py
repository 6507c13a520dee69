"""Distillation without rehearsal: features or answers on new data stay as they were before the stage.

    feature:    strength * mean over labelled positions and dimensions of (f_i - f_i before the stage)^2
    prediction: strength * mean over labelled positions of T^2 KL(softmax(z before / T) || softmax(z / T))

Smith et al. 2023, arXiv:2203.17269 (their Feat KD and Pred KD; no code was published).
f is what the output head reads at a labelled position (pooled features, where a linear head
decides), z its answer, of labels that are old. Their other terms are the methods l2 and ewc, which
this one is named beside. The model before the stage is the same network run with the weights that
it had then, without dropout. Choices here: the squared difference is a mean, so that `strength`
does not depend on the width; KL in place of their cross-entropy, which differs by a constant.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from lifelong.core.axes import Context, Penalty
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.core.teacher import answer_distance, feature_distance, need_batch


@dataclass(frozen=True, kw_only=True)
class RehearsalFree(Penalty):
    """Keep the features, or the answers, that the model had on new data before the stage."""

    paper: ClassVar[str] = "Smith et al. 2023, arXiv:2203.17269"
    cost: ClassVar[str] = "one copy of the trainable weights; per step one more forward pass, the teacher's"
    verified: ClassVar[tuple[str, ...]] = (
        "equals the distance between two separate networks, gradient included, in both forms",
        "0 up to rounding where nothing changed; None in the first stage; strength 0 changes no bit",
        "features are the inputs of the output head on every architecture",
    )
    needs_outputs: ClassVar[bool] = True
    needs_same_params: ClassVar[bool] = True

    strength: Annotated[float, Range(0)] = 1.0  # weight beside the task's loss; 0 is off
    form: Literal["feature", "prediction"] = "feature"  # what is held: the head's input, or its answers
    temperature: Annotated[float, Range(0, open_low=True)] = 2.0  # of predictions; 1 = as they are

    @property
    def needs_features(self) -> bool:
        return self.form == "feature"

    def init(self, context: Context) -> State:
        return {"teacher": None}

    def begin_stage(self, context: Context, state: State) -> State:
        if not self.strength or context.stage == 0:
            return {"teacher": None}
        return {"teacher": {name: p.detach().clone() for name, p in context.params.items()}}

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.strength or not state["teacher"]:
            return None
        need_batch(context, "rehearsal_free")
        if not len(context.outputs.targets):
            return None
        if self.form == "feature":
            return self.strength * feature_distance(context, state["teacher"])
        if context.num_old_labels == 0:
            return None
        return self.strength * answer_distance(context, state["teacher"], self.temperature)

    def end_stage(self, context: Context, state: State) -> State:
        return {"teacher": None}
