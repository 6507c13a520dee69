"""TAME: an expert for every task, whose boundaries only the loss shows (Zhu et al. 2022, arXiv:2210.03869).

One expert at a time is trained. A new one starts after a step where the smoothed loss leaves the band
of the current task, that is, where with the last n = `recent` losses and m before them

    (mean_n - mean_m) / (std_m * sqrt(1/n + 1/m)) > threshold

which stationary noise does at the rate of the normal tail. Neither stage nor task is told. A selector,
trained on a small uniform sample of what was seen, picks one expert in use.

Only a description of the method was at hand. Ours: experts are adapters beside the last `layers` blocks;
the selector is a softmax regression on the input of the first of them, which no expert changes, fitted
at every switch and at the end of a stage; it picks per row where the network encodes, per token where
it decodes (a choice for a text would see what comes later). Rows since the loss rose count as the new
expert's. An expert younger than `least_steps` goes at the next switch, and its rows with it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core.axes import IGNORED, Context, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics import novelty, routing, selector

FRESH = {"current": 0, "losses": [], "steps": 0, "clock": 0, "past": {}, "samples": {}, "selectors": {}}


@dataclass(frozen=True, kw_only=True)
class Tame(Tuner):
    """A new expert where the loss jumps, and a selector that picks one at test time."""

    paper: ClassVar[str] = "Zhu et al. 2022, arXiv:2210.03869"
    cost: ClassVar[str] = "one adapter per block and found task; a step costs the same however many there are"
    verified: ClassVar[tuple[str, ...]] = (
        "opens an expert at the change point of a loss, at the promised rate on stationary noise",
        "the selector sends rows to the expert that was trained on their kind",
        "finished experts keep every bit; short-lived ones are pruned",
        "resumes bit for bit across a switch",
    )
    persistent: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    grows: ClassVar[bool] = True
    exchanges: ClassVar[bool] = True
    needs_outputs: ClassVar[bool] = True  # looks at every micro batch, though it adds no term

    width: Annotated[int, Range(1)] = 16  # of an expert's bottleneck
    scale: Annotated[float, Range(0, open_low=True)] = 1.0  # on what an expert adds
    layers: Annotated[int, Range(1)] = 6  # last blocks of a stack that carry experts
    window: Annotated[int, Range(2)] = 50  # steps whose losses are the band; fewer while it is young
    warm_up: Annotated[int, Range(2)] = 20  # steps of an expert before its band counts
    recent: Annotated[int, Range(1)] = 5  # last steps, whose mean loss is the smoothed one
    threshold: Annotated[float, Range(0)] = 4.0  # standard errors above the band that open an expert
    sample_size: Annotated[int, Range(2)] = 500  # rows that the selector is fitted on, per stack
    selector_decay: Annotated[float, Range(0, open_low=True)] = 1e-3  # weight decay of the selector
    least_steps: Annotated[int, Range(0)] = 10  # an expert that made fewer goes at the next switch

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: number of the "current" expert, "past" ones by number and block, the rest by stack."""
        state, trace = state or dict(FRESH), routing.watch(model.network)
        model.network.requires_grad_(False)
        for stack, names in routing.blocks(model.network).items():
            carriers = names[-self.layers :]
            for name in carriers:
                weigh = partial(_weigh, stack, name == carriers[0], model.kind in ("encoder", "vision"))
                experts = routing.Adapters(name, weigh, self.scale, trace)
                routing.put_beside(model.network.get_submodule(name), experts)
                for number, tensors in state["past"].items():
                    experts.open(number, model, self.width).load_state_dict(tensors[name])
                experts.open(str(state["current"]), model, self.width, seed)
        return _settled(model, state)

    def loss(self, context: Context, state: State) -> None:
        """Adds nothing; takes one position of every row for the selector's sample."""
        trace, rows = routing.trace_of(context.model.network), {}
        key = f"{context.step},{len(trace.notes['taken'])}"
        generator = torch.Generator().manual_seed(routing.keyed(context.seed, key))
        for stack, (hidden, place) in trace.seen.items():
            mask = context.batch["labels"] != IGNORED if place.decodes else place.mask
            rows[stack] = selector.one_position(hidden, mask, generator)
        trace.notes["taken"].append(rows)

    def after_update(self, context: Context, state: State) -> State:
        taken, samples = routing.trace_of(context.model.network).notes["taken"], dict(state["samples"])
        clock, number = state["clock"] + 1, state["current"]
        for stack, rows in (item for part in taken for item in part.items()):
            sample = samples.get(stack)
            samples[stack] = selector.offered(sample, rows, number, clock, self.sample_size, context.seed)
        taken.clear()
        losses = [*state["losses"], *([] if context.loss is None else [context.loss])]
        losses = losses[-self.window - self.recent :]
        state = state | {"clock": clock, "samples": samples, "losses": losses, "steps": state["steps"] + 1}
        old_enough = len(losses) >= self.warm_up + self.recent
        jumped = old_enough and novelty.jump(losses, self.recent) > self.threshold
        return self._switched(context, state) if jumped else state

    def end_stage(self, context: Context, state: State) -> State:
        found = selector.fitted_all(state["samples"], self.selector_decay)
        return _settled(context.model, state | {"selectors": found})

    def fold(self, model: Model, state: State) -> None:
        return None

    def _switched(self, context: Context, state: State) -> State:
        """The current expert is finished, or pruned if it is too young, and a fresh one begins."""
        number, kept, tensors = state["current"], state["steps"] >= self.least_steps, {}
        for experts in routing.adapters_of(context.model.network):
            tensors[experts.name] = experts.members[str(number)].tensors()
            experts.open(str(number + 1), context.model, self.width, context.seed)
            if not kept:
                del experts.members[str(number)]
        late = state["clock"] - novelty.onset(state["losses"], self.recent)
        finished, dropped = ({str(number): tensors}, None) if kept else ({}, number)
        samples = {s: selector.moved(each, late, number + 1, dropped) for s, each in state["samples"].items()}
        selectors = selector.fitted_all(samples, self.selector_decay)
        fresh = {"current": number + 1, "losses": [], "steps": 0, "samples": samples, "selectors": selectors}
        return _settled(context.model, state | fresh | {"past": state["past"] | finished})


def _settled(model: Model, state: State) -> State:
    current = str(state["current"])
    for experts in routing.adapters_of(model.network):
        for number, member in experts.members.items():
            member.requires_grad_(number == current)
    notes = {"current": current, "selectors": state["selectors"], "taken": [], "choice": {}}
    routing.trace_of(model.network).notes = notes
    return state


def _weigh(
    stack: str, first: bool, by_row: bool, experts: routing.Adapters, hidden: Tensor, place: routing.Place
) -> dict[str, Tensor]:
    trace = experts.trace
    known = trace.notes["selectors"].get(stack)
    if first and (experts.training or known):
        features = routing.pooled(hidden, place.mask) if by_row else hidden
        if not experts.training:
            features = features[:, None] if by_row and hidden.dim() == 3 else features
            trace.notes["choice"][stack] = selector.chosen(known, features)
        elif torch.is_grad_enabled():
            trace.seen[stack] = (features.detach(), place)
    if experts.training or not known:
        return {trace.notes["current"]: hidden.new_ones(())}
    picked = trace.notes["choice"][stack]
    return {str(number): (picked == i).to(hidden.dtype) for i, number in enumerate(known["numbers"])}
