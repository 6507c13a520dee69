"""The rows of a stage, encoded: its own, and those of earlier stages where a mixing wants them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lifelong.core.axes import Mixing
from lifelong.core.batching import Item
from lifelong.core.model import Model
from lifelong.core.state import num_bytes
from lifelong.core.stream import Stage
from lifelong.errors import UserError


@dataclass
class StageRows:
    """`pool` holds what is trained on, part after part; `held` what only measures."""

    pool: list[Item] = field(default_factory=list)
    ranges: list[range] = field(default_factory=list)  # of the pool, by part
    held: list[list[Item]] = field(default_factory=list)  # by part; empty where nothing is held out
    own: int = 0  # index in the pool from which on rows are the stage's own
    truncated: int = 0
    kept_bytes: int = 0  # of the rows that the mixing may ask for again at later stages


def encode(
    tasks: Sequence[Stage],
    stage: Stage,
    labels: Sequence[str],
    mixing: Mixing | None,
    model: Model,
    seed: int,
) -> StageRows:
    """Encode the parts of `stage`, with the tasks before it where a mixing looks at the past. Which rows
    are held out or taken depends on (seed, task) alone.
    """
    parts = stage.parts or (stage,)
    first = before = tasks.index(parts[0])
    if mixing is not None and mixing.past:
        parts, first = tasks[: first + len(parts)], 0
    encoded = [part.objective.encode(part.rows, model, labels) for part in parts]
    counts = [len(each.examples) for each in encoded]
    if mixing is not None and not mixing.draws:
        counts = mixing.take(counts)
    found = StageRows(truncated=sum(each.truncated for each in encoded))
    for task, (part, each, count) in enumerate(zip(parts, encoded, counts, strict=True), start=first):
        if task == before:
            found.own = len(found.pool)
        items = [Item(task, example, place=place) for place, example in enumerate(each.examples)]
        packed = part.objective.packed_tokens is not None
        assert packed or len(items) == len(part.rows), "one example per row, unless rows are packed"
        order = np.random.default_rng([seed, task, 3]).permutation(len(items))
        if mixing is not None and mixing.held_fraction:
            count = len(items) - max(1, round(mixing.held_fraction * len(items)))
            found.held.append([items[i] for i in sorted(order[count:])])
        if mixing is not None and mixing.past and not stage.parts:
            found.kept_bytes += _bytes_asked_again(mixing, [items[i] for i in order])
        kept = sorted(order[:count])
        if not kept and task >= before:
            raise UserError(f"stage {part.name}: no training row is left after encoding.")
        found.ranges.append(range(len(found.pool), len(found.pool) + len(kept)))
        found.pool += [items[i] for i in kept]
    return found


def _bytes_asked_again(mixing: Mixing, items: list[Item]) -> int:
    """Of the items of one part, in the order that they are taken in."""
    again = len(items) if mixing.draws else mixing.take([len(items), 0])[0]
    return num_bytes([item.example for item in items[:again]])
