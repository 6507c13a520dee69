"""The live state of a run: model, optimiser, states of the methods, and where it stands."""

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lifelong.core import head
from lifelong.core import state as states
from lifelong.core.axes import Batch, Context, Example, Objective, Outputs, Params, Row
from lifelong.core.composition import Methods, snake
from lifelong.core.model import Model
from lifelong.core.stream import Stage, Stream
from lifelong.errors import UserError
from lifelong.store.run import RunFolder


class Item(NamedTuple):
    task: int  # index of the stage that the row came from (of the part, in a joint stage)
    example: Example


@dataclass(frozen=True)
class Part:
    """Items of one objective, as one forward pass."""

    objective: Objective
    batch: Batch
    labelled: int
    tokens: int
    pads: int


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
        self.model = model
        self.network = model.network
        self.stream = stream
        self.methods = methods
        self.seed = seed
        self.precision = precision
        self.accelerator = accelerator
        self.network.to(accelerator.device)
        if precision == "bfloat16" and not methods.tuner.trains_base:
            self.network.to(torch.bfloat16)  # frozen weights are read in the compute type
        self.tasks = [part for stage in stream.stages for part in (stage.parts or (stage,))]
        self.stage, self.step = -1, None
        self.spent: dict[str, float] = {}
        self.truncated = 0
        self.pool: list[Item] = []
        self.rows: list[Row] = []
        self.tuner_state: states.State = {}
        self.penalty_states: list[states.State] = []
        self.replay_state: states.State = {}
        self.optimizer: torch.optim.AdamW | None = None
        self.params: Params = {}
        self.num_old_labels: int | None = None

    # boundaries -----------------------------------------------------------------------------

    def restore(self, folder: RunFolder) -> None:
        """Attach the methods; go to the newest whole checkpoint where there is one."""
        position = folder.latest()
        if position is None:
            self.tuner_state = self.methods.tuner.attach(self.model, None, derive(self.seed))
            self.params = self.model.params()
            self.penalty_states = [each.init(self.context()) for each in self.methods.penalties]
            if self.methods.replay is not None:
                self.replay_state = self.methods.replay.init(self.seed)
            return
        tensors, tree = folder.load(position)
        saved = states.join(tensors, tree)
        self.tuner_state = self.methods.tuner.attach(self.model, saved["tuner"], derive(self.seed))
        for index in range(position.stage + 1):
            self._grow(index)
        self._load_values(saved["params"])
        device = self.accelerator.device
        self.penalty_states = [_to(state, device) for state in saved["penalties"]]
        self.replay_state = saved["replay"]
        self.stage, self.step = position.stage, position.step
        self.spent = saved["spent"]
        if self.step is not None:
            stage = self.stream.stages[self.stage]
            self._encode(stage)
            self._make_optimizer(stage, _to(saved["optimizer"], device))

    def begin_stage(self, index: int, stage: Stage) -> None:
        """The tuner and the head make room; the function stays as it was. A fresh optimiser."""
        self.stage, self.step, self.spent = index, 0, {}
        self.tuner_state = self.methods.tuner.begin_stage(
            self.model, self.tuner_state, index, derive(self.seed, index)
        )
        self._grow(index)
        self._encode(stage)
        context = self.context()
        self.penalty_states = [
            method.begin_stage(context, state) for method, state in self._penalties_with_states()
        ]
        self._make_optimizer(stage, None)

    def end_stage(self) -> None:
        """Methods take in what the stage taught: penalties first, while its weights still move."""
        self.optimizer = None
        context = self.context()
        self.penalty_states = [
            method.end_stage(context, state) for method, state in self._penalties_with_states()
        ]
        self.tuner_state = self.methods.tuner.end_stage(self.model, self.tuner_state)
        self.step = None

    def _penalties_with_states(self) -> Iterator[tuple[Any, states.State]]:
        return zip(self.methods.penalties, self.penalty_states, strict=True)

    def _grow(self, index: int) -> None:
        stage = self.stream.stages[index]
        labels = self.stream.labels(index + 1)
        for objective in dict.fromkeys(part.objective for part in (stage.parts or (stage,))):
            objective.begin_stage(self.model, labels, derive(self.seed, 1))
        self.network.to(self.accelerator.device)
        self.params = self.model.params()
        has_head = head.find(self.network) is not None
        self.num_old_labels = len(self.stream.labels(index)) if has_head else None

    def _encode(self, stage: Stage) -> None:
        parts = stage.parts or (stage,)
        first = self.tasks.index(parts[0])
        labels = self.stream.labels(self.stage + 1)
        self.pool, self.rows, self.truncated = [], [], 0
        for offset, part in enumerate(parts):
            encoded = part.objective.encode(part.rows, self.model, labels)
            self.truncated += encoded.truncated
            self.pool += [Item(first + offset, example) for example in encoded.examples]
            packed = part.objective.packed_tokens is not None
            self.rows += [{}] * len(encoded.examples) if packed else list(part.rows)
            assert len(self.rows) == len(self.pool), (
                "an objective that does not pack keeps one example per row"
            )
        if not self.pool:
            raise UserError(f"stage {stage.name}: no training row is left after encoding.")

    def _make_optimizer(self, stage: Stage, saved: dict[str, Any] | None) -> None:
        settings = stage.optimization
        params = self.params
        self.optimizer = torch.optim.AdamW(
            list(params.values()), lr=settings.learning_rate, betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        self.max_grad_norm = settings.max_grad_norm
        if saved is not None:
            for name, parameter in params.items():
                if name in saved:
                    self.optimizer.state[parameter] = saved[name]

    # a step ---------------------------------------------------------------------------------

    def lengths(self) -> list[int]:
        return [self.tasks[item.task].objective.length(item.example) for item in self.pool]

    def items(self, rows: np.ndarray) -> list[Item]:
        return [self.pool[row] for row in rows]

    def replayed(self, num_rows: int) -> list[Item]:
        """Rows from memory to train beside `num_rows` new ones."""
        replay = self.methods.replay
        if replay is None:
            return []
        found = []
        for item in replay.pick(self.replay_state, num_rows, self.stage, self.step):
            task = self.tasks[item["stage"]]
            if "row" in item:
                labels = self.stream.labels(self.stage + 1)
                examples = task.objective.encode([item["row"]], self.model, labels).examples
            else:
                examples = [item["example"]]
            found += [Item(item["stage"], example) for example in examples]
        return found

    def remember(self, rows: np.ndarray) -> None:
        """Offer rows to the memory at their first visit."""
        replay = self.methods.replay
        if replay is None:
            return
        as_text = replay.keep == "text"
        offered = [
            {"stage": self.pool[row].task}
            | ({"row": _plain(self.rows[row])} if as_text else {"example": self.pool[row].example})
            for row in rows
        ]
        self.replay_state = replay.add(self.replay_state, offered)

    def batches(self, items: Sequence[Item], size: int | None) -> list[Part]:
        """Items grouped by objective and cut into micro batches; this process's share of them."""
        groups: dict[Objective, list[Example]] = defaultdict(list)
        for item in items[self.accelerator.process_index :: self.accelerator.num_processes]:
            groups[self.tasks[item.task].objective].append(item.example)
        parts = []
        for objective, examples in groups.items():
            size_here = size or len(examples)
            for start in range(0, len(examples), size_here):
                parts.append(self.part(objective, examples[start : start + size_here]))
        return parts

    def part(self, objective: Objective, examples: Sequence[Example]) -> Part:
        batch = objective.collate(examples, self.model)
        lengths = [objective.length(example) for example in examples]
        device = self.accelerator.device
        moved = batch if device.type == "cpu" else {k: v.to(device) for k, v in batch.items()}
        return Part(
            objective=objective,
            batch=moved,
            labelled=objective.labelled(batch),
            tokens=sum(lengths),
            pads=max(lengths) * len(lengths) - sum(lengths),
        )

    def penalties(self, part: Part, outputs: Outputs, first: bool, share: float) -> dict[str, Tensor]:
        """Terms by name for one micro batch, which has `share` of the step's labelled positions;
        penalties that hold nothing yet are absent.
        """
        if not self.methods.penalties:
            return {}
        context = self.context(part, outputs)
        terms = {}
        for method, state in self._penalties_with_states():
            if not (first or method.needs_outputs):
                continue
            term = method.loss(context, state)
            if term is not None:
                weight = share if method.needs_outputs else 1 / self.accelerator.num_processes
                terms[snake(method)] = term * weight
        return terms

    def update(self, learning_rate: float) -> None:
        """Clip, step, clear."""
        params = self.optimizer.param_groups[0]["params"]
        if self.accelerator.num_processes > 1:
            for parameter in params:
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(params, self.max_grad_norm)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def total(self, count: int) -> int:
        """Sum of a count over all processes."""
        if self.accelerator.num_processes == 1:
            return count
        return int(self.accelerator.reduce(torch.tensor(count, device=self.accelerator.device), "sum"))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16)

    def context(self, part: Part | None = None, outputs: Outputs | None = None) -> Context:
        """What methods may look at; at a boundary (no `part`) the stage's examples as well."""
        if part is not None:
            objective, examples = part.objective, ()
        elif self.stage < 0:
            objective, examples = None, ()
        else:
            stage = self.stream.stages[self.stage]
            objective = (stage.parts or (stage,))[0].objective
            examples = [item.example for item in self.pool if self.tasks[item.task].objective == objective]
        return Context(
            params=self.params,
            model=self.model,
            objective=objective,
            tuner=self.methods.tuner,
            tuner_state=self.tuner_state,
            stage=self.stage,
            seed=self.seed,
            num_old_labels=self.num_old_labels,
            batch=part.batch if part else None,
            outputs=outputs,
            examples=examples,
            batches=lambda chosen: iter([self.part(objective, chosen).batch]),
            autocast=self.autocast,
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
                "tuner": self.tuner_state,
                "penalties": self.penalty_states,
                "replay": self.replay_state,
                "spent": self.spent,
                "notes": {
                    "truncated_rows": self.truncated,
                    "labels": list(self.stream.labels(self.stage + 1)),
                },
            }
        )

    def sizes(self) -> dict[str, int]:
        """Bytes kept for the past: by tuner and penalties, and by the memory."""
        return {
            "state_bytes": _num_bytes([self.tuner_state, self.penalty_states]),
            "memory_bytes": _num_bytes(self.replay_state),
            "truncated_rows": self.truncated,
        }

    def where(self, rows: Sequence[int]) -> str:
        """The rows of a batch as the user knows them."""
        names = [str(self.rows[row].get("__source__", int(row))) for row in rows]
        return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")

    def _load_values(self, saved: dict[str, Tensor]) -> None:
        params = self.model.params()
        if set(params) != set(saved):
            odd = sorted(set(params) ^ set(saved))[:3]
            raise UserError(f"the checkpoint does not fit the model: it differs in {', '.join(odd)}.")
        with torch.no_grad():
            for name, parameter in params.items():
                parameter.copy_(saved[name])


def _to(state: Any, device: torch.device) -> Any:
    tensors, tree = states.split(state)
    return states.join({name: tensor.to(device) for name, tensor in tensors.items()}, tree)


def _num_bytes(state: Any) -> int:
    """Tensors by their storage; text and numbers as their JSON would take, about."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(_num_bytes(value) for value in state.values())
    if isinstance(state, (list, tuple)):
        return sum(_num_bytes(value) for value in state)
    return len(state.encode()) if isinstance(state, str) else 4


def _plain(row: Row) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith("__")}
