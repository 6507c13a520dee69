"""A method of a user whose process dies."""

import os
import signal
from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import Penalty


@dataclass(frozen=True, kw_only=True)
class Dying(Penalty):
    """End the process."""

    paper: ClassVar[str] = "none"
    cost: ClassVar[str] = "everything"
    verified: ClassVar[tuple[str, ...]] = ()

    def init(self, context):
        os.kill(os.getpid(), signal.SIGKILL)

    def loss(self, context, state):
        return None
