"""Dark experience replay (DER, DER++): answer remembered rows with the logits of their first visit.

    alpha * mean (z(x) - z_kept)^2 + beta * mean cross-entropy(z(x), y)     over remembered rows (x, y)

Buzzega et al. 2020, arXiv:2004.07211; beta = 0 is DER, beta > 0 is DER++. z_kept are
the logits that the step computed when the row was first seen, in training. Both terms use the same
rows (the authors draw a second batch for the second term). Rows count alike, whatever the number of
their labelled positions; the squared difference is a mean over positions and columns. Where a head
has grown since, only the columns that the row was answered with are compared; columns that an
objective hid from a row (mask_old) are left out. Memory is a reservoir over everything seen, of the
running stage too (`current`), since the method knows no boundaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from lifelong.core.axes import Outputs, Replay
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics.reservoir_sampling import offer, sample

HIDDEN = -6e4  # logits below are those of masked columns (the least value of the type; float16: -65504)


@dataclass(frozen=True, kw_only=True)
class Der(Replay):
    """Replay rows together with the answers that the model gave when it first saw them."""

    paper: ClassVar[str] = "Buzzega et al. 2020, arXiv:2004.07211"
    cost: ClassVar[str] = (
        "fraction more rows per step; logits of 2 or 4 bytes, size * labelled positions * columns of them"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "value and gradient equal the closed form; exactly 0 (float32) where the answers are the kept ones",
        "columns of labels learned since do not enter; beta alone is plain replay of equal rows",
        "does not depend on the division into micro batches; fraction 0 equals no memory bit for bit",
    )
    joins: ClassVar[bool] = False
    keeps_logits: ClassVar[bool] = True

    size: Annotated[int, Range(0)] = 500  # rows kept
    fraction: Annotated[float, Range(0)] = 1.0  # replayed rows per new row in a step
    alpha: Annotated[float, Range(0)] = 0.5  # weight of the squared difference of logits
    beta: Annotated[float, Range(0)] = 0.5  # weight of the rows' own labels; 0 is DER
    precision: Literal["float16", "float32"] = "float16"  # of kept logits: 3 digits and half the memory
    keep: Literal["tokens", "text"] = "tokens"  # encoded rows, or the rows as read
    current: bool = True  # may rows of the stage in training be replayed?

    def init(self, seed: int) -> State:
        return {"seed": seed, "seen": 0, "items": []}

    def add(self, state: State, items: Sequence[dict[str, Any]]) -> State:
        """The items list is changed in place; logits are kept on the CPU until a resume."""
        seen = offer(state["items"], items, self.size, state["seed"], state["seen"], self._packed)
        return {**state, "seen": seen}

    def pick(self, state: State, num_rows: int, stage: int, step: int) -> list[dict[str, Any]]:
        """round(fraction * num_rows) distinct items (all there are, if fewer), drawn uniformly."""
        if not self.alpha and not self.beta:
            return []
        eligible = [item for item in state["items"] if self.current or item["stage"] != stage]
        return sample(eligible, round(self.fraction * num_rows), state["seed"], stage, step)

    def loss(self, outputs: Outputs, items: Sequence[dict[str, Any]]) -> Tensor:
        order = outputs.owners.argsort(stable=True)  # positions of a row side by side, as they are kept
        owners, logits = outputs.owners[order], outputs.logits[order].float()
        counts = torch.bincount(owners, minlength=len(items))
        zeros = torch.zeros(len(items), device=logits.device)
        total = logits[:0].sum()  # 0, in the graph
        if self.alpha:
            kept = self._kept(items, counts.tolist(), logits)
            shown = (kept > HIDDEN) & (logits > HIDDEN)
            squares = torch.where(shown, logits - kept, 0.0).square().sum(1)
            compared = zeros.index_add(0, owners, shown.sum(1).float()).clamp(min=1)
            total = total + self.alpha * (zeros.index_add(0, owners, squares) / compared).sum()
        if self.beta:
            entropies = functional.cross_entropy(logits, outputs.targets[order], reduction="none")
            means = zeros.index_add(0, owners, entropies) / counts.clamp(min=1)
            total = total + self.beta * means.sum()
        return total / len(items)

    def _kept(self, items: Sequence[dict[str, Any]], counts: Sequence[int], logits: Tensor) -> Tensor:
        """(N, C) float32, as `logits`: answers of the first visit, HIDDEN where a head has grown since."""
        found = []
        for item, count in zip(items, counts, strict=True):
            kept = item["logits"]
            if not count:
                continue
            if len(kept) != count:
                raise UserError(
                    f"der: a row of stage {item['stage']} has {count} labelled positions and had "
                    f"{len(kept)} when it was kept. Set Der.keep to tokens."
                )
            missing = logits.shape[1] - kept.shape[1]
            found.append(functional.pad(kept, (0, missing), value=HIDDEN) if missing else kept)
        if not found:
            return torch.empty_like(logits)
        with torch.autocast(logits.device.type, enabled=False):  # of bfloat16 refuses float16
            return torch.cat(found).to(logits.device).float()

    def _packed(self, item: dict[str, Any]) -> dict[str, Any]:
        kind = torch.float16 if self.precision == "float16" else torch.float32
        limit = torch.finfo(kind).max
        logits = item["logits"].detach().to("cpu").float().clamp(-limit, limit).to(kind)
        return item | {"logits": logits}
