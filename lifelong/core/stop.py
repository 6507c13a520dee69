"""Ctrl-C and SIGTERM: the first one asks for a good place to leave at, the second acts at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from lifelong.errors import UserError
from lifelong.store.run import RunFolder


class Asked(BaseException):
    """Leaves an evaluation, whatever stands around it."""


class Stop:
    """Set by Ctrl-C or SIGTERM; the loop saves and then leaves."""

    def __init__(self, agreed: Callable[[bool], bool] = bool) -> None:
        self.asked, self.agreed = False, agreed  # of several processes

    @contextlib.contextmanager
    def at_next_pass(self, network: nn.Module, folder: RunFolder) -> Iterator[None]:
        """Inside, nothing is to be saved: the next forward pass leaves. Objectives call the network or a
        part of it.
        """

        def look(*_: Any) -> None:
            if self.asked:
                raise Asked

        hooks = [each.register_forward_pre_hook(look) for each in (network, *network.children())]
        try:
            yield
        except Asked:
            raise self.interrupted(folder) from None
        finally:
            for hook in hooks:
                hook.remove()

    def check(self, folder: RunFolder) -> None:
        if self.agreed(self.asked):
            raise self.interrupted(folder)

    def interrupted(self, folder: RunFolder) -> UserError:
        return UserError(
            f"interrupted; everything up to here is saved in {folder.path}. The same command goes on "
            "from here."
        )


@contextlib.contextmanager
def interruptible(agreed: Callable[[bool], bool] = bool) -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; a second one acts at once."""
    stop = Stop(agreed)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {}

    def ask(number: int, frame: Any) -> None:
        stop.asked = True
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
