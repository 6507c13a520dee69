"""Intruder dimensions: strong directions of a tuned matrix that no direction of the original resembles.

    u_i, i <= k: left singular vectors of the tuned matrix;  v_j: all of the original's
    intruder: max_j |u_i . v_j| < threshold

Shuttleworth et al. 2024, arXiv:2410.21228 (k = 10, threshold 0.5): low-rank updates
grow them where full tuning hardly does, and more of them go with more forgetting. Every linear
module of the body is looked at; a matrix is what the module computes, so that updates beside the
weight count whatever tuner made them (W = f(I) - f(0); a module that is not linear in its input, such
as a routed one, is left out and counted as such). The original is the model before the first stage.
Matrices are float32 whatever they are stored in.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core.axes import Context, Diagnostic
from lifelong.core.settings import Range
from lifelong.numerics import low_rank


@dataclass(frozen=True, kw_only=True)
class IntruderDimensions(Diagnostic):
    """Count strong directions of tuned matrices that are new."""

    paper: ClassVar[str] = "Shuttleworth et al. 2024, arXiv:2410.21228"
    cost: ClassVar[str] = "two singular value decompositions per linear module after each stage; base weights"
    verified: ClassVar[tuple[str, ...]] = (
        "0 where nothing changed; exactly 1 for one new direction above all others",
        "the matrix that is looked at contains updates beside the weight",
        "rotating inputs changes no count",
    )
    title: ClassVar[str] = "Intruder dimensions"
    better: ClassVar[str] = "lower"
    needs_base: ClassVar[bool] = True

    top: Annotated[int, Range(1)] = 10  # k, strongest directions of each tuned matrix
    threshold: Annotated[float, Range(0, 1)] = 0.5  # cosine below which a direction is new

    def measure(self, context: Context) -> dict[str, float]:
        counts, skipped, bases = [], 0, dict(context.base.named_parameters())
        for name, module in low_rank.linear_modules(context.model.network).items():
            base = bases.get(f"{name}.weight")
            if base is None:
                continue
            tuned = low_rank.matrix_of(module, context.routed)
            if tuned is None:
                skipped += 1
                continue
            original = base.T if isinstance(module, low_rank.Conv1D) else base
            counts.append(intruders(original.to(tuned), tuned, self.top, self.threshold))
        mean = sum(counts) / len(counts) if counts else 0.0
        return {"total": float(sum(counts)), "per_matrix": mean, "matrices": float(len(counts)),
                "left_out": float(skipped)}  # fmt: skip

    def brief(self, figures: dict[str, float]) -> dict[str, float]:
        return {"per_matrix": figures["per_matrix"]}


def intruders(original: Tensor, tuned: Tensor, top: int, threshold: float) -> int:
    """Of two (out, in) matrices."""
    if torch.equal(original, tuned):
        return 0
    new = torch.linalg.svd(tuned.float(), full_matrices=False)[0][:, :top]
    old = torch.linalg.svd(original.float(), full_matrices=False)[0]
    return int(((old.T @ new).abs().amax(0) < threshold).sum())
