"""MIGU: of every linear layer only the rows with the largest outputs are updated.

    n_j = sum over positions of |h_j|,   h = W x + b   (accumulated over the passes of a step)
    row j of W moves  iff  n_j >= quantile(n, masked)

Du et al. 2024, arXiv:2406.17245: the magnitudes normalised to sum 1 decide; the sum is
one number per layer and so changes no rank, unless every position is normalised by itself
(`normalise: position`). Biases, embeddings, norms and heads always move. The first stage is trained
in full. The authors' code zeroes gradients and leaves the rest to AdamW, which goes on to move masked
rows by momentum and decay; here they stand still (`strict`), and False gives the published form.

Choices here: positions that are padding do not count (the authors' count); forward passes in
training mode with gradients count, replayed rows included, a teacher's do not; output heads are not
masked. The paper's second form, masks on the factors of LoRA, is the method `migu_lora`.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from lifelong.core.axes import Context, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics import output_masks
from lifelong.numerics.low_rank import linear_modules


@dataclass(frozen=True, kw_only=True)
class Migu(Tuner):
    """Update only the weights whose outputs are largest on the step's rows."""

    paper: ClassVar[str] = "Du et al. 2024, arXiv:2406.17245"
    cost: ClassVar[str] = (
        "as full fine-tuning; one sum over the outputs of linear layers, a copy of masked rows in a step"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "magnitudes equal those of each row alone without padding",
        "30 of 100 and 5 of 16 rows move at the paper's setting",
        "masked rows keep every bit under momentum and decay; the published form moves them",
        "masked 0 equals full fine-tuning bit for bit",
    )
    trains_base: ClassVar[bool] = True
    interpolates: ClassVar[bool] = True

    masked: Annotated[float, Range(0, 1)] = 0.7  # quantile of a layer's outputs below which rows stand still
    first_stage: Annotated[int, Range(0)] = 1  # index of the first stage with masks; 0 is from the start
    normalise: Literal["total", "position"] = "total"  # outputs count as they are, or each position alike
    strict: bool = True  # masked rows do not move at all; False: their gradient is zero, as published

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"active": whether this stage has masks}; within an update also the masked rows."""
        network = model.network
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        active, by_position = bool(state and state["active"]), self.normalise == "position"
        output_masks.watch(network, linear_modules(network), active, by_position, factors=False)
        return {"active": active}

    def begin_stage(self, context: Context, state: State) -> State:
        active = context.stage >= self.first_stage
        output_masks.restart(context.model.network, active)
        return {"active": active}

    def before_update(self, context: Context, state: State) -> State:
        return {**state, "held": output_masks.mask(context.model.network, self.masked, self.strict)}

    def after_update(self, context: Context, state: State) -> State:
        output_masks.put_back(context.model.network, state["held"])
        return {"active": state["active"]}

    def fold(self, model: Model, state: State) -> None:
        output_masks.unwatch(model.network)
