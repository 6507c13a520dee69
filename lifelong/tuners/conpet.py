"""ConPET, dynamic: a low-rank pair for every stage, and a selector that picks one for a row.

    y = W x + (alpha / rank) * B_t A_t x        in training t is the stage; else t = argmax_i selector_i(row)

Song et al. 2023, arXiv:2309.14763; their static form is the recipe `conpet_static`. As published the
selector has one output per task, is trained before the stage's pair, which sees rows of its stage
alone, and answers are compared inside the chosen task: here, among those candidates that are labels of
the chosen stage (all, where none is). A step costs the same however many stages are finished, and so
does the fit of the selector, whose `sample_size` rows are shared evenly by all stages.

Differences: their selector is a low-rank pair with a head, trained by gradient on rows seen again;
here it is a softmax regression (convex, so its fit is unique) on the base's mean last hidden state
over what a row shows before it is answered, and only these means are kept. Where a head grows, the rows
of old labels stand still, so that a finished stage answers as when it ended; a label that comes again
keeps its row. A network that is called directly chooses by all that it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch

from lifelong.core import prompts
from lifelong.core.axes import Answer, Context, Objective, Row, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics import low_rank, pairs, selector
from lifelong.numerics.routing import CHILD

FRESH = {"past": {}, "training": "", "samples": {}, "selector": {}, "labels": {}}


@dataclass(frozen=True, kw_only=True)
class Conpet(Tuner):
    """A low-rank pair for every stage, of which a selector picks one for each row."""

    paper: ClassVar[str] = "Song et al. 2023, arXiv:2309.14763"
    cost: ClassVar[str] = (
        "rank * (in + out) weights per module and stage; a step costs the same however many there are; one "
        "more pass over what is asked"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "as many selector outputs as stages; it finds the stage of unseen rows",
        "with a perfect selector a finished stage answers as its isolated pair does, bit for bit",
        "answers are compared inside the chosen stage; an answer does not enter the choice",
        "exports to a base with the pairs beside it that gives the same logits; resumes bit for bit",
    )
    persistent: ClassVar[bool] = False
    folds: ClassVar[bool] = False

    rank: Annotated[int, Range(1)] = 4  # of the pair of one stage
    alpha: Annotated[float, Range(0, open_low=True)] = 8.0  # update is scaled by alpha / rank
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # on the input of a pair, in training
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"
    sample_size: Annotated[int, Range(1)] = 1000  # rows of all stages that the selector is fitted on
    selector_decay: Annotated[float, Range(0, open_low=True)] = 1e-3  # weight decay of the selector
    num_tokens: Annotated[int, Range(1)] = 16  # first tokens that a text without a prompt is chosen by

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State by number of the stage: tensors of "past" pairs by module, "samples" of features (n, H)
        and "labels"; the "selector"; the number in "training", "" between stages.
        """
        state, modules = state or dict(FRESH), low_rank.select_modules(model.network, self.targets)
        pairs.put_beside(model.network, modules, self.rank, self.alpha / self.rank, self.dropout)
        for each in pairs.of(model.network):
            for number, tensors in state["past"].items():
                each.open(number).load_state_dict(tensors[each.name])
            if state["training"]:
                each.open(state["training"])
        return self._settled(model, state)

    def begin_stage(self, context: Context, state: State) -> State:
        if not context.examples:
            raise UserError("conpet learns what a stage's rows look like: give Context(examples=...).")
        model, number = context.model, str(context.stage)
        for each in pairs.of(model.network):
            each.open(number, context.seed)
        share = max(1, self.sample_size // (len(state["samples"]) + 1))
        order = torch.randperm(len(context.examples), generator=torch.Generator().manual_seed(context.seed))
        with context.autocast():
            some = [context.examples[i] for i in order[:share].tolist()]
            fresh = prompts.features(some, model, self.num_tokens)
        samples = {**{key: rows[:share] for key, rows in state["samples"].items()}, number: fresh}
        owners = torch.cat([torch.full((len(rows),), int(key)) for key, rows in samples.items()])
        sample = {"features": torch.cat(list(samples.values())), "owners": owners}
        labels = {**state["labels"], number: list(context.labels)}
        found = {"selector": selector.fitted(sample, self.selector_decay), "labels": labels}
        return self._settled(model, state | found | {"training": number, "samples": samples})

    def before_update(self, context: Context, state: State) -> State:
        """A head's rows of old labels neither count in the clipping nor move."""
        held, num = {}, context.num_old_labels or 0
        for name, parameter in context.params.items():
            if f".{CHILD}." not in name:
                held[name] = parameter.detach()[:num].clone()
                if parameter.grad is not None:
                    parameter.grad[:num] = 0
        return {**state, "held": held}

    def after_update(self, context: Context, state: State) -> State:
        for name, rows in state["held"].items():
            context.params[name].detach()[: len(rows)] = rows
        return {key: value for key, value in state.items() if key != "held"}

    def end_stage(self, context: Context, state: State) -> State:
        number, every = state["training"], pairs.of(context.model.network)
        finished = {each.name: each.members[number].tensors() for each in every}
        past = {**state["past"], number: finished}
        return self._settled(context.model, state | {"past": past, "training": ""})

    def fold(self, model: Model, state: State) -> None:
        return None

    def _settled(self, model: Model, state: State) -> State:
        """The network as the state says: what is trained, and how a pair is chosen."""
        for each in pairs.of(model.network):
            for number, member in each.members.items():
                member.requires_grad_(number == state["training"])
        choice = pairs.choice_of(model.network)
        choice.training, choice.selector = state["training"], state["selector"]
        model.answering = partial(self._answer, model, state) if state["selector"] else None
        return state

    def _answer(
        self, model: Model, state: State, objective: Objective, rows: Sequence[Row], labels: Sequence[str]
    ) -> list[Answer]:
        examples = prompts.of_rows(objective, rows, model, labels)
        features = prompts.features(examples, model, self.num_tokens)
        chosen = selector.chosen_numbers(state["selector"], features).tolist()
        return prompts.answer_apart(objective, rows, model, labels, chosen, state["labels"])
