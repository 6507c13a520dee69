"""O-LoRA's term: a new low-rank update reads directions that no finished update reads.

    absolute: strength * sum over modules of sum_ij |P A^T|_ij    (the authors' code)
    squared:  strength * sum over modules of sum_ij (P A^T)_ij^2  (the paper)
    plus magnitude * sum over modules of ||A||_2 + ||B||_2        (the authors' code; not squared)

P (R, in): input directions of all finished updates; A (r, in), B: factors of the one in training.
Wang et al. 2023, arXiv:2310.14152. Where P A^T = 0 the two weight updates are
orthogonal. P never gets a gradient.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lifelong.core.axes import Context, Penalty, Subspace
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError

Groups = list[tuple[list[str], Tensor]]  # modules of equal sizes, their P stacked (M, R, in) float32

# Derived from the tuner's state and so no state of its own: stacks of the running stage, by network.
_STACKED: WeakKeyDictionary[nn.Module, tuple[dict[str, Subspace], list[int], Groups]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Orthogonal(Penalty):
    """Keep new low-rank updates orthogonal to those of earlier stages."""

    paper: ClassVar[str] = "Wang et al. 2023, arXiv:2310.14152"
    cost: ClassVar[str] = "two products (R, in) x (in, r) per module and step; one float32 copy of all P"
    verified: ClassVar[tuple[str, ...]] = (
        "1.0 (absolute) and 0.5 (squared) on the two-row example; exactly 0 where orthogonal",
        "value and gradient equal autograd of the formula; finished directions get no gradient",
        "strength 0 and the first stage change no bit",
    )
    needs_subspaces: ClassVar[bool] = True

    strength: Annotated[float, Range(0)] = 0.5  # weight of the overlap; 0 is off
    form: Literal["absolute", "squared"] = "absolute"  # as in the authors' code, or as in the paper
    magnitude: Annotated[float, Range(0)] = 0.0  # weight of the factors' norms; 0 is off

    def init(self, context: Context) -> State:
        return {}

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.strength and not self.magnitude:
            return None
        if context.tuner is None or context.model is None:
            raise UserError(
                "orthogonal asks the tuner for its directions: give Context(model=..., tuner=...)."
            )
        spaces = context.tuner.subspaces(context.model, context.tuner_state)
        terms = []
        if self.strength:
            groups = _stacked(context.model.network, spaces)
            if groups:
                current = [spaces[name].current for names, _ in groups for name in names]
                terms.append(self.strength * _Overlap.apply(self.form, groups, *current))
        if self.magnitude:
            factors = [p for n, p in context.params.items() if any(n.startswith(f"{s}.") for s in spaces)]
            norms = [torch.linalg.vector_norm(factor.float()) for factor in factors]
            terms.append(self.magnitude * torch.stack(norms).sum())
        return torch.stack(terms).sum() if terms else None

    def end_stage(self, context: Context, state: State) -> State:
        return state


def _stacked(network: nn.Module, spaces: dict[str, Subspace]) -> Groups:
    """Modules of equal sizes together; stacked anew only when some P is another or has changed."""
    known = _STACKED.get(network)
    versions = [space.past._version for space in spaces.values()]
    if known and list(known[0]) == list(spaces) and known[1] == versions:
        if all(_same(known[0][name].past, space.past) for name, space in spaces.items()):
            return known[2]
    members: dict[Any, list[str]] = {}
    for name, (past, current) in spaces.items():
        if len(past):
            members.setdefault((past.shape, current.shape, past.device), []).append(name)
    groups = [
        (names, torch.stack([spaces[name].past.detach().float() for name in names]))
        for names in members.values()
    ]
    # the tensors themselves are kept, so that no other can come to lie at their address
    held = {name: Subspace(space.past.detach(), space.past.detach()) for name, space in spaces.items()}
    _STACKED[network] = (held, versions, groups)
    return groups


def _same(left: Tensor, right: Tensor) -> bool:
    return (left.data_ptr(), left.shape, left.stride()) == (right.data_ptr(), right.shape, right.stride())


class _Overlap(torch.autograd.Function):
    """Sum of |P A^T| or of its squares; the gradient (sign or twice, times P) is made at once."""

    @staticmethod
    def forward(ctx: Any, form: str, groups: Groups, *current: Tensor) -> Tensor:
        total, gradients, start = torch.zeros((), device=current[0].device), [], 0
        with torch.autocast(current[0].device.type, enabled=False):  # products in float32
            for names, past in groups:
                part = current[start : start + len(names)]
                start += len(names)
                overlap = past @ torch.stack([factor.detach().float() for factor in part]).mT  # (M, R, r)
                size = overlap.abs() if form == "absolute" else overlap.square()
                total += size.sum().to(total.device)
                slope = overlap.sign() if form == "absolute" else 2 * overlap
                gradients += (slope.mT @ past).unbind()
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [factor.dtype for factor in current]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        made = (grad.to(g.device) * g for g in ctx.saved_tensors)
        return None, None, *(g.to(dtype) for g, dtype in zip(made, ctx.dtypes, strict=True))
