"""The gradient of one optimiser step: the task, the memory, the penalties."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from lifelong.core.axes import Outputs
from lifelong.core.batching import Item, Part
from lifelong.core.composition import snake
from lifelong.core.features import forward_with_features
from lifelong.core.feeding import items, replayed
from lifelong.core.life import Life
from lifelong.numerics.positions import layer_outputs

Terms = dict[str, Tensor]  # scalar terms beside the task's loss, by name of the method


class Taken(NamedTuple):
    """What one optimiser step saw."""

    loss: float  # of the task, nats per labelled position
    terms: dict[str, float]  # of penalties and memories, by name
    tokens: int
    pads: int
    logits: dict[int, Tensor]  # of new rows by place in the batch, where a memory keeps them

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss + sum(self.terms.values()))

    @property
    def words(self) -> str:
        return "".join([f"loss {self.loss}", *(f", {name} {value}" for name, value in self.terms.items())])


def gradients(life: Life, rows: np.ndarray, micro_batch_size: int | None, first_visit: bool) -> Taken:
    """Leave the gradient of one optimiser step in `.grad`.

    The loss is the mean over all labelled positions of the step, however the step is cut into micro
    batches. Penalties on answers count in every micro batch by its share of the positions, penalties
    on weights once per step, after the task's gradient is complete. In an erase stage the new rows are
    to be forgotten, by a term of their own that comes after the loss of the rows that remain.
    """
    new, old = items(life, rows), replayed(life, len(rows))
    forgotten = life.batches(new, micro_batch_size) if life.erasing else []
    learned = [] if life.erasing else new
    replay = life.methods.replay
    apart = replay is not None and not replay.joins
    reference = gradient_of(life, old, micro_batch_size) if old and apart and replay.projects else None
    parts = life.batches(learned if apart else learned + old, micro_batch_size)
    total, sums, logits = backward_learned(life, parts, first_visit)
    if old and apart and not replay.projects:
        add(sums, backward_memory(life, old, micro_batch_size))
    add(sums, backward_forgotten(life, forgotten, len(new)))
    gather_gradients(life)
    seen = [*parts, *forgotten]
    tokens, pads = sum(part.tokens for part in seen), sum(part.pads for part in seen)
    taken = together(life, Taken(total, sums, tokens, pads, logits))
    life.loss = taken.loss
    life.call("after_backward")
    on_weights = terms_on_weights(life)
    if on_weights:
        add(taken.terms, on_weights)
        life.accelerator.backward(sum(on_weights.values()))
    if reference is not None:
        replay.project(life.params, reference)
    return taken


def backward_learned(
    life: Life, parts: Sequence[Part], first_visit: bool
) -> tuple[float, dict[str, float], dict[int, Tensor]]:
    """(loss, terms, logits that a memory keeps) of rows whose loss is minimised, with their gradient."""
    replay, count = life.methods.replay, life.total(sum(part.labelled for part in parts))
    keeps = replay is not None and replay.keeps_logits and first_visit
    total, sums, logits = 0.0, {}, {}
    for part in parts:
        with life.autocast():
            outputs, seen = forward(life, part)
            loss = part.objective.loss(outputs).sum() / count
            own = terms(life, part, outputs, share=part.labelled / count, **seen)
        total += loss.item()
        add(sums, own)
        if keeps:
            logits |= logits_by_place(part, outputs)
        life.accelerator.backward(sum(own.values(), start=loss))
    return total, sums, logits


def forward(life: Life, part: Part) -> tuple[Outputs, dict[str, Any]]:
    """Outputs of a micro batch, and what methods ask to see of the pass, as a context has it."""
    network, objective = life.network, part.objective
    reads_layers = life.methods.tuner.needs_layers
    with layer_outputs(network) if reads_layers else contextlib.nullcontext() as layers:
        if any(each.needs_features for each in life.methods.penalties):
            outputs, features = forward_with_features(objective, network, part.batch)
            return outputs, {"features": features, "layers": layers}
        return objective.forward(network, part.batch), {"layers": layers}


def together(life: Life, own: Taken) -> Taken:
    """What all processes saw; one that had no row of the step adds nothing."""
    if life.accelerator.num_processes == 1:
        return own
    sums, logits = {}, {}
    every = gather_object([own])
    for each in every:
        add(sums, each.terms)
        logits |= each.logits
    loss, tokens, pads = (sum(getattr(each, name) for each in every) for name in ("loss", "tokens", "pads"))
    return Taken(loss, sums, tokens, pads, logits)


def add(totals: dict[str, float], found: Mapping[str, Tensor | float]) -> None:
    for name, term in found.items():
        totals[name] = totals.get(name, 0.0) + (term.item() if isinstance(term, Tensor) else term)


def terms(
    life: Life, part: Part | None = None, outputs: Outputs | None = None, share: float = 1.0, **seen: Any
) -> Terms:
    """Terms of tuner and penalties by name: with a `part` those on answers, weighted by its share
    of the step's labelled positions; without one those on weights, once per step and alike in
    every process. Methods that hold nothing yet are absent.
    """
    found, context = {}, None
    for role, actor in life.with_term(on_answers=part is not None).items():
        context = context or (life.context_of(part, outputs, **seen) if part else life.context())
        term = actor.loss(context, life.states[role])
        if term is not None:
            found[snake(actor)] = term * share
    return found


def terms_on_weights(life: Life) -> Terms:
    """Once per step; without such terms the compute type, dear to a small step, is not entered."""
    if not life.with_term(on_answers=False):
        return {}
    with life.autocast():
        return terms(life)


def gather_gradients(life: Life) -> None:
    """Sum gradients over processes; one that had no row of the step adds nothing."""
    if life.accelerator.num_processes == 1:
        return
    params = list(life.params.values())
    given = torch.tensor([p.grad is not None for p in params], dtype=torch.int64, device=params[0].device)
    for parameter, anywhere in zip(params, life.accelerator.reduce(given, "sum").tolist(), strict=True):
        if anywhere:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = life.accelerator.reduce(own, "sum")


def gradient_of(life: Life, items: Sequence[Item], size: int | None) -> dict[str, Tensor]:
    """Gradient of the mean loss of `items` alone; `.grad` is empty afterwards."""
    parts = life.batches(items, size)
    count = life.total(sum(part.labelled for part in parts))
    for part in parts:
        with life.autocast():
            losses = part.objective.loss(part.objective.forward(life.network, part.batch))
        life.accelerator.backward(losses.sum() / count)
    gather_gradients(life)
    found = {name: p.grad for name, p in life.params.items() if p.grad is not None}
    for parameter in life.params.values():
        parameter.grad = None
    return found


def backward_memory(life: Life, items: Sequence[Item], size: int | None) -> Terms:
    """Gradient of the memory's own loss on its items, and of a tuner's term on rows of earlier stages."""
    replay, tuner, found = life.methods.replay, life.methods.tuner, {}
    parts = life.batches(items, size)
    count = life.total(sum(part.labelled for part in parts))
    for part in parts:
        with life.autocast():
            outputs, seen = forward(life, part)
            term = replay.loss(outputs, [items[i].memory for i in part.places])
            own = None
            if tuner.pulls_old:
                own = tuner.loss(life.context_of(part, outputs, **seen), life.tuner_state)
        made = {snake(replay): term * (len(part.places) / len(items))}
        if own is not None:
            made[snake(tuner)] = own * (part.labelled / count)
        life.accelerator.backward(sum(made.values()))
        for name, each in made.items():
            found[name] = found.get(name, 0.0) + each.detach()
    return found


def backward_forgotten(life: Life, parts: Sequence[Part], num_rows: int) -> Terms:
    """Gradient of the mean term of rows that are to be forgotten, `num_rows` in all processes."""
    method, found = life.methods.unlearning, {}
    for part in parts:
        with life.autocast():
            outputs = part.objective.forward(life.network, part.batch)
            losses = method.row_losses(life.context_of(part, outputs), life.states["unlearning"])
        if losses is None:
            continue
        term = losses.sum() / num_rows
        life.accelerator.backward(term)
        found[snake(method)] = found.get(snake(method), 0.0) + term.detach()
    return found


def logits_by_place(part: Part, outputs: Outputs) -> dict[int, Tensor]:
    """(N_i, C) logits of every new row of a micro batch, by its place in the batch: views of one tensor."""
    order = outputs.owners.argsort(stable=True)
    counts = torch.bincount(outputs.owners, minlength=len(part.places))
    logits = outputs.logits.detach()[order].float().split(counts.tolist())
    return dict(zip(part.places, logits, strict=True))
