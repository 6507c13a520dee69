"""Rows with their stage, and the batches that pass through the network together."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lifelong.core.axes import Batch, Example, Objective
from lifelong.core.model import Model


class Item(NamedTuple):
    task: int  # index of the stage that the row came from (of the part, in a joint stage)
    example: Example
    memory: dict[str, Any] | None = None  # the memory's item, for a replayed row
    place: int = 0  # of its row among those of its stage


@dataclass(frozen=True)
class Part:
    """Items of one objective, as one forward pass."""

    objective: Objective
    batch: Batch
    labelled: int  # positions that carry a label
    tokens: int
    pads: int
    places: tuple[int, ...] = ()  # of its examples, in the items of the step
    tasks: tuple[int, ...] = ()  # index of the stage that each example came from


def part(
    objective: Objective,
    examples: Sequence[Example],
    model: Model,
    device: torch.device,
    places: Sequence[int] = (),
    tasks: Sequence[int] = (),
) -> Part:
    """Collate examples and move them to the device."""
    batch = objective.collate(examples, model)
    lengths = [objective.length(example) for example in examples]
    moved = batch if device.type == "cpu" else {k: v.to(device) for k, v in batch.items()}
    return Part(
        objective=objective,
        batch=moved,
        labelled=objective.labelled(batch),
        tokens=sum(lengths),
        pads=max(lengths) * len(lengths) - sum(lengths),
        places=tuple(places),
        tasks=tuple(tasks),
    )


def parts(
    items: Sequence[Item],
    objectives: Sequence[Objective],
    model: Model,
    device: torch.device,
    size: int | None,
    share: tuple[int, int] = (0, 1),
) -> list[Part]:
    """Items grouped by objective (`objectives` by task) and cut into micro batches of `size` rows;
    `share` is (index, number) of the processes that divide the items.
    """
    groups: dict[Objective, list[int]] = defaultdict(list)
    for place in range(share[0], len(items), share[1]):
        groups[objectives[items[place].task]].append(place)
    found = []
    for objective, places in groups.items():
        size_here = size or len(places)
        for start in range(0, len(places), size_here):
            chosen = places[start : start + size_here]
            examples, tasks = [items[i].example for i in chosen], [items[i].task for i in chosen]
            found.append(part(objective, examples, model, device, chosen, tasks))
    return found
