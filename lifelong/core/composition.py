"""Which methods work together: one tuner, any number of penalties, at most one memory."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lifelong.core.axes import Method, Penalty, Replay, Tuner
from lifelong.errors import UserError

Order = Literal["sequence", "joint", "per_task"]


@dataclass(frozen=True, kw_only=True)
class Methods:
    """What one run is trained with."""

    tuner: Tuner
    penalties: tuple[Penalty, ...] = ()
    replay: Replay | None = None
    stream: Order = "sequence"  # stages in order, all at once, or each from the start
    name: str = ""  # of the recipe, or of the parts joined by +

    @property
    def parts(self) -> tuple[Method, ...]:
        return (self.tuner, *self.penalties, *([] if self.replay is None else [self.replay]))

    def __post_init__(self) -> None:
        check_composition(self.parts)


def compose(parts: Sequence[Method], default: Tuner, stream: Order = "sequence", name: str = "") -> Methods:
    """Sort methods by axis; `default` is the tuner where `parts` has none."""
    if not any(isinstance(part, Tuner) for part in parts):
        parts = [default, *parts]
    check_composition(parts)
    return Methods(
        tuner=next(part for part in parts if isinstance(part, Tuner)),
        penalties=tuple(part for part in parts if isinstance(part, Penalty)),
        replay=next((part for part in parts if isinstance(part, Replay)), None),
        stream=stream,
        name=name or "+".join(map(snake, parts)),
    )


def check_composition(parts: Sequence[Method]) -> None:
    """Raise UserError where `parts` cannot work together."""
    for part in parts:
        if not isinstance(part, (Tuner, Penalty, Replay)):
            raise UserError(f"`{snake(part)}` is neither tuner nor penalty nor memory.")
    tuners = [part for part in parts if isinstance(part, Tuner)]
    memories = [part for part in parts if isinstance(part, Replay)]
    for several, what in ((tuners, "tuner"), (memories, "replay memory")):
        if len(several) > 1:
            names = " and ".join(map(snake, several))
            raise UserError(f"{names} exclude each other: a run has one {what}. Name one of them.")
    if not tuners:
        raise UserError("a run needs a tuner, which says where the update lives.")
    tuner = tuners[0]
    for part in parts:
        if not isinstance(part, Penalty):
            continue
        if part.needs_persistent and not tuner.persistent:
            raise UserError(
                f"{snake(part)} compares a weight with its own earlier value, but {snake(tuner)} trains "
                "fresh weights in every stage. Take a tuner whose weights stay, or leave the penalty out."
            )
        if part.needs_subspaces and not tuner.has_subspaces:
            raise UserError(
                f"{snake(part)} needs a tuner that keeps the directions of earlier stages apart; "
                f"{snake(tuner)} does not. Take another tuner, or leave the penalty out."
            )


def snake(part: Method) -> str:
    """The name of a method: its class, as its file is called."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(part).__name__).lower()
