"""The live state of a run: model, optimiser, states of the methods, and where it stands."""

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lifelong.core import batching, head, stage_rows
from lifelong.core import state as states
from lifelong.core.axes import (
    Active,
    Analytic,
    Context,
    Merger,
    Outputs,
    Params,
    Penalty,
    Replay,
    Row,
    Tuner,
    Unlearning,
)
from lifelong.core.batching import Item, Part
from lifelong.core.composition import Methods, snake
from lifelong.core.encoding import telling
from lifelong.core.model import Model
from lifelong.core.optimizer import optimizer
from lifelong.core.stream import Stage, Stream
from lifelong.errors import UserError
from lifelong.store.run import Position, RunFolder


def derive(*numbers: int) -> int:
    """A seed in [0, 2^63) that depends on all numbers and their order."""
    text = ",".join(map(str, numbers))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Life:
    """What the engine moves through the stream.

    `stage` is the index of the stage that was begun last (-1: none); `step` counts its optimiser
    steps and is None once the stage has ended.
    """

    def __init__(
        self,
        model: Model,
        stream: Stream,
        methods: Methods,
        seed: int,
        precision: str,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.network = model, model.network
        model.kept.look_again()
        self.stream = stream
        self.methods = methods
        self.seed, self.precision = seed, precision
        self.accelerator = accelerator
        self.network.to(accelerator.device)
        if precision == "bfloat16" and not methods.tuner.trains_base:
            self.network.to(torch.bfloat16)  # frozen weights are read in the compute type
        self.tasks = [part for stage in stream.stages for part in (stage.parts or (stage,))]
        self.stage, self.step = -1, None
        self.spent: dict[str, float] = {}  # by the stage
        self.pool: list[Item] = []
        self.ranges: list[range] = []  # of the pool, by part
        self.held: list[list[Item]] = []  # rows that only measure, by part
        self.own, self.steps_before, self.truncated = 0, 0, 0  # first own row of the pool; earlier steps
        self.kept_bytes = 0  # of rows that a mixing may ask for again
        self.base: nn.Module | None = None  # the network before the first stage, where a diagnostic asks
        self.objectives = [task.objective for task in self.tasks]
        self.actors = methods.actors()
        self.states: dict[str, states.State] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.params: Params = {}
        self.num_steps, self.learning_rate = 0, 0.0
        self.loss: float | None = None  # of the step, between its last backward pass and its end
        self.num_old_labels: int | None = None

    @property
    def tuner_state(self) -> states.State:
        return self.states["tuner"]

    @property
    def erasing(self) -> bool:
        """Are the rows of the stage to be forgotten?"""
        return self.stage >= 0 and self.stream.stages[self.stage].erases is not None

    @property
    def acting(self) -> dict[str, Active]:
        """Methods that take part in the stage, by role."""
        return {r: a for r, a in self.actors.items() if self.erasing or not isinstance(a, Unlearning)}

    def with_term(self, on_answers: bool) -> dict[str, Active]:
        """Methods with a term on answers, or with one on weights."""
        return {r: a for r, a in self.acting.items() if _has_term(a) and a.needs_outputs == on_answers}

    def restore(self, folder: RunFolder, position: Position | None = None) -> None:
        """Attach the methods; go to the checkpoint given, else to the newest whole one if there is one."""
        position = position or folder.latest()
        tuner = self.methods.tuner
        if position is None:
            self.states["tuner"] = tuner.attach(self.model, None, derive(self.seed))
            self.params = self.model.params()
            self.states |= self._fresh_states()
            return
        tensors, tree = folder.load(position)
        saved = states.join(tensors, tree)
        self.states = {"tuner": tuner.attach(self.model, saved["states"].pop("tuner"), derive(self.seed))}
        for index in range(position.stage + 1):
            self._grow(index)
        self._load_values(saved["params"])
        device = self.accelerator.device
        self.states |= {role: states.moved(state, device) for role, state in saved["states"].items()}
        self.stage, self.step = position.stage, position.step
        self.spent, notes = saved["spent"], saved["notes"]
        self.steps_before, self.truncated = notes["steps_before"], notes["truncated_rows"]
        if self.step is not None:
            stage = self.stream.stages[self.stage]
            self._encode(stage)
            self._make_optimizer(stage, states.moved(saved["optimizer"], device))

    def _fresh_states(self) -> dict[str, states.State]:
        context = self.context()
        found = {}
        for role, actor in self.actors.items():
            if isinstance(actor, Replay):
                found[role] = actor.init(self.seed)
            elif isinstance(actor, Analytic):
                found[role] = actor.init(actor.expansion or self.model.hidden_size)
            elif not isinstance(actor, Tuner):
                found[role] = actor.init(context)
        return found

    def begin_stage(self, index: int, stage: Stage) -> None:
        """The tuner and the head make room; the function stays as it was. A fresh optimiser."""
        self.steps_before += self.spent.get("steps", 0)
        self.stage, self.step, self.spent = index, 0, {}
        self._encode(stage)
        self.call("begin_stage", ("tuner",))
        self._grow(index)
        self.call("begin_stage", [role for role in self.acting if role != "tuner"])
        self._make_optimizer(stage, None)

    def learns_by_gradient(self) -> bool:
        """False where a closed form learns the stage alone."""
        analytic = self.methods.analytic
        return analytic is None or self.stage < analytic.gradient_stages

    def end_stage(self) -> None:
        """Methods take in what the stage taught: mergers first, since they move the weights, the tuner
        last, since it may renew them. The others see the weights that the model answers with.
        """
        self.optimizer = None
        mergers = [role for role, actor in self.actors.items() if isinstance(actor, Merger)]
        self.call("end_stage", mergers)
        with self.serving():
            self.call("end_stage", [role for role in self.acting if role not in ("tuner", *mergers)])
        self.call("end_stage", ("tuner",))
        self.params = self.model.params()
        self.step = None

    def call(self, hook: str, roles: Iterable[str] | None = None) -> None:
        """Let every method that defines `hook` answer it; keep the states that they return."""
        context = None
        for role in self.acting if roles is None else roles:
            actor = self.actors[role]
            if getattr(type(actor), hook) is getattr(Active, hook):
                continue
            at_boundary = hook in ("begin_stage", "end_stage")
            if context is None or at_boundary:
                context = self.context(boundary=at_boundary)
            self.states[role] = getattr(actor, hook)(context, self.states[role])
            if isinstance(actor, Merger):
                self.states["tuner"] = context.tuner_state
            if role == "tuner" and self.methods.tuner.grows:
                self.params = self.model.params()
                self._regroup()
                context = None  # the next method sees the parameters as they are now

    def _grow(self, index: int) -> None:
        stage = self.stream.stages[index]
        labels, analytic = self.stream.labels(index + 1), self.methods.analytic
        if analytic is not None:
            head.attach(self.model, analytic.expansion, derive(self.seed, 2))
        for objective in dict.fromkeys(part.objective for part in (stage.parts or (stage,))):
            objective.begin_stage(self.model, labels, derive(self.seed, 1))
        self.network.to(self.accelerator.device)
        self.params = self.model.params()
        has_head = head.find(self.network) is not None
        self.num_old_labels = len(self.stream.labels(index)) if has_head else None

    def check_rows(self) -> None:
        """Encode the rows of every stage once: what cannot be learned is told before any is trained."""
        for task in self.tasks:
            task.objective.encode(telling(task.rows), self.model, self.stream.labels())

    def ensure_rows(self) -> None:
        """A run that is resumed where a stage has ended has no rows in hand."""
        if not self.pool and self.stage >= 0:
            self._encode(self.stream.stages[self.stage])

    def _encode(self, stage: Stage) -> None:
        labels, mixing = self.stream.labels(self.stage + 1), self.methods.mixing
        found = stage_rows.encode(self.tasks, stage, labels, mixing, self.model, self.seed)
        self.pool, self.ranges, self.held = found.pool, found.ranges, found.held
        self.own, self.truncated, self.kept_bytes = found.own, found.truncated, found.kept_bytes

    def _make_optimizer(self, stage: Stage, saved: dict[str, Any] | None) -> None:
        self._grouped = params = dict(self.params)  # by name, as the optimiser holds them
        if not params:
            if self.learns_by_gradient():
                raise UserError(
                    f"stage {stage.name}: nothing can be trained: {snake(self.methods.tuner)} moves no "
                    "weight and there is no head. Take another tuner, or a head that is linear."
                )
            return
        self.optimizer = optimizer(params.values(), stage.optimization)
        for name, parameter in params.items():
            if saved is not None and name in saved:
                self.optimizer.state[parameter] = saved[name]

    def _forget_moments(self) -> None:
        if self.optimizer is not None:
            self.optimizer.state.clear()

    def _regroup(self) -> None:
        """Give the optimiser the parameters as they are now. Moments go by name; those of a parameter
        that has grown keep their leading block and are zero elsewhere.
        """
        if self.optimizer is None:
            return
        group, old = self.optimizer.param_groups[0], self._named_state
        fresh = {}
        for name, parameter in self.params.items():
            known = old.get(name)
            if known is not None:
                fresh[parameter] = {k: states.fitted(v, parameter) for k, v in known.items()}
        group["params"] = list(self.params.values())
        self.optimizer.state.clear()
        self.optimizer.state.update(fresh)
        self._grouped = dict(self.params)

    @property
    def _named_state(self) -> dict[str, dict[str, Tensor]]:
        """State of the optimiser by the name that each parameter had when the step began."""
        return {
            name: self.optimizer.state[p] for name, p in self._grouped.items() if p in self.optimizer.state
        }

    # a step ---------------------------------------------------------------------------------

    def batches(self, items: Sequence[Item], size: int | None) -> list[Part]:
        """This process's share of the items, as micro batches."""
        accelerator = self.accelerator
        share = (accelerator.process_index, accelerator.num_processes)
        return batching.parts(items, self.objectives, self.model, accelerator.device, size, share)

    def update(self, learning_rate: float, loss: float | None = None) -> None:
        """Hooks, clip, step, hooks, clear. `loss` is the step's, where a method asks for it."""
        self.loss = loss
        self.call("before_update")
        params = self.optimizer.param_groups[0]["params"]
        limit = self.stream.stages[self.stage].optimization.max_grad_norm
        if limit is not None:
            nn.utils.clip_grad_norm_(params, limit)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.call("after_update")
        self.loss = None
        self.optimizer.zero_grad(set_to_none=True)

    def summed(self, share: float) -> float:
        """Sum of a loss over all processes."""
        if self.accelerator.num_processes == 1:
            return share
        return float(self.accelerator.reduce(torch.tensor(share, device=self.accelerator.device), "sum"))

    def total(self, count: int) -> int:
        """Sum of a count over all processes."""
        if self.accelerator.num_processes == 1:
            return count
        return int(self.accelerator.reduce(torch.tensor(count, device=self.accelerator.device), "sum"))

    def agreed(self, wish: bool) -> bool:
        """Does any process wish it? All ask at the same place, since each has its own clock."""
        return bool(self.total(int(wish)))

    def serving(self) -> contextlib.AbstractContextManager[None]:
        """The model as its tuner means it to be used."""
        if "tuner" not in self.states:
            return contextlib.nullcontext()
        return self.methods.tuner.serving(self.model, self.tuner_state)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        kind = self.accelerator.device.type  # no cast is kept: a teacher is other weights of the same names
        return torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=False)

    def context_of(self, part: Part, outputs: Outputs, **seen: Any) -> Context:
        """What methods may look at in a micro batch, with what was `seen` of its forward pass."""
        own = {"objective": part.objective, "batch": part.batch, "tasks": part.tasks, "outputs": outputs}
        return replace(self.context(), **own, **seen)

    def context(self, boundary: bool = False) -> Context:
        """What methods may look at; at a boundary the stage's examples as well."""
        objective, examples = None, ()
        if self.stage >= 0:
            stage = self.stream.stages[self.stage]
            objective = (stage.parts or (stage,))[0].objective
            if boundary:
                examples = [i.example for i in self.pool if self.tasks[i.task].objective == objective]
        device = self.accelerator.device
        return Context(
            params=self.params,
            model=self.model,
            objective=objective,
            tuner=self.methods.tuner,
            tuner_state=self.states.get("tuner", {}),
            stage=self.stage,
            step=self.step or 0,
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
            seed=derive(self.seed, self.stage),
            num_old_labels=self.num_old_labels,
            loss=self.loss,
            examples=examples,
            labels=self.stream.stages[self.stage].labels if self.stage >= 0 else (),
            objectives=self.objectives,
            base=self.base,
            batches=lambda chosen: iter([batching.part(objective, chosen, self.model, device).batch]),
            autocast=self.autocast,
            forget_moments=self._forget_moments,
        )

    # what is kept ---------------------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, Tensor], Any]:
        """Everything that a resume needs, as named tensors and plain values."""
        params = self.model.params()
        optimizer = {}
        if self.optimizer is not None:
            optimizer = {name: dict(self.optimizer.state[p]) for name, p in params.items()}
        return states.split(
            {
                "params": dict(params),
                "optimizer": optimizer,
                "states": self.states,
                "spent": self.spent,
                "notes": {
                    "truncated_rows": self.truncated,
                    "steps_before": self.steps_before,
                    "labels": list(self.stream.labels(self.stage + 1)),
                },
            }
        )

    def sizes(self) -> dict[str, int]:
        """Bytes kept for the past: by methods; by the memory, or as rows that a mixing may ask for again."""
        if self.methods.mixing is not None:
            self.ensure_rows()
        memory = states.num_bytes(self.states.get("replay", {}))
        return {
            "state_bytes": states.num_bytes({k: v for k, v in self.states.items() if k != "replay"}),
            "memory_bytes": memory + self.kept_bytes,
            "truncated_rows": self.truncated,
        }

    def row(self, place: int) -> Row:
        """As read, by its place in the pool; of rows packed into blocks none is known."""
        item = self.pool[place]
        task = self.tasks[item.task]
        return {} if task.objective.packed_tokens is not None else task.rows[item.place]

    def where(self, rows: Sequence[int]) -> str:
        """The rows of a batch as the user knows them."""
        names = [str(self.row(place).get("__source__", int(place))) for place in rows]
        return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")

    def _load_values(self, saved: dict[str, Tensor]) -> None:
        params = self.model.params()
        if set(params) != set(saved):
            odd = sorted(set(params) ^ set(saved))[:3]
            raise UserError(f"the checkpoint does not fit the model: it differs in {', '.join(odd)}.")
        with torch.no_grad():
            for name, parameter in params.items():
                parameter.copy_(saved[name])


def _has_term(actor: Active) -> bool:
    without = (Tuner.loss, Unlearning.loss)
    return isinstance(actor, (Tuner, Penalty, Unlearning)) and type(actor).loss not in without
