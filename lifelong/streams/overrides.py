"""Dotted overrides of a stream file: `stages.reviews.epochs=2`, `defaults.learning_rate=1e-4`.

They change the file as written, before it is checked. A list is entered by index, by the `name` of an
item, or, among methods, by the method (`method.ewc.strength=10`). A short form on the way
(`objective: classification`) is written out first.
"""

from collections.abc import Iterable
from typing import Any

from lifelong.errors import UserError, nearest
from lifelong.streams import plain_yaml

Place = tuple[str | int, ...]


def apply(raw: dict[str, Any], overrides: Iterable[str]) -> dict[Place, str]:
    """Change `raw` in place; returns the text of the override by the place that it set."""
    return {_apply(raw, text): text for text in overrides}


def _apply(raw: dict[str, Any], text: str) -> Place:
    path, equals, value = text.partition("=")
    where = f"override `{text}`"
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{where}: write it as key=value, for example seed=3 or stages.0.epochs=2.")
    node: Any = raw
    place: list[str | int] = []
    for i, part in enumerate(parts[:-1]):
        node = _method(node, part, place)
        key = _key(node, part, place, where)
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        elif isinstance(node[key], str):
            node[key] = _written_out(node[key], parts[: i + 1])
        node = node[key]
        place.append(key)
    node = _method(node, parts[-1], place)
    key = _key(node, parts[-1], place, where)
    node[key] = plain_yaml.parse(value, where)
    return (*place, key)


def _method(node: Any, part: str, place: list[str | int]) -> Any:
    """In a list of methods the item of the method `part`, written out; else `node`."""
    if place != ["method"] or not isinstance(node, list) or part not in (names := _names(node)):
        return node
    index = names.index(part)
    if isinstance(node[index], str):
        node[index] = {part: {}}
    place.append(index)
    return node[index]


def _names(items: list[Any]) -> list[Any]:
    """Of methods."""
    return [next(iter(each), "") if isinstance(each, dict) else each for each in items]


def _key(node: Any, part: str, place: list[str | int], where: str) -> str | int:
    here = ".".join(map(str, place))
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise UserError(f"{where}: `{here}` is a single value, so there is no `{part}` in it.")
    if part.isdecimal():
        if int(part) < len(node):
            return int(part)
        raise UserError(f"{where}: `{here}` has {len(node)} items, numbered from 0; got {part}.")
    names = [item["name"] for item in node if isinstance(item, dict) and isinstance(item.get("name"), str)]
    if here == "method":
        names = [name for name in _names(node) if isinstance(name, str)]
    if part in names:
        return next(i for i, item in enumerate(node) if isinstance(item, dict) and item.get("name") == part)
    raise UserError(f"{where}: `{here}` has no item named `{part}`.{nearest(part, names)}")


def _written_out(short: str, parts: list[str]) -> dict[str, Any]:
    """The mapping that a text at this place abbreviates."""
    if parts[-1] in ("train", "eval", "data") or parts[-2:-1] == ["eval"]:
        return {"path": short}
    return {"name": short} if parts == ["model"] else {short: {}}
