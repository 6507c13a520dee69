"""The largest step towards the new weights that keeps every budget.

    weights = before + share * (after - before)      one share, or one for each group of layers by depth

It stands where a merger would: after the last step, before any method takes in the stage, so that
all that is remembered fits the weights that are kept. Both ends lie on the disk as checkpoints inside the
stage (at step 0 and at the last step) and are read tensor by tensor; a run that is killed meanwhile
goes on from the second and finds the same share again.

The search halves the interval between a share that keeps the budgets and one that does not. What is lost
need not grow with the share; so a share counts only if the model was judged at that very point, and
at 0 nothing has changed. Groups are moved on from the common share, the deepest first.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lifelong.core import evaluation, guard
from lifelong.core.life import Life
from lifelong.core.stream import EvalSet
from lifelong.errors import UserError
from lifelong.numerics.depth import depth
from lifelong.store.checkpoint import broken
from lifelong.store.run import RunFolder
from lifelong.store.shards import Shards

Shares = tuple[float, ...]  # of the update, by group of layers from the first to the deepest


def is_on(life: Life) -> bool:
    return life.stream.guard is not None and life.stream.guard.otherwise == "repair"


def remember(life: Life, folder: RunFolder) -> None:
    """Keep the weights as the stage begins."""
    if is_on(life):
        folder.save(life.stage, 0, *life.snapshot())


def repair(life: Life, folder: RunFolder, notify: Callable[[str], None], pause: Callable[[], None]) -> None:
    """Move the weights to the largest share of the stage's update that keeps every budget, and write
    repair.json; nothing happens where the whole update does. `pause` is called between two trials.
    """
    if not is_on(life):
        return
    life.optimizer = None  # no step follows: its moments need no room, here or on the disk
    folder.save(life.stage, life.step, *life.snapshot())
    segment, begun = Segment(life, folder), time.perf_counter()
    judge = Judge(life, folder)
    refused = [each for each in judge.decide() if not guard.holds(each, life.stream.guard)]
    if not refused:
        return
    new = judge.new_task()
    trials: list[dict[str, Any]] = []

    def keeps(shares: Shares) -> bool:
        pause()
        segment.move(shares)
        lost = next((e for e in judge.decide() if not guard.holds(e, life.stream.guard)), None)
        trials.append({"shares": list(shares), "broken": lost and lost["name"]})
        notify(f"repair: {told(shares)} of the update {'breaks ' + lost['name'] if lost else 'keeps all'}")
        return lost is None

    shares = largest(keeps, life.stream.guard.layer_groups, life.stream.guard.trials)
    segment.move(shares if any(shares) else (1.0,) * len(shares))
    after = judge.new_task() if any(shares) else new
    folder.write(life.stage + 1, "repair.json", {
        "shares": list(shares), "trials": trials, "refused": refused,
        "new": [{**old, "after": now["value"]} for old, now in zip(new, after, strict=True)],
        "num_sets_judged": judge.count, "seconds": time.perf_counter() - begun,
    })  # fmt: skip


def told(shares: Shares) -> str:
    return "shares " + ", ".join(f"{each:g}" for each in shares) if len(shares) > 1 else f"{shares[0]:g}"


def largest(keeps: Callable[[Shares], bool], num_groups: int, trials: int) -> Shares:
    """The largest shares found that keep; all 0 where none does. 1 for all is known not to."""
    common, high = 0.0, 1.0
    for _ in range(trials):
        middle = (common + high) / 2
        common, high = (middle, high) if keeps((middle,) * num_groups) else (common, middle)
    shares = (common,) * num_groups
    for group in reversed(range(num_groups)) if num_groups > 1 else ():
        low, high, point = common, 1.0, 1.0  # the whole update of a group may be kept
        for _ in range(trials):
            if keeps(raised := (*shares[:group], point, *shares[group + 1 :])):
                low, shares = point, raised
            else:
                high = point
            if low == 1.0:
                break
            point = (low + high) / 2
    return shares


class Segment:
    """The line from the weights before a stage to those after it, both on the disk."""

    def __init__(self, life: Life, folder: RunFolder) -> None:
        place = folder.inside(life.stage, 0)
        problem = broken(place)
        if problem:
            raise UserError(
                f"a repair needs the weights from before the stage, and {place} does not hold them "
                f"({problem}). Remove {place.parent} and run the same command again: the stage is then "
                "trained anew."
            )
        self.life = life
        self.before = Shards(place, "params/")
        self.after = Shards(folder.inside(life.stage, life.step), "params/")
        depths, num_groups = depth(life.network), life.stream.guard.layer_groups
        self.groups = {n: depths.nearest(n) * num_groups // max(depths.count, 1) for n in life.params}

    @torch.no_grad()
    def move(self, shares: Shares) -> None:
        """Put the weights at `shares`; all 1 leaves every bit of those after the stage."""
        life = self.life
        for name, value in self.after.items():
            life.params[name].copy_(value)
        if any(share != 1 for share in shares):
            context, tuner = life.context(), life.methods.tuner
            life.states["tuner"] = tuner.interpolate(
                context, life.tuner_state, self.before, lambda name: shares[self.groups[name]]
            )


class Judge:
    """Answers of the model as it stands, on guard sets and on those of the stage."""

    def __init__(self, life: Life, folder: RunFolder) -> None:
        self.life, self.folder, self.count = life, folder, 0
        self.past = guard.baselines(life.stream, folder, life.stage + 1)

    def decide(self) -> Iterator[guard.Entry]:
        return guard.entries(self.life.stream, self.folder, self.past, lambda each: self._judge(each)[1])

    def new_task(self) -> list[dict[str, Any]]:
        """Figures of the sets that the stage teaches."""
        own = [each for task, each in self.life.stream.columns() if task == self.life.stage]
        judged = [self._judge(each)[0] for each in own]
        return [{key: each[key] for key in ("name", "unit", "value")} for each in judged]

    def _judge(self, each: EvalSet) -> Any:
        life = self.life
        self.count += 1
        labels = evaluation.candidates(life.stream, each, life.stage + 1)
        with evaluation.answering(life):
            return evaluation.judge(life.model, each, labels)
