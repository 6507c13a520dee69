"""The errors that users meet: what is wrong, where, and what to do about it."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class UserError(ValueError):
    """Bad input. The command line prints the message alone and exits with `status`."""

    status: ClassVar[int] = 2


class OverBudget(UserError):
    """A stage lost more than its guard allows and was not promoted; the run is saved."""

    status: ClassVar[int] = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean `x`?' for the known name closest to `name`, else the list of names."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean `{close[0]}`?"
    return f" Known: {', '.join(known)}." if known else ""
