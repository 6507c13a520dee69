"""EVA: LoRA that starts from the directions in which the first stage's inputs vary most.

    y = W x + scale * B A x,   A = leading principal components of x,   B = 0

Paischer et al. 2024, arXiv:2410.07170. Before the first step the inputs of every target
are decomposed batch by batch (incremental, centred), until the components that are used turn by
less than arccos(settled) from one batch to the next. Ranks are then dealt out: of all components of
all targets the rank * targets that explain the largest share of their input's variance are kept, at
most round(spread * rank) in one target; a target that gets none has no update. A and B are trained
on through all stages.

Differences from peft's code: each decomposition is exact where that one is randomised; all targets
go on until all have settled; a batch with fewer rows than components is used, not skipped; after
`passes` passes over the rows the components are taken as they are, where that would go on for ever.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from lifelong.core.axes import Batch, Context, LowRank, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics import low_rank
from lifelong.numerics.incremental_pca import IncrementalPca, watched_inputs
from lifelong.numerics.positions import real_positions
from lifelong.numerics.swap import evaluating


@dataclass(frozen=True, kw_only=True)
class Eva(Tuner):
    """LoRA whose A and whose ranks follow from the inputs of the first stage."""

    paper: ClassVar[str] = "Paischer et al. 2024, arXiv:2410.07170"
    cost: ClassVar[str] = "as LoRA; once, passes over the first stage with a decomposition of each input"
    verified: ClassVar[tuple[str, ...]] = (
        "A is orthonormal, explains what exact PCA explains, and spans the subspace that peft's EVA finds",
        "ranks add up to the budget and follow the explained variance",
        "the function does not change a bit where the first stage begins; resumes bit for bit",
    )
    interpolates: ClassVar[bool] = True  # as lora

    rank: Annotated[int, Range(1)] = 16  # mean rank of a target
    alpha: Annotated[float, Range(0, open_low=True)] = 16.0  # update is scaled by alpha / rank
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # on the input of A, in training
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"
    spread: Annotated[float, Range(1)] = 2.0  # rho: limit of a target's rank, in units of `rank`
    settled: Annotated[float, Range(0, 1)] = 0.99  # tau: cosine between components of successive batches
    batch_size: Annotated[int, Range(1)] = 16  # rows per step of the decomposition
    passes: Annotated[int, Range(1)] = 10  # over the stage's rows, at most
    label_mask: bool = True  # only inputs at positions that carry a label, in decoders
    whiten: bool = False  # divide each component by the root of its singular value
    keep_scale: bool = True  # scale alpha / rank in every target; else alpha / the target's own rank

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"ranks": {module: rank}}; None until the first stage has begun."""
        model.network.requires_grad_(False)
        modules = low_rank.select_modules(model.network, self.targets)
        ranks = state["ranks"] if state else None
        for name, rank in (ranks or {}).items():
            low_rank.attach(modules[name], rank, self._scale(rank), self.dropout)
        return {"ranks": ranks}

    def begin_stage(self, context: Context, state: State) -> State:
        if state["ranks"] is not None:
            return state
        if None in (context.model, context.objective, context.batches) or not len(context.examples):
            raise UserError(
                "eva looks at the first stage's inputs: give Context(model=..., objective=..., "
                "examples=[at least one], batches=...)."
            )
        modules = low_rank.select_modules(context.model.network, self.targets)
        found, ranks = self._measured(context, modules)
        for name, rank in ranks.items():
            low_rank.attach(modules[name], rank, self._scale(rank), self.dropout)
            down = found[name].components[:rank]
            if self.whiten:
                down = down / found[name].values[:rank, None].sqrt()
            with torch.no_grad():
                modules[name].lora_A.weight.copy_(down)
        return {"ranks": ranks}

    def fold(self, model: Model, state: State) -> None:
        low_rank.fold_all(model.network, self.low_rank(model, state))

    def low_rank(self, model: Model, state: State) -> dict[str, LowRank]:
        found = {}
        for name, rank in (state["ranks"] or {}).items():
            module = model.network.get_submodule(name)
            down, up = module.lora_A.weight.detach(), module.lora_B.weight.detach()
            found[name] = LowRank(down, up, self._scale(rank))
        return found

    def _scale(self, rank: int) -> float:
        return self.alpha / (self.rank if self.keep_scale else rank)

    def _measured(
        self, context: Context, modules: dict[str, nn.Module]
    ) -> tuple[dict[str, IncrementalPca], dict[str, int]]:
        """Components of each target's inputs, and ranks."""
        objective, network, batch, ranks = context.objective, context.model.network, {}, {}
        both = context.model.kind == "encoder_decoder"
        linear = objective.has_linear_head(context.model)

        def rows(inputs: Tensor) -> Tensor:
            mask = real_positions(inputs, batch, both, self.label_mask) if inputs.dim() == 3 else slice(None)
            return inputs[mask].reshape(-1, inputs.shape[-1])

        with watched_inputs(modules, round(self.spread * self.rank), rows) as found, evaluating(network):
            for batch in self._batches(context):
                with torch.no_grad(), context.autocast():
                    (objective.features if linear else objective.forward)(network, batch)
                ranks = self._ranks(found, modules)
                turned = [found[name].agreement[:rank] for name, rank in ranks.items()]
                if turned and bool((torch.cat(turned) >= self.settled).all()):
                    break
        return found, ranks

    def _batches(self, context: Context) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(context.seed)
        for _ in range(self.passes):
            order = torch.randperm(len(context.examples), generator=generator).tolist()
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                yield from context.batches([context.examples[i] for i in chosen])

    def _ranks(self, found: dict[str, IncrementalPca], modules: dict[str, nn.Module]) -> dict[str, int]:
        """How many of the best rank * targets components each target has; those with none are absent."""
        owners, shares = [], []
        for name, module in modules.items():
            if name in found and found[name].count:
                most = min(round(self.spread * self.rank), *low_rank.dimensions(module))
                shares.append(found[name].explained[:most])
                owners += [name] * len(shares[-1])
        if not shares:
            return {}
        best = torch.cat(shares).argsort(descending=True, stable=True)[: self.rank * len(modules)]
        counts = Counter(owners[index] for index in best.tolist())
        return {name: counts[name] for name in modules if counts[name]}
