"""I-LoRA: a fast LoRA that learns and a slow one that remembers and answers (dual memory).

    slow <- a * slow + (1 - a) * fast,   a = min(1 - 1 / (n + 1), keep)        after the n-th step
    term = strength * mean over layers and positions of relu(H_slow - H_fast)^2    on old rows

Ren et al. 2024, arXiv:2402.18865, in the form of the authors' code: H are the outputs of
the layers, and only entries in which the slow pair exceeds the fast one are pulled. Old rows are
those of earlier stages, whichever memory or mixing brings them; without one there is no term.
Evaluation and export use the slow pair; a head is trained as ever and not averaged.

In the authors' release the slow pair never moves (its loop looks for names that it does not have)
and answers as the base does; here it moves, which a test holds. Further differences: n counts the
steps of all stages; the slow pair's layers have no dropout; pads are not compared, and embeddings (which
never differ) neither. The term is weighted like the loss of the rows that it is about: with as many
old rows as new ones a strength of 2 is the paper's gamma = 1 beside (loss_new + loss_old) / 2.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core.axes import Batch, Context, LowRank, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics import low_rank
from lifelong.numerics.positions import layer_outputs, real_positions
from lifelong.numerics.swap import swapped, taught


@dataclass(frozen=True, kw_only=True)
class ILora(Tuner):
    """Two low-rank updates: a working one that learns, and its moving average that answers."""

    paper: ClassVar[str] = "Ren et al. 2024, arXiv:2402.18865"
    cost: ClassVar[str] = "one more pair per module; one more forward pass over replayed rows"
    verified: ClassVar[tuple[str, ...]] = (
        "the slow pair is the closed-form moving average of the fast one, and moves",
        "the term and its gradient equal two separate networks; 0 where the slow pair exceeds nowhere",
        "evaluation and export answer with the slow pair; resumes bit for bit",
    )
    needs_outputs: ClassVar[bool] = True
    needs_layers: ClassVar[bool] = True
    pulls_old: ClassVar[bool] = True

    rank: Annotated[int, Range(1)] = 8  # columns of B
    alpha: Annotated[float, Range(0, open_low=True)] = 32.0  # update is scaled by alpha / rank
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # on the input of A, in training
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"
    keep: Annotated[float, Range(0, 1)] = 0.25  # share of itself that the slow pair keeps at a step
    strength: Annotated[float, Range(0)] = 2.0  # weight beside the loss of the same rows; 0 is off

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"slow": {parameter name: tensor}, "steps": made so far}."""
        low_rank.attach_all(model.network, self.targets, self.rank, self.scale, self.dropout, seed)
        fast = model.params()
        if state is None:
            return {"slow": {name: p.detach().clone() for name, p in fast.items()}, "steps": 0}
        return {**state, "slow": {name: state["slow"][name].to(p.device) for name, p in fast.items()}}

    def after_update(self, context: Context, state: State) -> State:
        """The tensors of `slow` are changed in place."""
        steps = state["steps"] + 1
        share = 1 - min(1 - 1 / (steps + 1), self.keep)
        with torch.no_grad():
            for name, slow in state["slow"].items():
                slow.lerp_(context.params[name], share)
        return {**state, "steps": steps}

    def loss(self, context: Context, state: State) -> Tensor | None:
        old = [index for index, task in enumerate(context.tasks) if task < context.stage]
        if not self.strength or not old:
            return None
        rows = torch.tensor(old, device=context.model.device)
        batch = {name: value[rows] for name, value in context.batch.items()}
        with taught(context.model.network, context.params, state["slow"]):
            stable = self._layers(context, batch)
        working = context.layers
        if working is None:  # in a loop that does not watch its own pass
            working = self._layers(context, context.batch)
        total, count = 0.0, 0.0
        for name, hidden in ((name, whole[rows]) for name, whole in working.items()):
            real = real_positions(hidden, batch, context.model.kind == "encoder_decoder").unsqueeze(-1)
            pull = torch.relu(stable[name].float() - hidden.float()).square() * real
            total = total + pull.sum((1, 2))
            count = count + real.sum((1, 2)) * hidden.shape[-1]
        each = total / count  # (rows,)
        owners = context.outputs.owners
        positions = torch.bincount(owners, minlength=len(context.tasks))[rows]
        return self.strength * (each * positions).sum() / len(owners)

    def serving(self, model: Model, state: State) -> AbstractContextManager[None]:
        return swapped(model.params(), state["slow"])

    def fold(self, model: Model, state: State) -> None:
        low_rank.fold_all(model.network, self.low_rank(model, state))

    def low_rank(self, model: Model, state: State) -> dict[str, LowRank]:
        slow = state["slow"]
        return {
            name: LowRank(slow[f"{name}.lora_A.weight"], slow[f"{name}.lora_B.weight"], self.scale)
            for name in low_rank.select_modules(model.network, self.targets)
        }

    def _layers(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        with layer_outputs(context.model.network) as found:
            context.objective.forward(context.model.network, batch)
        if not found:
            raise UserError(
                f"i_lora compares the layers of a network, and {type(context.model.network).__name__} has no "
                "list of layers. Set ILora.strength to 0."
            )
        return found
