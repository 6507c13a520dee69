"""Mistakes in a stream file, told by place, allowed value and what was given."""

import json
import types
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from lifelong.core.settings import misfit
from lifelong.errors import nearest

SHOWN = 5  # mistakes told at once


@cache
def hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def tell(error: ValidationError, cls: type[BaseModel], where: str, overrides: dict[tuple, str]) -> str:
    """One line for every mistake. `overrides` maps a place to the override that set it."""
    lines = []
    for each in error.errors():
        place = each["loc"]
        source = next(
            (f"override `{text}`" for key, text in overrides.items() if place[: len(key)] == key), where
        )
        lines.append(_tell(each, cls, source))
    rest = [f"... and {len(lines) - SHOWN} more."] if len(lines) > SHOWN else []
    return "\n".join(lines[:SHOWN] + rest)


def _tell(each: Any, cls: type[BaseModel], source: str) -> str:
    place, kind = each["loc"], each["type"]
    if kind in ("extra_forbidden", "missing"):
        parent = _prefix(source, place[:-1])
        if kind == "missing":
            return f"{parent}: `{place[-1]}` is missing."
        known = hints(_hint_at(cls, place[:-1]))
        return f"{parent}: unknown key `{place[-1]}`.{nearest(str(place[-1]), known)}"
    if kind == "value_error":
        return f"{_prefix(source, place)}: {each['ctx']['error']}"
    given = each["input"]
    hint = _hint_at(cls, place)
    problem = "a list" if get_origin(hint) in (tuple, list) else misfit(given, hint) or "keys with values"
    return f"{_prefix(source, place)}: must be {problem}; got {shown(given)}."


def _prefix(source: str, place: tuple[str | int, ...]) -> str:
    path = ""
    for part in place:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return f"{source}: {path}" if path else source


def _hint_at(cls: type[BaseModel], place: tuple[str | int, ...]) -> Any:
    """The annotation of the value at `place`."""
    hint: Any = cls
    for part in place:
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            hint = hints(hint)[part]
        else:  # tuple[item, ...] or dict[str, item]
            hint = get_args(hint)[1 if get_origin(hint) is dict else 0]
        hint = bare(hint)
    return hint


def bare(hint: Any) -> Any:
    """The hint without None, and without `Annotated` around containers."""
    while get_origin(hint) is Annotated or get_origin(hint) in (Union, types.UnionType):
        inner = [option for option in get_args(hint) if option is not type(None)][0]
        if get_origin(hint) is Annotated and not _container(inner):
            break
        hint = inner
    return hint


def _container(hint: Any) -> bool:
    return get_origin(hint) in (tuple, list, dict) or (isinstance(hint, type) and issubclass(hint, BaseModel))
