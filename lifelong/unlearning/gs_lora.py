"""GS-LoRA: unlearn in a fresh low-rank pair, in few blocks (Zhao et al. 2024, arXiv:2403.11530).

    L = L_remain + beta * mean_i relu(bound - l_i) + alpha * sum_g ||theta_g||_2
    l_i = loss of row i that is to be forgotten, mean over its labelled positions
    g = trained weights of one block (both factors of all its modules), ||theta_g||_2 their joint norm

L_remain is the loss of rows drawn from the memory, and 0 without one. A row whose loss has reached
the bound has no gradient, so that forgetting ends by itself. The norm of a group that is zero has the
subgradient zero. A block that forgetting does not need has no gradient in its factor B, which begins
at zero: it stays exactly zero while A decays, and so does the update of the block.

The bound is in nats. The authors' 105 is made for scaled cosine logits; chance is ln C for C answers,
which is 4.6 for 100 labels and 10.8 for a vocabulary of 50,000. Differences: the hinge acts on every
row, where theirs acts on the mean of a batch, in which one row can stand in for another; the pair is
in all modules that the tuner's `targets` name, theirs in the feed-forward ones (for llama
`[gate_proj, up_proj, down_proj]`); a linear head, where there is one, is trained along; AdamW turns
the small gradient of an idle group into whole steps, so that idle factors A decay by the learning rate.
The prototype terms of GS-LoRA++ (arXiv:2501.09705) are absent: they are made for a head that decides by
features, and need prototypes of rows that the memory may not hold.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core.axes import Context, Unlearning
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.positions import layers


@dataclass(frozen=True, kw_only=True)
class GsLora(Unlearning):
    """Push the loss of rows up to a bound, with a group lasso that leaves most blocks as they were."""

    paper: ClassVar[str] = "Zhao et al. 2024, arXiv:2403.11530"
    cost: ClassVar[str] = "a norm of the trained weights per step, in erase stages alone"
    verified: ClassVar[tuple[str, ...]] = (
        "no gradient for a row whose loss has reached the bound",
        "the group lasso equals its closed form; a zero group has value and subgradient 0",
        "a block that is not needed keeps an update of exactly 0",
        "beta = alpha = 0 equals training on the remaining rows alone, bit for bit",
        "does not depend on the division into micro batches; resumes bit for bit",
    )
    needs_zero_start: ClassVar[bool] = True

    beta: Annotated[float, Range(0)] = 0.15  # weight of forgetting; 0 is off
    bound: Annotated[float, Range(0, open_low=True)] = 10.0  # nats, mean over a row's labelled positions
    alpha: Annotated[float, Range(0)] = 1e-4  # weight of the group lasso, per unit of norm; 0 is off

    def init(self, context: Context) -> State:
        return {"groups": []}

    def begin_stage(self, context: Context, state: State) -> State:
        blocks = layers(context.model.network)
        groups = [[n for n in context.params if n.startswith(f"{block}.")] for block in blocks]
        return {"groups": [names for names in groups if names]}

    def row_losses(self, context: Context, state: State) -> Tensor | None:
        if not self.beta:
            return None
        outputs = context.outputs
        losses = context.objective.loss(outputs)
        sums = losses.new_zeros(len(context.tasks)).index_add(0, outputs.owners, losses)
        counts = torch.bincount(outputs.owners, minlength=len(sums)).clamp(min=1)
        return self.beta * torch.relu(self.bound - sums / counts)

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.alpha or not state["groups"]:
            return None
        norm = torch.linalg.vector_norm  # its gradient at zero is zero
        norms = [norm(torch.stack([norm(context.params[n]) for n in names])) for names in state["groups"]]
        return self.alpha * torch.stack(norms).sum()
