"""RankMe: how many directions the features of a stage's rows really use.

    p_k = sigma_k / sum sigma + epsilon,   RankMe = exp(-sum_k p_k ln p_k)

Garrido et al. 2023, arXiv:2210.02885; sigma are the singular values of the (N, H)
features, not centred. Between 1 and min(N, H). A label-free sign of quality: in their data a higher
rank goes with better transfer, and a rank that falls from stage to stage is a collapse. The authors
advise at least 25,600 rows; with fewer only runs on the same rows compare.

Features are those that a linear head would read: mean over tokens (encoder-decoders, encoders), the
last token (decoders) or the first one (vision), unless `pooling` says otherwise.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.core import head
from lifelong.core.axes import Context, Diagnostic
from lifelong.core.settings import Range
from lifelong.numerics.swap import evaluating


@dataclass(frozen=True, kw_only=True)
class Rankme(Diagnostic):
    """Effective rank of the features of the stage's rows."""

    paper: ClassVar[str] = "Garrido et al. 2023, arXiv:2210.02885"
    cost: ClassVar[str] = "a forward pass over the rows and a singular value decomposition, after each stage"
    verified: ClassVar[tuple[str, ...]] = (
        "8.000006 for the identity of size 8 and 1.000013 for rank one, as the formula has it",
        "does not depend on the scale of the features, the order of rows or the batch size",
        "changes no bit of a run",
    )
    title: ClassVar[str] = "Effective rank of features"
    better: ClassVar[str] = "higher"

    num_examples: Annotated[int, Range(1)] = 25600  # rows of the stage, at most
    batch_size: Annotated[int, Range(1)] = 32  # rows per pass; changes nothing but speed
    pooling: Literal["auto", "cls", "mean"] = "auto"  # of a text's or an image's features
    epsilon: Annotated[float, Range(0)] = 1e-7  # added to every share

    def measure(self, context: Context) -> dict[str, float]:
        generator = torch.Generator().manual_seed(context.seed)
        order = torch.randperm(len(context.examples), generator=generator)[: self.num_examples].tolist()
        found = []
        with torch.no_grad(), evaluating(context.model.network), context.autocast():
            for start in range(0, len(order), self.batch_size):
                chosen = [context.examples[i] for i in order[start : start + self.batch_size]]
                for batch in context.batches(chosen):
                    found.append(head.features(context.model.network, batch, self.pooling).double())
        return {"effective_rank": effective_rank(torch.cat(found), self.epsilon), "rows": float(len(order))}

    def brief(self, figures: dict[str, float]) -> dict[str, float]:
        return {"effective_rank": figures["effective_rank"]}


def effective_rank(features: Tensor, epsilon: float = 1e-7) -> float:
    """Of (N, H) features."""
    sizes = torch.linalg.svdvals(features.double())
    shares = sizes / sizes.sum() + epsilon
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))
