"""Hyper-parameters are dataclass fields; their ranges stand in the annotation, once.

    strength: Annotated[float, Range(0)] = 1.0
    fisher: Literal["empirical", "true"] = "empirical"

`check` compares an instance with its annotations; `build` makes an instance from plain values
(YAML, JSON) and refuses unknown keys.
"""

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from lifelong.errors import UserError, nearest


@dataclass(frozen=True)
class Range:
    """Closed interval [low, high]; with `open_low` or `open_high` the end is excluded."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        left = "(" if self.open_low or self.low == -math.inf else "["
        right = ")" if self.open_high or self.high == math.inf else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


@cache
def hints(cls: type) -> dict[str, Any]:
    """Annotations of the init fields of a dataclass, with their metadata."""
    known = get_type_hints(cls, include_extras=True)
    return {field.name: known[field.name] for field in fields(cls) if field.init}


def check(instance: Any) -> None:
    """Raise UserError unless every field of `instance` fits its annotation."""
    cls = type(instance)
    for name, hint in hints(cls).items():
        problem = misfit(getattr(instance, name), hint)
        if problem:
            raise UserError(f"{cls.__name__}.{name} must be {problem}; got {getattr(instance, name)!r}.")


def misfit(value: Any, hint: Any) -> str | None:
    """What `value` should have been, or None where it fits. Unknown kinds of hints pass."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *extra = get_args(hint)
        problem = misfit(value, base)
        for limit in extra:
            if not isinstance(limit, Range) or value is None:
                continue
            if problem is not None:
                return f"{problem} in the range {limit}"
            if not limit.holds(value):
                return f"in the range {limit}"
        return problem
    if origin is Literal:
        options = get_args(hint)
        return None if value in options else "one of " + ", ".join(map(repr, options))
    if origin in (Union, types.UnionType):
        problems = [misfit(value, option) for option in get_args(hint)]
        return None if None in problems else " or ".join(p for p in problems if p)
    if origin is tuple:
        item = get_args(hint)[0]
        wrong = not isinstance(value, tuple) or any(misfit(each, item) for each in value)
        return f"a list of {misfit(None, item) or item}" if wrong else None
    if hint is type(None):
        return None if value is None else "null"
    if hint is float:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return None if good else "a finite number"
    if hint is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if hint in (str, bool):
        return None if isinstance(value, hint) else {str: "a text", bool: "true or false"}[hint]
    return None


def build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """Instance of `cls` from plain values; lists become tuples. `where` names the place in errors."""
    known = hints(cls)
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown setting `{key}`.{nearest(key, known)}")
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**frozen)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None
