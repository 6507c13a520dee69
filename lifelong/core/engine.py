"""The loop: takes a model through a stream of stages. Knows axes, never methods.

`train` reads from top to bottom. Everything that a step depends on is a function of (seed, stage,
step) or is saved in a checkpoint: weights, optimiser moments and the states of the methods. So a
run that was killed goes on to the same bits.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from lifelong.core import closed_form, evaluation, guard, memory, repair
from lifelong.core.axes import Diagnostic, Progress
from lifelong.core.composition import Methods
from lifelong.core.feeding import drop_erased, lengths, next_rows, remember
from lifelong.core.gradients import gradients
from lifelong.core.life import Life, derive
from lifelong.core.model import Model
from lifelong.core.plan import Plan
from lifelong.core.stop import Stop, interruptible
from lifelong.core.stream import Stage, Stream
from lifelong.errors import UserError
from lifelong.numerics.twin import twin
from lifelong.store.checkpoint import broken
from lifelong.store.run import Position, RunFolder


class Event(NamedTuple):
    """What a listener is told after every step and evaluation."""

    kind: str  # "stage", "step", "evaluation", "notice"
    stage: int  # 0 = untrained, k = k-th stage
    step: int = 0
    num_steps: int = 0
    loss: float = math.nan
    tokens_per_second: float = 0.0
    seconds_left: float = math.nan  # of this stage
    text: str = ""


Listener = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is carried out; nothing here changes what is learned, except `precision`."""

    seed: int = 0
    precision: str = "float32"  # or "bfloat16": forward and backward passes; weights that move stay float32
    checkpoint_seconds: float = 300.0  # between checkpoints inside a stage
    keep_checkpoints: int = 2  # inside a stage
    trackers: tuple[str, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()  # looked at after every stage
    evaluate_steps: int | None = None  # steps between evaluations inside a stage; None: none


def train(
    model: Model,
    stream: Stream,
    methods: Methods,
    folder: RunFolder,
    settings: Settings,
    listen: Listener = lambda event: None,
) -> dict[str, Any]:
    """Train every stage of the stream that `folder` does not hold yet; returns the summary."""
    accelerator = Accelerator(cpu=model.device.type == "cpu", log_with=list(settings.trackers) or None,
                              project_dir=str(folder.path))  # fmt: skip
    if settings.trackers:
        accelerator.init_trackers(folder.path.name)
    life = Life(model, stream, methods, settings.seed, settings.precision, accelerator)
    if any(each.needs_base for each in settings.diagnostics):
        moves = methods.tuner.trains_base or methods.tuner.rewrites_base
        life.base = twin(model.network, share=not moves)
    with interruptible(life.agreed) as stop:
        judge = partial(judge_row, folder=folder, settings=settings, listen=listen, stop=stop)
        position = folder.latest()
        catch_up(life, folder, position, judge)
        life.restore(folder, position)
        folder.cut_log(life.stage + (life.step is None), life.step or 0)
        tell(folder, listen)
        stop.check(folder)
        if not position and evaluation.is_due(stream, folder, 0):
            # after `restore`, so that a setting that does not fit is told at once
            life.check_rows()
            judge(life, 0)

        for index, stage in enumerate(stream.stages):
            if index > life.stage or (index == life.stage and life.step is not None):
                train_stage(life, index, stage, folder, settings, listen, stop)
                stop.check(folder)
            if index == life.stage and evaluation.is_due(stream, folder, index + 1):
                judge(life, index + 1)
            if index == life.stage:
                guard.hold(life, folder, noticing(listen, index + 1))
    accelerator.end_training()
    return evaluation.summarise(stream, folder)


def judge_row(
    life: Life, row: int, folder: RunFolder, settings: Settings, listen: Listener, stop: Stop
) -> None:
    """Row 0 of the accuracy matrix before training, row k after stage k."""
    tell(folder, listen)
    with stop.at_next_pass(life.network, folder):
        evaluation.measure(life, folder, row, listen, settings.diagnostics)
    stop.check(folder)


def catch_up(
    life: Life, folder: RunFolder, position: Position | None, judge: Callable[[Life, int], None]
) -> None:
    """Judge rows before `position` whose evaluation is damaged; the untrained model, and the last stage
    before one that is half done, also on sets that came since.
    """
    for row in range(position.stage + 1 if position else 0):
        grows = row == 0 or (row == position.stage and position.step is not None)
        due = evaluation.is_due(life.stream, folder, row) if grows else not folder.judged(row)
        if due and (row == 0 or broken(folder.end(row - 1).folder) is None):
            judge(past(life, folder, row) if row else life, row)


def past(life: Life, folder: RunFolder, row: int) -> Life:
    """The life as it was after an earlier stage, in a copy of a model that has no methods attached."""
    model = replace(life.model, network=copy.deepcopy(life.network))
    earlier = Life(model, life.stream, life.methods, life.seed, life.precision, life.accelerator)
    earlier.base = life.base
    earlier.restore(folder, folder.end(row - 1))
    return earlier


def tell(folder: RunFolder, listen: Listener) -> None:
    """What the folder has noticed, once."""
    for text in dict.fromkeys(folder.notices):
        listen(Event("notice", 0, text=text))
    folder.notices.clear()


def train_stage(
    life: Life,
    index: int,
    stage: Stage,
    folder: RunFolder,
    settings: Settings,
    listen: Listener,
    stop: Stop,
) -> None:
    """One stage, from its beginning or from the checkpoint that `life` was restored from."""
    if index > life.stage:
        life.begin_stage(index, stage)
        repair.remember(life, folder)
        drop_erased(life)
    plan = Plan(lengths(life), stage.optimization, stage.budget, settings.seed, index)
    folder.forget(index + 1)
    meter = Meter(life.spent, stage.budget.seconds, plan.num_steps, life.model.device)
    life.network.train()
    saved = time.monotonic()

    while life.learns_by_gradient() and not meter.finished(life.step):
        seed_dropout(derive(settings.seed, index, life.step), life.model.device)
        progress = meter.progress(life.step)._replace(steps_before=life.steps_before)
        rate = stage.optimization.learning_rate * stage.optimization.schedule.scale(progress)
        life.num_steps, life.learning_rate = progress.num_steps, rate
        rows, first_visit = next_rows(life, plan)

        taken = gradients(life, rows, stage.optimization.micro_batch_size, first_visit)
        if not taken.finite:
            raise UserError(
                f"stage {stage.name}, step {life.step + 1}: the loss is not finite ({taken.words}) on the "
                f"rows {life.where(rows)}. Lower the learning rate, or look at these rows. All that was "
                f"saved before is kept in {folder.path}."
            )
        life.update(rate, taken.loss)
        if first_visit:
            remember(life, rows, taken.logits)
        life.step += 1

        meter.add(taken.tokens, taken.pads)
        record = {"stage": index, "step": life.step - 1, "loss": taken.loss, "penalties": taken.terms}
        if settings.evaluate_steps and life.step % settings.evaluate_steps == 0:
            record["values"] = meter.beside(partial(evaluation.glance, life))
        spent = {"tokens": taken.tokens, "seconds": round(meter.seconds, 4)}
        folder.log({**record, "learning_rate": rate, **spent})
        if settings.trackers:
            life.accelerator.log({f"{stage.name}/loss": taken.loss} | taken.terms)
        listen(meter.event(index + 1, life.step, taken.loss))
        if life.agreed(stop.asked or time.monotonic() - saved > settings.checkpoint_seconds):
            life.spent = meter.totals()
            folder.flush_log()
            folder.save(index, life.step, *life.snapshot())
            saved = time.monotonic()
            stop.check(folder)

    end_stage(life, folder, meter, listen, stop)


def end_stage(life: Life, folder: RunFolder, meter: "Meter", listen: Listener, stop: "Stop") -> None:
    """The budgets are kept, the methods take in what was taught, and all is saved."""
    index = life.stage
    life.spent = meter.totals()
    folder.discard(index + 1, "evaluation.json", "repair.json", "guard.json")
    meter.beside(lambda: repair.repair(life, folder, noticing(listen, index + 1), lambda: stop.check(folder)))
    closed_form.learn(life)
    life.end_stage()
    life.spent = meter.totals()  # what the methods took in counts as well
    folder.flush_log()
    folder.save(index, None, *life.snapshot())


def noticing(listen: Listener, stage: int) -> Callable[[str], None]:
    return lambda text: listen(Event("notice", stage, text=text))


def seed_dropout(seed: int, device: torch.device) -> None:
    """Dropout draws the same after a resume. `torch.manual_seed` seeds every kind of accelerator and
    takes 0.1 ms, a hundred times as long.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class Meter:
    """Time, positions and pads of one stage, those before an interruption included."""

    def __init__(
        self, spent: dict[str, float], seconds: float | None, num_steps: int | None, device: torch.device
    ) -> None:
        self.spent = {"seconds": 0.0, "tokens": 0, "pad_tokens": 0, "steps": 0} | spent
        self.budget_seconds = seconds
        self.num_steps = num_steps
        self.device = device
        memory.reset_peak(device)
        self.begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.spent["seconds"] + time.perf_counter() - self.begun

    def add(self, tokens: int, pads: int) -> None:
        self.spent["tokens"] += tokens
        self.spent["pad_tokens"] += pads
        self.spent["steps"] += 1

    def beside(self, work: Callable[[], Any]) -> Any:
        """Do `work`; its time is not the stage's."""
        begun = time.perf_counter()
        done = work()
        self.begun += time.perf_counter() - begun
        return done

    def finished(self, step: int) -> bool:
        out_of_time = self.budget_seconds is not None and self.seconds >= self.budget_seconds
        return out_of_time or step == self.num_steps

    def progress(self, step: int) -> Progress:
        """A stage that ends by the clock has as many steps as its pace so far promises."""
        if self.num_steps is not None:
            return Progress(step, self.num_steps)
        return Progress(step, max(step + 1, round(step * self.budget_seconds / max(self.seconds, 1e-9))))

    def event(self, stage: int, step: int, loss: float) -> Event:
        seconds = self.seconds
        num_steps = self.progress(step).num_steps
        pace = seconds / max(step, 1)
        return Event("step", stage, step, num_steps, loss, self.spent["tokens"] / max(seconds, 1e-9),
                     pace * (num_steps - step))  # fmt: skip

    def totals(self) -> dict[str, float]:
        seconds = self.seconds
        return self.spent | {
            "seconds": seconds,
            "tokens_per_second": self.spent["tokens"] / seconds,
            "peak_memory_bytes": max(memory.peak_bytes(self.device), self.spent.get("peak_memory_bytes", 0)),
        }
