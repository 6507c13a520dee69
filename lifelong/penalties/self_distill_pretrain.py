"""Self-distillation for further pre-training: learn the stage once, then again near that teacher.

    first part of the stage:  loss of the task                                   (gives the teacher)
    then, from the weights at the start of the stage:
        loss of the task + strength * mean over labelled positions and dimensions of (f - f_teacher)^2

Lee et al. 2023, arXiv:2210.02871: the student begins where the teacher began, not where
it ended, which limits how far further pre-training moves away from the first model. f is what the
output head reads at labelled positions. Choices here: both parts share the steps of the stage's
budget, `teacher_share` of them for the teacher (give twice the epochs to see all rows in both);
the schedule of the learning rate runs on through both; the optimiser's moments begin anew with the
student. The teacher is the same network run with its weights, without dropout. Their third part,
fine-tuning with a fresh head, is a stage of its own: `first_stages: 1` leaves it plain.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core.axes import Context, Penalty
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.core.teacher import feature_distance, need_batch
from lifelong.numerics.anchor import copied


@dataclass(frozen=True, kw_only=True)
class SelfDistillPretrain(Penalty):
    """Train a stage twice: a teacher first, then a student from the same start that stays near it."""

    paper: ClassVar[str] = "Lee et al. 2023, arXiv:2210.02871"
    cost: ClassVar[str] = (
        "two copies of the trainable weights; for the student's steps one more forward pass, the teacher's"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "the student starts from the weights at the start of the stage, bit for bit, with fresh moments",
        "equals the distance to a separate teacher network, gradient included",
        "strength 0 is plain training, bit for bit",
    )
    needs_outputs: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True
    needs_same_params: ClassVar[bool] = True

    strength: Annotated[float, Range(0)] = 1.0  # weight of the distance to the teacher; 0 is off
    teacher_share: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.5  # of the stage's steps
    first_stages: Annotated[int, Range(0)] = 0  # only in so many stages, counted from the first; 0 = in all

    def init(self, context: Context) -> State:
        return {"start": None, "teacher": None}

    def begin_stage(self, context: Context, state: State) -> State:
        if not self.strength or (self.first_stages and context.stage >= self.first_stages):
            return {"start": None, "teacher": None}
        return {"start": copied(context.params), "teacher": None}

    def after_update(self, context: Context, state: State) -> State:
        if not state["start"]:
            return state
        done, last = context.step + 1, context.num_steps
        if done < max(round(self.teacher_share * last), 1) or done >= last:
            return state
        teacher = copied(context.params)
        with torch.no_grad():
            for name, value in state["start"].items():
                context.params[name].copy_(value)
        context.forget_moments()
        return {"start": None, "teacher": teacher}

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.strength or not state["teacher"]:
            return None
        need_batch(context, "self_distill_pretrain")
        if not len(context.outputs.targets):
            return None
        return self.strength * feature_distance(context, state["teacher"])

    def end_stage(self, context: Context, state: State) -> State:
        return {"start": None, "teacher": None}
