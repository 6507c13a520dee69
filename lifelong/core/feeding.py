"""Rows to batches: what a step draws, what a memory gives back and takes in."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.core.axes import Row
from lifelong.core.batching import Item
from lifelong.core.life import Life
from lifelong.core.plan import Plan, draw


def next_rows(life: Life, plan: Plan) -> tuple[np.ndarray, bool]:
    """Rows of the next step, and whether they are seen for the first time. A mixing draws them from
    the parts in its proportions; `drawn` in its state counts the rows taken of each.
    """
    mixing = life.methods.mixing
    if mixing is None:
        return plan[life.step]
    state, context = life.states["mixing"], life.context()
    if mixing.feedback_steps and life.step % mixing.feedback_steps == 0:
        state = mixing.observe(
            context,
            state,
            part_losses(
                life,
            ),
        )
    shares = mixing.proportions(context, state, len(life.ranges))
    drawn = state.get("drawn", {}).get(str(life.stage), [0] * len(life.ranges))
    rows, drawn = draw(life.ranges, shares, drawn, len(plan[life.step].rows), context.seed, life.step)
    life.states["mixing"] = {**state, "drawn": {str(life.stage): drawn}}
    return rows, False


def part_losses(life: Life) -> list[float]:
    """Held-out loss of every part, in nats per labelled position."""
    training, found = life.network.training, []
    life.network.eval()
    with torch.no_grad(), life.autocast():
        for task in life.part_tasks:
            part = life.tasks[task]
            rows = [row for each in part.evals for row in each.rows]
            examples = part.objective.encode(rows, life.model, life.stream.labels()).examples
            total = count = 0.0
            for each in life.batches([Item(task, example) for example in examples], 16):
                losses = each.objective.loss(each.objective.forward(life.network, each.batch))
                total, count = total + float(losses.sum()), count + len(losses)
            found.append(total / max(count, 1))
    life.network.train(training)
    return found


def lengths(life: Life) -> list[int]:
    """Positions of every row that the budget of the stage counts: its own, not those that a mixing
    draws from earlier stages.
    """
    mixing = life.methods.mixing
    counted = life.pool
    if mixing is not None and mixing.past:
        stage = life.stream.stages[life.stage]
        own = life.ranges[-len(stage.parts or (stage,)) :]
        counted = life.pool[own[0].start :]
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
    """Offer rows to the memory at their first visit; `logits` by place in `rows`, if it keeps them."""
    replay = life.methods.replay
    if replay is None:
        return
    as_text = replay.keep == "text"
    offered = []
    for place, row in enumerate(rows):
        task, example, _ = life.pool[row]
        content = {"row": _plain(life.rows[row])} if as_text else {"example": example}
        kept = {"logits": logits[place]} if replay.keeps_logits else {}
        offered.append({"stage": task, **content, **kept})
    life.states["replay"] = replay.add(life.states["replay"], offered)


def _plain(row: Row) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith("__")}
