"""LIFT: train only the weights that are largest once the matrix is reduced in rank.

    R = best approximation of W of rank `filter_rank`;  chosen = the K entries with the largest |R|

Liu et al. 2025, arXiv:2506.00772. The entries are chosen anew every `interval` steps; the
moments of entries that stay go with them, those of new ones begin at zero, the count of steps goes
on. Adam's moments exist for chosen entries alone, so the update is made here:
    m, v as in AdamW;  w <- w - learning_rate * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
                                                + weight_decay * w)

Differences: the learning rate and its schedule are the stage's, but its betas, decay and clipping act
on what else is trained (a head) and the fields below on the chosen entries. Every stage begins with
fresh moments, as the engine's optimiser does. The published scripts choose the *smallest* entries by
mistake (a text that is searched for "largest" lacks it); `choice: smallest` repeats that as a control.
Only weights of linear layers move, output heads of the network excepted. A method that changes
gradients just before the update (after the tuner) does not reach the chosen entries.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.core.axes import Context, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.low_rank import select_modules
from lifelong.numerics.spectrum import rank_reduced


@dataclass(frozen=True, kw_only=True)
class Lift(Tuner):
    """Train the twentieth of the weights that is largest after rank reduction."""

    paper: ClassVar[str] = "Liu et al. 2025, arXiv:2506.00772"
    cost: ClassVar[str] = (
        "12 bytes of state per chosen weight (0.6 per weight; AdamW: 8); one SVD per matrix and interval"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "only chosen entries change, all others keep every bit",
        "12 bytes per chosen entry, nothing in the optimiser",
        "all entries chosen: equals torch's AdamW",
        "moments of entries that stay are carried over, new ones begin at zero",
    )
    trains_base: ClassVar[bool] = True
    optimizers: ClassVar[tuple[str, ...]] = ("adamw",)
    interpolates: ClassVar[bool] = True

    share: Annotated[float, Range(0, 1, open_low=True)] = 0.05  # of the entries of each matrix
    budget_rank: Annotated[int, Range(0)] = 0  # above 0: as many entries as LoRA of this rank, not `share`
    filter_rank: Annotated[int, Range(1)] = 128  # rank that the matrix is reduced to before the choice
    interval: Annotated[int, Range(1)] = 400  # steps between choices
    choice: Literal["largest", "smallest"] = "largest"  # smallest: the mistake in the published scripts
    beta1: Annotated[float, Range(0, 1, open_high=True)] = 0.9  # decay of the first moment
    beta2: Annotated[float, Range(0, 1, open_high=True)] = 0.95  # decay of the second moment
    epsilon: Annotated[float, Range(0, open_low=True)] = 1e-8  # added to the root of the second moment
    weight_decay: Annotated[float, Range(0)] = 0.0  # of chosen entries, times the learning rate
    max_grad_norm: Annotated[float, Range(0)] = 1.0  # of the gradient of all chosen entries; 0 is off
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"chosen": {module: {"places": (K,) int32 into the flat weight, ascending, "first":
        (K,), "second": (K,), "count": steps}}}; within an update also the gradients.
        """
        model.network.requires_grad_(False)
        for module in select_modules(model.network, self.targets).values():
            module.weight.requires_grad_(True)
        chosen = state["chosen"] if state else {}
        moved = {
            name: {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in kept.items()}
            for name, kept in chosen.items()
        }
        return {"chosen": moved}

    def begin_stage(self, context: Context, state: State) -> State:
        chosen = {}
        for name, module in select_modules(context.model.network, self.targets).items():
            places = self._places(module.weight)
            zeros = torch.zeros(len(places), device=places.device)
            chosen[name] = {"places": places, "first": zeros, "second": zeros.clone(), "count": 0}
        return {"chosen": chosen}

    def before_update(self, context: Context, state: State) -> State:
        """Take the gradients of chosen entries; the optimiser finds none and keeps nothing."""
        chosen, taken = state["chosen"], {}
        for name, kept in chosen.items():
            weight = context.params[f"{name}.weight"]
            if context.step and context.step % self.interval == 0:
                kept = chosen[name] = _carried(kept, self._places(weight))
            if weight.grad is not None:
                taken[name] = weight.grad.take(kept["places"].long())
                weight.grad = None
        if self.max_grad_norm and taken:
            norm = torch.stack([gradient.norm() for gradient in taken.values()]).norm()
            for gradient in taken.values():
                gradient.mul_((self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return {"chosen": chosen, "taken": taken}

    def after_update(self, context: Context, state: State) -> State:
        """AdamW on the chosen entries."""
        rate = context.learning_rate
        for name, gradient in state["taken"].items():
            kept, weight = state["chosen"][name], context.params[f"{name}.weight"].detach()
            kept["count"] += 1
            kept["first"].lerp_(gradient, 1 - self.beta1)
            kept["second"].mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
            root = kept["second"].sqrt() / math.sqrt(1 - self.beta2 ** kept["count"]) + self.epsilon
            places = kept["places"].long()
            values = weight.take(places) * (1 - rate * self.weight_decay)
            values -= rate / (1 - self.beta1 ** kept["count"]) * kept["first"] / root
            weight.put_(places, values)
        return {"chosen": state["chosen"]}

    def fold(self, model: Model, state: State) -> None:
        return None

    def _places(self, weight: Tensor) -> Tensor:
        """(K,) int32, ascending."""
        number = round(self.share * weight.numel())
        if self.budget_rank:
            number = self.budget_rank * sum(weight.shape)
        number = min(max(number, 1), weight.numel())
        sizes = rank_reduced(weight.detach(), self.filter_rank).abs().flatten()
        found = sizes.topk(number, largest=self.choice == "largest", sorted=False).indices
        return found.sort().values.int()


def _carried(kept: State, places: Tensor) -> State:
    """Moments of entries that stay; zeros for new ones."""
    index = torch.searchsorted(kept["places"], places).clamp(max=len(kept["places"]) - 1)
    stays = kept["places"][index] == places
    moments = {name: torch.where(stays, kept[name][index], 0.0) for name in ("first", "second")}
    return {"places": places, **moments, "count": kept["count"]}
