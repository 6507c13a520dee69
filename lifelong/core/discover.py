"""Methods are found by file name: `<axis>/<name>.py` holds the class of the same word.

Listing reads the source as a syntax tree, so that it needs neither torch nor the method's own
imports. Loading imports the one file that was asked for. Nothing is registered anywhere.
"""

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lifelong.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent.parent
AXES = (
    "objectives", "tuners", "penalties", "replay", "mixing", "mergers", "analytic", "unlearning",
    "schedules", "diagnostics", "metrics", "recipes",
)  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One hyper-parameter as written: annotation and default are source text."""

    name: str
    annotation: str
    default: str | None
    note: str


@dataclass(frozen=True)
class Description:
    """What the source of a method says of it."""

    id: str
    axis: str
    summary: str
    document: str
    paper: str
    cost: str
    verified: tuple[str, ...]
    fields: tuple[Field, ...]


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


@cache
def names(axis: str) -> tuple[str, ...]:
    """Names on one axis, sorted. Recipes are YAML files, all others Python files."""
    suffix = ".yaml" if axis == "recipes" else ".py"
    return tuple(sorted(p.stem for p in (PACKAGE / axis).glob(f"*{suffix}") if not p.stem.startswith("_")))


def axis_of(name: str, axes: tuple[str, ...] = AXES) -> str:
    """The axis that holds `name`; UserError with the nearest name where none does."""
    for axis in axes:
        if name in names(axis):
            return axis
    every = [n for axis in axes for n in names(axis)]
    raise UserError(f"unknown method `{name}`.{nearest(name, every)} `lifelong methods` lists all.")


def load(name: str, axis: str | None = None) -> type:
    """The class of a method. An outsider's is named `their.module:Class`."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"cannot import method `{name}`: {error}") from error
    axis = axis or axis_of(name)
    if name not in names(axis):
        raise UserError(f"unknown name `{name}` in {axis}.{nearest(name, names(axis))}")
    return getattr(importlib.import_module(f"lifelong.{axis}.{name}"), camel(name))


def describe_all() -> list[Description]:
    return [describe(axis, name) for axis in AXES for name in names(axis)]


@cache
def describe(axis: str, name: str) -> Description:
    """Read the description of one method from its source, without importing it."""
    if axis == "recipes":
        return _describe_recipe(name)
    text = (PACKAGE / axis / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    cls = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == camel(name))
    constants: dict[str, Any] = {}
    found = []
    lines = text.splitlines()
    for node in cls.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        annotation = ast.unparse(node.annotation)
        if annotation.startswith("ClassVar"):
            constants[node.target.id] = _literal(node.value)
        else:
            line = lines[node.end_lineno - 1][node.end_col_offset :]
            default = ast.unparse(node.value) if node.value else None
            found.append(Field(node.target.id, annotation, default, line.partition("#")[2].strip()))
    return Description(
        id=name,
        axis=axis,
        summary=(ast.get_docstring(cls) or "").partition("\n")[0],
        document=ast.get_docstring(tree) or "",
        paper=constants.get("paper", ""),
        cost=constants.get("cost", ""),
        verified=tuple(constants.get("verified", ())),
        fields=tuple(found),
    )


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node else None
    except ValueError:
        return None


def _describe_recipe(name: str) -> Description:
    import yaml

    content = yaml.safe_load((PACKAGE / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    return Description(
        id=name,
        axis="recipes",
        summary=content["summary"],
        document=content["summary"],
        paper=content.get("paper", ""),
        cost=content.get("cost", ""),
        verified=tuple(content.get("verified", ())),
        fields=(),
    )


def lazy(axis: str) -> tuple[Callable[[str], type], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of an axis' package: `tuners.OLora` imports tuners/o_lora.py."""

    def find(attribute: str) -> type:
        for name in names(axis):
            if camel(name) == attribute:
                return load(name, axis)
        known = [camel(name) for name in names(axis)]
        raise AttributeError(f"lifelong.{axis} has no `{attribute}`.{nearest(attribute, known)}")

    return find, lambda: [camel(name) for name in names(axis)]
