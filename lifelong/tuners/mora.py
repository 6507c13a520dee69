"""MoRA: every rank is an expert that scores its own relevance ("Little By Little", arXiv:2506.21035).

    y = W x + alpha * sum_{i in top} g_i(x) b_i <a_i, x>      g = softmax of score_i(x) / temperature (eq. 8)
    top = the `budget` highest scores of all experts so far

Each stage adds `rank` experts (a_i, b_i), b_i = 0; those of finished stages are frozen and stay in the
pool. The score needs no router: it is the size of the expert's own activation.

No code was published, and the paper leaves three things open; they are settings here. `relevance`:
"pool" divides |<a_i, x>| by the norm of all activations of the pool, "cosine" by |a_i| |x|, "activation"
by nothing. `start`: new a_i are uniform as in LoRA, or orthogonal to the pool. `gate`: it multiplies
<a_i, x>, or takes its place. Ours besides: the softmax is taken over the chosen experts, so that one
that is never chosen changes nothing, and gates sum to 1, so that `alpha` = 16 with 8 equal gates is
LoRA's alpha / rank = 2. Rank pruning drops the new experts whose mean gate over rows of their stage
stays below `prune`. Since no auxiliary loss is described, there is none. A new expert takes part in the
choice from its first step, so a stage that begins changes the function unless the budget has room.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.core.axes import Context, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics import low_rank, routing


@dataclass(frozen=True, kw_only=True)
class Mora(Tuner):
    """Rank-one experts that choose themselves by their activation; old ones are frozen and used again."""

    paper: ClassVar[str] = "Little By Little 2025, arXiv:2506.21035"
    cost: ClassVar[str] = "rank * (in + out) weights kept per module and stage; all scores in every forward"
    verified: ClassVar[tuple[str, ...]] = (
        "with room for all experts and an endless temperature equals a scaled sum of low-rank pairs",
        "no more experts than the budget act on a token",
        "an expert that is never chosen changes nothing; old experts keep every bit",
        "exports to a base with experts beside it that gives the same logits; resumes bit for bit",
    )
    persistent: ClassVar[bool] = False
    folds: ClassVar[bool] = False

    rank: Annotated[int, Range(1)] = 8  # experts that a stage adds, per module
    budget: Annotated[int, Range(1)] = 8  # experts that act on a token, per module
    alpha: Annotated[float, Range(0, open_low=True)] = 16.0  # weight of the sum over the chosen experts
    temperature: Annotated[float, Range(0, open_low=True)] = 1.0  # of the gates; large = all alike
    relevance: Literal["pool", "cosine", "activation"] = "pool"  # what an activation is divided by
    start: Literal["uniform", "orthogonal"] = "uniform"  # new experts: as in LoRA, or unlike all before
    gate: Literal["multiply", "replace"] = "multiply"  # what it does to the activation <a, x>
    threshold: Annotated[float, Range(0, 1)] = 0.0  # gates below it are 0 outside training
    prune: Annotated[float, Range(0, 1)] = 0.0  # new experts with a smaller mean gate go; 0 keeps all
    num_examples: Annotated[int, Range(1)] = 256  # rows of the stage that the mean gate is taken over
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"pools": {module: {"down": (R, in), "up": (out, R), "training": are new ones open?}}}."""
        network, made = model.network, {}
        trace = routing.watch(network)
        network.requires_grad_(False)
        for name, module in low_rank.select_modules(network, self.targets).items():
            inside, outside = low_rank.dimensions(module)
            if self.rank > inside:
                raise UserError(f"Mora.rank must be at most {inside} for `{name}`; got {self.rank}.")
            empty = {"down": torch.zeros(0, inside), "up": torch.zeros(outside, 0), "training": False}
            kept = state["pools"][name] if state else empty
            down, up = (kept[key].to(module.weight.device) for key in ("down", "up"))
            pool = routing.Pool(name, down, up, self.alpha, 0.0, self._mix, trace)
            routing.put_beside(module, pool)
            if kept["training"]:
                pool.open(torch.zeros(self.rank, inside))
            made[name] = {"down": down, "up": up, "training": kept["training"]}
        return {"pools": made}

    def begin_stage(self, context: Context, state: State) -> State:
        generator = torch.Generator().manual_seed(context.seed)
        pools = {}
        for name, kept in state["pools"].items():
            pool = routing.experts_of(context.model.network, name)
            fresh = routing.uniform(self.rank, pool.past_down.shape[1], generator)
            if self.start == "orthogonal":
                fresh = _orthogonal(fresh, pool.past_down.cpu())
            pool.open(fresh)
            pools[name] = kept | {"training": True}
        return {"pools": pools}

    def end_stage(self, context: Context, state: State) -> State:
        usage, pools = self._usage(context) if self.prune else {}, {}
        for name in state["pools"]:
            pool = routing.experts_of(context.model.network, name)
            kept = torch.ones(self.rank, dtype=torch.bool, device=pool.past_down.device)
            if name in usage:  # a module that no row passes through keeps its experts
                kept = usage[name][-self.rank :] >= self.prune
            pool.close(kept)
            pools[name] = {"down": pool.past_down, "up": pool.past_up, "training": False}
        return {"pools": pools}

    def fold(self, model: Model, state: State) -> None:
        return None

    def _mix(self, pool: routing.Pool, inputs: Tensor, activations: Tensor, place: routing.Place) -> Tensor:
        down = pool.factors()[0] if self.relevance == "cosine" else None
        gates = self.gates(activations, inputs, down)
        if self.threshold and not pool.training:
            gates = gates * (gates >= self.threshold)
        if pool.trace.listening:
            flat = gates if place.mask is None else gates[place.mask.bool()]
            flat = flat.reshape(-1, gates.shape[-1])
            pool.trace.seen[pool.name] = (flat.sum(0), len(flat))
        return activations * gates if self.gate == "multiply" else gates

    def gates(self, activations: Tensor, inputs: Tensor, down: Tensor | None) -> Tensor:
        """(..., R) gates of all experts from their activations; 0 outside the budget, sum 1. `down` is
        read by `cosine` alone.
        """
        scores = activations.float().abs()
        if self.relevance == "pool":
            scores = scores / scores.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        elif self.relevance == "cosine":
            sizes = down.float().norm(dim=1) * inputs.float().norm(dim=-1, keepdim=True)
            scores = scores / sizes.clamp(min=1e-12)
        scores = scores if self.temperature == 1 else scores / self.temperature
        if scores.shape[-1] > self.budget:
            top = scores.detach().topk(self.budget, dim=-1, sorted=False).indices
            outside = torch.full_like(scores, -torch.inf).scatter_(-1, top, 0.0)
            scores = scores + outside
        return scores.softmax(-1)

    def _usage(self, context: Context) -> dict[str, Tensor]:
        """Mean gate of every expert over the tokens of the stage's first rows, by module."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for seen, _ in routing.passes(context, self.num_examples, batch_size=16):
            for name, (gates, count) in seen.items():
                sums[name] = sums.get(name, 0) + gates
                counts[name] = counts.get(name, 0) + count
        return {name: sums[name] / max(counts[name], 1) for name in sums}


def _orthogonal(rows: Tensor, past: Tensor) -> Tensor:
    """Rows of the same length, orthogonal to each other and to `past` as far as there is room."""
    inside = rows.shape[1]
    room = min(len(past), max(inside - len(rows), 0))
    basis = torch.linalg.qr(torch.cat([past[len(past) - room :], rows]).T).Q  # (in, <= in)
    made = basis.T[room : room + len(rows)]
    return made * rows.norm(dim=1, keepdim=True)[: len(made)]
