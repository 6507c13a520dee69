"""LoRA: one low-rank update per linear module, trained on through all stages.

    y = W x + (alpha / rank) * B A x        (Hu et al. 2022, arXiv:2106.09685)

A starts uniform in +-1/sqrt(in), B at zero. The pair goes on from stage to stage; nothing protects
what it learned before (that is what penalties and replay are for). File format: peft's.

A share t of a stage's update (a repair, a merger) is taken of both factors, A + t dA and B + t dB: it is
a pair of the same rank, and both ends are exact. Its weights lie beside the straight line, by

    t (1 - t) (alpha / rank) dB dA

Half way that was a tenth of the update (three stages, MiniLM), where the nearest pair of this rank, by
singular values, lies at a twentieth; but that one has other factors, which no penalty could compare with
those of before.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from lifelong.core.axes import LowRank, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics import low_rank


@dataclass(frozen=True, kw_only=True)
class Lora(Tuner):
    """One low-rank update beside frozen weights, trained on from stage to stage."""

    paper: ClassVar[str] = "Hu et al. 2022, arXiv:2106.09685"
    cost: ClassVar[str] = "rank * (in + out) weights per module in all; two thin products per forward"
    verified: ClassVar[tuple[str, ...]] = (
        "export loads in plain peft and plain transformers with the same logits",
        "equals peft's own LoRA in outputs and gradients",
        "a share of an update is a pair of the same rank, beside the line by t (1 - t) (alpha / rank) dB dA",
        "resumes bit for bit",
    )
    interpolates: ClassVar[bool] = True

    rank: Annotated[int, Range(1)] = 8  # columns of B
    alpha: Annotated[float, Range(0, open_low=True)] = 16.0  # update is scaled by alpha / rank
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # on the input of A, in training
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        scale = self.alpha / self.rank
        low_rank.attach_all(model.network, self.targets, self.rank, scale, self.dropout, seed)
        return {}

    def fold(self, model: Model, state: State) -> None:
        low_rank.fold_all(model.network, self.low_rank(model, state))

    def low_rank(self, model: Model, state: State) -> dict[str, LowRank]:
        modules = low_rank.select_modules(model.network, self.targets)
        return {
            name: LowRank(m.lora_A.weight.detach(), m.lora_B.weight.detach(), self.alpha / self.rank)
            for name, m in modules.items()
        }
