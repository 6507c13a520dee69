"""Where the weights moved between two nodes: per parameter and per layer.

Where both updates are of low rank the difference is theirs, one module at a time, without the
rounding of the weights: norm and rank follow from the thin factors. Otherwise both models are made
plain and compared tensor by tensor; then two models are held.

The figures are those of numerics.change; `relative` is to the untrained weight, and `effective_rank` None
for vectors.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lifelong.core.axes import LowRank
from lifelong.errors import UserError
from lifelong.models import restore
from lifelong.models.heads import NAME as HEAD
from lifelong.numerics.change import Sizes, figures, sizes_of, told
from lifelong.store.node import Node


class Weights(NamedTuple):
    """What a node adds to its base."""

    low_rank: dict[str, LowRank] | None  # by module; None where the update is not one
    plain: dict[str, Tensor]  # all weights, or with `low_rank` those of the head


def movement(left: Node, right: Node) -> dict[str, Any]:
    """Figures per parameter and per layer, and for the whole model. UserError where the nodes stand on
    other base weights, or where an update is routed.
    """
    saved = [restore.read_run(node.home, node.stage) if node.row else None for node in (left, right)]
    known = next((each for each in saved if each is not None), None)
    if known is None:
        return told([], {})
    bases = {_base(node, each) for node, each in zip((left, right), saved, strict=True)}
    if len(bases) > 1:
        raise UserError(
            f"{left.id} and {right.id} stand on different base models ({' and '.join(sorted(bases))}), so "
            "no weight has a partner."
        )
    base = dict(restore.base_of(known).network.named_parameters())
    sizes = sizes_of(base)
    del base
    low = all(each is None or _is_low_rank(each) for each in saved)
    before, after = (_weights(each, known, low) for each in saved)
    if low and None in (before.low_rank, after.low_rank):
        low = False
        before, after = (_weights(each, known, low) for each in saved)
    changes = _low_rank_changes(before, after) if low else _plain_changes(before.plain, after.plain)
    return told([_figures(name, moved, known, sizes) for name, moved, known in changes], sizes)


def _base(node: Node, saved: restore.Saved | None) -> str:
    return node.weights if saved is None else saved.config["model"]["fingerprint"][: len(node.weights)]


def _is_low_rank(saved: restore.Saved) -> bool:
    return type(saved.tuner).low_rank is not restore.Tuner.low_rank


def _weights(saved: restore.Saved | None, base: restore.Saved, low: bool) -> Weights:
    if saved is None:
        network = None if low else restore.base_of(base).network
        return Weights({}, {} if network is None else _values(network))
    if not saved.tuner.folds:
        raise UserError(
            f"{saved.folder}: what {type(saved.tuner).__name__} learned is routed, so there is no single "
            "weight that moved. Leave --weights out."
        )
    restored = restore.put_on(saved)
    network = restored.model.network
    update = restored.tuner.low_rank(restored.model, restored.tuner_state) if low else None
    if update is not None:
        kept = {name: LowRank(each.down.cpu().clone(), each.up.cpu().clone(), each.scale)
                for name, each in update.items()}  # fmt: skip
        return Weights(kept, {k: v for k, v in _values(network).items() if k.startswith(f"{HEAD}.")})
    restored.tuner.fold(restored.model, restored.tuner_state)
    return Weights(None, _values(network))


def _values(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in network.named_parameters()}


Change = tuple[str, Tensor, Tensor | None]  # parameter, difference, its singular values if known


def _low_rank_changes(before: Weights, after: Weights) -> Iterator[Change]:
    for name in dict.fromkeys([*after.low_rank, *before.low_rank]):
        up, down = _factors(before.low_rank.get(name), after.low_rank.get(name))
        thin = torch.linalg.qr(up.double(), mode="r").R @ torch.linalg.qr(down.T.double(), mode="r").R.T
        yield f"{name}.weight", up @ down, torch.linalg.svdvals(thin)
    yield from _plain_changes(before.plain, after.plain)


def _factors(before: LowRank | None, after: LowRank | None) -> tuple[Tensor, Tensor]:
    """(out, r) and (r, in) whose product is the difference. Pairs that both have cancel exactly."""
    if before is None or after is None:
        only, sign = (after, 1.0) if before is None else (before, -1.0)
        return sign * only.scale * only.up.float(), only.down.float()
    rank = before.down.shape[0]
    grown = before.scale == after.scale and rank <= after.down.shape[0]
    if grown and before.down.equal(after.down[:rank]) and before.up.equal(after.up[:, :rank]):
        return after.scale * after.up[:, rank:].float(), after.down[rank:].float()
    up = torch.cat([after.scale * after.up.float(), -before.scale * before.up.float()], dim=1)
    return up, torch.cat([after.down.float(), before.down.float()])


def _plain_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Iterator[Change]:
    """A head that has grown was zero where it was not."""
    for name in dict.fromkeys([*after, *before]):
        known = [(1.0, after.get(name)), (-1.0, before.get(name))]
        values = [(sign, value.float()) for sign, value in known if value is not None]
        change = torch.zeros([max(sizes) for sizes in zip(*(v.shape for _, v in values), strict=True)])
        for sign, value in values:
            change[tuple(map(slice, value.shape))] += sign * value
        yield name, change, None


def _figures(name: str, moved: Tensor, singular: Tensor | None, sizes: Sizes) -> dict[str, Any]:
    if singular is None and moved.dim() == 2 and moved.any():
        short = moved if moved.shape[0] <= moved.shape[1] else moved.T
        gram = short.double() @ short.double().T
        singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    return figures(name, moved, sizes, singular)
