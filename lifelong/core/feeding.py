"""Rows to batches: what a step draws, what a memory gives back and takes in."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.core.axes import Row
from lifelong.core.batching import Item
from lifelong.core.life import Life
from lifelong.core.plan import Plan, draw
from lifelong.numerics.swap import evaluating

ROWS_AT_ONCE = 16  # in a pass that only measures


def next_rows(life: Life, plan: Plan) -> tuple[np.ndarray, bool]:
    """Rows of the next step, and whether they are seen for the first time. A mixing draws them from
    the parts in its proportions; `drawn` in its state counts the rows taken of each. Where it wants
    the stage's own rows alone, they come as they would without it.
    """
    mixing = life.methods.mixing
    if mixing is None or not mixing.draws:
        return plan[life.step]
    state, context, num_parts = life.states["mixing"], life.context(), len(life.ranges)
    if life.held and mixing.asks(context, state, num_parts):
        state = mixing.observe(context, state, part_losses(life))
    shares, step = mixing.proportions(context, state, num_parts), plan[life.step]
    if shares[-1] == 1 and life.ranges[-1].start == life.own:
        life.states["mixing"] = state
        return step.rows + life.own, step.first_visit
    drawn = state.get("drawn", {}).get(str(life.stage), [0] * num_parts)
    rows, drawn = draw(life.ranges, shares, drawn, len(step.rows), context.seed, life.step)
    life.states["mixing"] = {**state, "drawn": {str(life.stage): drawn}}
    return rows, False


def part_losses(life: Life) -> list[float]:
    """Loss of the held-out rows of every part, in nats per labelled position."""
    found = []
    with torch.no_grad(), evaluating(life.network), life.autocast():
        for held in life.held:
            total, count = 0.0, 0
            for each in life.batches(held, ROWS_AT_ONCE):
                losses = each.objective.loss(each.objective.forward(life.network, each.batch))
                total, count = total + float(losses.sum()), count + len(losses)
            found.append(life.summed(total) / max(life.total(count), 1))
    return found


def lengths(life: Life) -> list[int]:
    """Positions of every row that the budget of the stage counts: its own, and those taken from earlier
    stages when it begins; not those that a mixing draws step by step.
    """
    mixing = life.methods.mixing
    counted = life.pool[life.own :] if mixing is not None and mixing.draws else life.pool
    return [life.objectives[item.task].length(item.example) for item in counted]


def items(life: Life, rows: np.ndarray) -> list[Item]:
    return [life.pool[row] for row in rows]


def replayed(life: Life, num_rows: int) -> list[Item]:
    """Rows from memory to train beside `num_rows` new ones."""
    replay = life.methods.replay
    if replay is None:
        return []
    found = []
    for item in replay.pick(life.states["replay"], num_rows, life.stage, life.step):
        task = life.tasks[item["stage"]]
        if "row" in item:
            labels = life.stream.labels(life.stage + 1)
            example = task.objective.encode([item["row"]], life.model, labels).examples[0]
        else:
            example = item["example"]
        found.append(Item(item["stage"], example, item))
    return found


def remember(life: Life, rows: np.ndarray, logits: dict[int, Tensor]) -> None:
    """Offer rows to the memory at their first visit, unless they are to be forgotten; `logits` by place
    in `rows`, if it keeps them.
    """
    replay = life.methods.replay
    if replay is None or life.erasing:
        return
    as_text = replay.keep == "text"
    offered = []
    for index, row in enumerate(rows):
        item = life.pool[row]
        content = {"row": _plain(life.row(row))} if as_text else {"example": item.example}
        kept = {"logits": logits[index]} if replay.keeps_logits else {}
        offered.append({"stage": item.task, "place": item.place, **content, **kept})
    life.states["replay"] = replay.add(life.states["replay"], offered)


def drop_erased(life: Life) -> None:
    """Take the rows that an erase stage takes back out of the memory, before its first step."""
    replay, erases = life.methods.replay, life.stream.stages[life.stage].erases
    if replay is None or erases is None:
        return
    task = next(i for i, each in enumerate(life.tasks) if each.name == erases.stage)
    places, whole = set(erases.places), len(erases.places) == len(life.tasks[task].rows)

    def gone(item: dict[str, Any]) -> bool:
        return item["stage"] == task and (whole or item["place"] in places)

    life.states["replay"] = replay.forget(life.states["replay"], gone)


def _plain(row: Row) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith("__")}
