"""Distillation without rehearsal: features or answers on new data stay as they were before the stage.

    feature:    strength * mean over labelled positions and dimensions of (f_i - f_i before the stage)^2
    prediction: strength * mean over labelled positions of T^2 KL(softmax(z before / T) || softmax(z / T))

Smith et al. 2023, arXiv:2203.17269, section 3 (their Feat KD and Pred KD; no code was published).
f is what the output head reads at a labelled position (pooled features, where a linear head
decides), z its answer, of labels that are old. Their other terms are the methods l2 and ewc, which
this one is named beside. The model before the stage is the same network run with the weights that
it had then, without dropout. Choices here: the squared difference is a mean, so that `strength`
does not depend on the width; KL in place of their cross-entropy, which differs by a constant; the
features of the running model take a forward pass of their own (with its own dropout).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.core.axes import Context, Penalty
from lifelong.core.features import decision_features
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics.distillation import kl_divergence
from lifelong.numerics.swap import evaluating, swapped


@dataclass(frozen=True, kw_only=True)
class RehearsalFree(Penalty):
    """Keep the features, or the answers, that the model had on new data before the stage."""

    paper: ClassVar[str] = "Smith et al. 2023, arXiv:2203.17269"
    cost: ClassVar[str] = (
        "one copy of the trainable weights; per step one more forward pass (prediction), or two and a "
        "backward pass (feature)"
    )
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

    def init(self, context: Context) -> State:
        return {"teacher": None}

    def begin_stage(self, context: Context, state: State) -> State:
        if not self.strength or context.stage == 0:
            return {"teacher": None}
        return {"teacher": {name: p.detach().clone() for name, p in context.params.items()}}

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.strength or not state["teacher"]:
            return None
        if None in (context.model, context.objective, context.batch, context.outputs):
            raise UserError(
                "rehearsal_free looks at the current batch: give Context(model=..., objective=..., "
                "batch=..., outputs=...)."
            )
        if not len(context.outputs.targets):
            return None
        return self._features(context, state) if self.form == "feature" else self._answers(context, state)

    def end_stage(self, context: Context, state: State) -> State:
        return {"teacher": None}

    def _features(self, context: Context, state: State) -> Tensor:
        network = context.model.network
        with swapped(context.params, _here(context, state)), evaluating(network), torch.no_grad():
            old = decision_features(context.objective, network, context.batch)
        new = decision_features(context.objective, network, context.batch)
        return self.strength * (new.float() - old.float()).square().mean()

    def _answers(self, context: Context, state: State) -> Tensor | None:
        if context.num_old_labels == 0:
            return None
        network = context.model.network
        with swapped(context.params, _here(context, state)), evaluating(network), torch.no_grad():
            old = context.objective.forward(network, context.batch).logits
        columns = slice(context.num_old_labels)  # all where no head grows
        new, old = context.outputs.logits[:, columns], old[:, columns]
        return self.strength * kl_divergence(new, old, self.temperature).mean()


def _here(context: Context, state: State) -> dict[str, Tensor]:
    """The teacher's weights on the device of the network (they move once, after a resume)."""
    for name, value in state["teacher"].items():
        state["teacher"][name] = value.to(context.params[name].device)
    return state["teacher"]
