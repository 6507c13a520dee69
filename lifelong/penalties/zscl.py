"""ZSCL: on reference data that no stage teaches, answer as the model did before all stages.

    strength * distance(initial model, model) on reference rows
      + consolidation * sum_i (theta_i - theta_i at the start of the stage)^2
    prediction: mean over tokens of T^2 KL(softmax(z initial / T) || softmax(z / T))
    feature:    mean over tokens and dimensions of (h - h initial)^2,  h of the last layer
    average <- (n average + theta) / (n + 1) every `average_every` steps from the first on, from n = 1
    with the weights at the start of the stage; handed over when the stage ends

Zheng et al. 2023, arXiv:2303.06628. Theirs distils the image-to-text answers of CLIP;
here any network is held on its own answers to reference rows (next tokens), or on its features where
it has no head over a vocabulary. The divergence differs from their cross-entropy by a constant. The
initial model is the same network run with its first trainable weights, so tuners that renew their
weights are refused. `reference: random` is the random vocabulary of LwF-VR (texts of `length` random
tokens; 10 in the paper). Label smoothing of the task's loss is left to the objective. Weights that
were born since (a label head) are free and are averaged too. Averaging moves weights when the stage
ends: penalties that keep the final weights are named after this one, and tuners that answer with an
average of their own are refused. Low-rank factors are averaged one by one. Their stages have 1000 steps;
in a shorter one a snapshot is taken at every tenth part, since the interval of the paper would leave the
weights where they were. strength 0 switches all three parts off.

The default reference is that random vocabulary, which needs no file; the paper's is real data: name
a file of your own, and not the one that judges general ability.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.core import reference
from lifelong.core.axes import Batch, Context, Penalty
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics.anchor import copied, pull
from lifelong.numerics.distillation import kl_divergence
from lifelong.numerics.swap import leading, taught


@dataclass(frozen=True, kw_only=True)
class Zscl(Penalty):
    """Hold the answers of the initial model on reference data, and average weights over training."""

    paper: ClassVar[str] = "Zheng et al. 2023, arXiv:2303.06628"
    cost: ClassVar[str] = (
        "three copies of the trainable weights; per step two forward passes and a backward pass over "
        "batch_size reference rows"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "equals the distance to a separate copy of the initial network, gradient included, in both forms",
        "the averaged weights are the plain mean of all snapshots, the first weights included",
        "0 up to rounding at the initial weights; strength 0 changes no bit",
    )
    needs_persistent: ClassVar[bool] = True
    needs_same_params: ClassVar[bool] = True
    moves_weights: ClassVar[bool] = True

    strength: Annotated[float, Range(0)] = 1.0  # weight of the distillation; 0 switches the method off
    form: Literal["auto", "prediction", "feature"] = "auto"  # auto: prediction where the network generates
    temperature: Annotated[float, Range(0, open_low=True)] = 2.0  # of predictions; 1 = as they are
    consolidation: Annotated[float, Range(0)] = 1.0  # loss per squared change since the stage began
    average_every: Annotated[int, Range(0)] = 100  # steps between snapshots, or a tenth of the stage; 0: none
    reference: str | tuple[str, ...] = "random"  # file, rows, or "random" token ids
    num_rows: Annotated[int, Range(1)] = 1000  # reference rows at most
    length: Annotated[int, Range(2)] = 64  # tokens of a reference row at most
    batch_size: Annotated[int, Range(1)] = 4  # reference rows per step

    def init(self, context: Context) -> State:
        if not self.strength:
            return {"rows": [], "initial": {}, "start": {}, "average": {}, "merged": 0}
        if context.model is None:
            raise UserError("zscl looks at reference rows: give Context(model=...).")
        if self._form(context.model) == "prediction" and context.model.kind not in GENERATIVE:
            raise UserError(f"zscl.form must be feature for a model of kind {context.model.kind}.")
        rows = reference.encode(
            self.reference, context.model, self.num_rows, self.length, context.seed, "zscl.reference"
        )
        return {"rows": rows, "initial": copied(context.params), "start": {}, "average": {}, "merged": 0}

    def begin_stage(self, context: Context, state: State) -> State:
        if not self.strength:
            return state
        start = {name: value for name, value in copied(context.params).items() if name in state["initial"]}
        average = copied(context.params) if self.average_every else {}
        return {**state, "start": start, "average": average, "merged": 1}

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.strength or not state["rows"]:
            return None
        model, params = context.model, context.params
        chosen = reference.draw(len(state["rows"]), self.batch_size, context)
        batch = reference.collate([state["rows"][i] for i in chosen], model)
        initial = {name: value for name, value in state["initial"].items() if name in params}
        with taught(model.network, params, initial):
            old = self._look(model, batch)
        new = self._look(model, batch)
        if self._form(model) == "prediction":
            distance = kl_divergence(new, old, self.temperature).mean()
        else:
            distance = (new.float() - old.float()).square().mean()
        return self.strength * distance + self._drift(context, state)

    def after_update(self, context: Context, state: State) -> State:
        if not state["average"] or context.step % self._interval(context.num_steps):
            return state
        with torch.no_grad():
            for name, average in state["average"].items():
                value = leading(context.params[name], average.shape, name).to(average.dtype)
                average.mul_(state["merged"]).add_(value).div_(state["merged"] + 1)
        return {**state, "merged": state["merged"] + 1}

    def end_stage(self, context: Context, state: State) -> State:
        with torch.no_grad():
            for name, average in state["average"].items():
                leading(context.params[name], average.shape, name).copy_(average)
        return {**state, "start": {}, "average": {}, "merged": 0}

    def _interval(self, num_steps: int) -> int:
        """Steps between snapshots, in a stage of so many; 0 where their number is not known."""
        return min(self.average_every, max(num_steps // SNAPSHOTS, 1)) if num_steps else self.average_every

    def _form(self, model: Model) -> str:
        generates = model.kind in GENERATIVE
        return self.form if self.form != "auto" else "prediction" if generates else "feature"

    def _look(self, model: Model, batch: Batch) -> Tensor:
        prediction = self._form(model) == "prediction"
        return reference.answers(model, batch) if prediction else reference.hidden(model, batch)

    def _drift(self, context: Context, state: State) -> Tensor | float:
        if not self.consolidation or not state["start"]:
            return 0.0
        return self.consolidation * pull(context.params, state["start"])


GENERATIVE = ("decoder", "encoder_decoder")
SNAPSHOTS = 10  # of a stage, at least, where it has as many steps
