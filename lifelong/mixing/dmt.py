"""Dual-stage mixed fine-tuning (DMT): a later stage sees a small share of the rows of earlier ones.

    rows of stage t = all of its own + a share k of the rows of every earlier stage

Dong et al. 2024, arXiv:2310.05492: specialised abilities first (code, arithmetic), then general
conversations with k = 1/256 of the specialised rows, which keeps most of the first. k = 0 is plain
sequential training. The subset is drawn once per earlier stage, so that only it need be kept, and
is visited like the stage's own rows: each once an epoch.

Here every stage after the first mixes so, however many there are; with two it is the paper's. A
share of a stage is rounded to whole rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from lifelong.core.axes import Context, Mixing
from lifelong.core.settings import Range
from lifelong.core.state import State


@dataclass(frozen=True, kw_only=True)
class Dmt(Mixing):
    """Mix a fixed small share of all earlier rows into every later stage."""

    paper: ClassVar[str] = "Dong et al. 2024, arXiv:2310.05492"
    cost: ClassVar[str] = "share more steps for each earlier stage; the same share of its rows kept"
    verified: ClassVar[tuple[str, ...]] = (
        "an epoch visits all new rows and exactly the share of each earlier stage, each once",
        "share 0 equals plain training bit for bit",
        "every later stage sees the same subset",
    )
    draws: ClassVar[bool] = False

    share: Annotated[float, Range(0, 1)] = 0.00390625  # k, of each earlier stage's rows; the paper's 1/256

    def init(self, context: Context) -> State:
        return {}

    def take(self, num_rows: Sequence[int]) -> Sequence[int]:
        return [*(round(self.share * number) for number in num_rows[:-1]), *num_rows[-1:]]
