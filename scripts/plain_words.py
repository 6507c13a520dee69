"""Annotations of settings in plain words: type, range and default as a reader of the docs sees them."""

import json
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lifelong.core.discover import Field
from lifelong.core.settings import Range

TYPES = {float: "number", int: "whole number", str: "text", bool: "true or false", type(None): "null"}


def plain_type(hint: Any, names: Sequence[tuple[Any, str]] = ()) -> str:
    """`Annotated[float, Range(0)] | None` as "number, or null"; `names` are words for types of one's own."""
    known = [words for each, words in names if each == hint]
    if known:
        return known[0]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return plain_type(inner[0], names)
    if origin is Literal:
        return "one of " + ", ".join(f"`{each}`" for each in inner)
    if origin in (Union, types.UnionType):
        return ", or ".join(plain_type(each, names) for each in inner)
    if origin in (tuple, list):
        return f"list of {plain_type(inner[0], names)}"
    return TYPES.get(hint, "mapping")


def plain_range(hint: Any) -> str:
    """The interval of a number, "" where every value will do."""
    inner = get_args(hint)
    if get_origin(hint) is Annotated:
        found = [str(each) for each in inner[1:] if isinstance(each, Range)]
        return found[0] if found else plain_range(inner[0])
    if get_origin(hint) in (Union, types.UnionType):
        return next((found for each in inner if (found := plain_range(each))), "")
    return ""


def plain_value(value: Any) -> str:
    """A default as YAML writes it."""
    value = list(value) if isinstance(value, tuple) else value
    return "`" + (value if isinstance(value, str) and value.isalnum() else json.dumps(value)) + "`"


def hint_of(field: Field) -> Any:
    """The annotation of a setting, from its source text."""
    return eval(field.annotation, {"Annotated": Annotated, "Literal": Literal, "Range": Range})
