"""Named streams: `benchmarks/<name>.py` holds the class of the same word. Needs neither torch nor numpy.

A class says where its data comes from and how it becomes stages; its fields are what a stream file may set
under its name: `stages: {clinc150: {path: data/clinc150, order: 1}}`.
"""

import ast
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from lifelong.core import discover
from lifelong.core.settings import Range, build, check, hints
from lifelong.errors import UserError, nearest

if TYPE_CHECKING:
    from lifelong.streams.scenarios import Part, Rows

FOLDER = "streams/benchmarks"
Fraction = Range(0, 1, open_low=True, open_high=True)


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """A stream that is known by name."""

    hub: ClassVar[str] = ""  # its name on the Hub; empty: it lies nowhere as one data set
    needs: ClassVar[str] = ""  # what a local folder must hold
    licence: ClassVar[str] = ""
    vision: ClassVar[bool] = False  # images, not text

    path: str = ""  # local folder, from where the stream file is; empty: from the Hub
    judge_on: Literal["test", "validation"] = "test"  # validation: rows taken from the training set
    validation_fraction: Annotated[float, Fraction] = 0.1  # of the training rows, if they judge
    train_rows: Annotated[int, Range(1)] | None = None  # at most, per stage
    eval_rows: Annotated[int, Range(1)] | None = None  # at most, per evaluation set
    seed: Annotated[int, Range(0)] = 0  # of every draw of rows; not the seed of the run

    def __post_init__(self) -> None:
        check(self)

    @property
    def candidates(self) -> str:
        """What a stream file that does not say means by `candidates`."""
        return "seen"

    @abstractmethod
    def parts(self, folder: Path) -> "list[Part]":
        """Its stages; a relative `path` starts at `folder`."""

    def limited(self, parts: "list[Part]") -> "list[Part]":
        from lifelong.streams.scenarios import limited

        found = []
        for i, part in enumerate(parts):
            tests = {
                name: limited(rows, self.eval_rows, self.seed, 6, i) for name, rows in part.tests.items()
            }
            found.append(
                replace(part, train=limited(part.train, self.train_rows, self.seed, 5, i), tests=tests)
            )
        return found

    def judged(self, train: "Rows", test: "Rows", labelled: bool = True) -> "tuple[Rows, Rows]":
        """(rows that train, rows that judge)."""
        if self.judge_on == "test":
            return train, test
        from lifelong.streams.scenarios import held_out

        return held_out(train, self.validation_fraction, self.seed, labelled)

    def local(self, folder: Path) -> Path | None:
        """The folder that `path` names; None: from the Hub."""
        if not self.path:
            if not self.hub:
                raise UserError(f"{name_of(self)}: give `path`, a local folder with {self.needs}.")
            return None
        found = (folder / Path(self.path).expanduser()).absolute()
        if not found.exists():
            hub = f", or leave `path` out to load {self.hub} from the Hub" if self.hub else ""
            raise UserError(
                f"{name_of(self)}: there is no folder {self.path} (looked for {found}). Name one with "
                f"{self.needs}{hub}."
            )
        return found

    def lacks(self, what: str) -> UserError:
        return UserError(f"{name_of(self)}: {self.path} has no {what}. The folder must hold {self.needs}.")

    def offline(self, error: UserError) -> UserError:
        why = str(error).rstrip(".")
        return UserError(
            f"{name_of(self)}: {self.hub} cannot be loaded from the Hub ({why}). Give `path`, a local folder "
            f"with {self.needs}."
        )


def name_of(each: Benchmark) -> str:
    return type(each).__module__.rpartition(".")[2]


def names() -> tuple[str, ...]:
    return discover.names(FOLDER)


def load(name: str) -> type[Benchmark]:
    if name not in names():
        raise UserError(f"unknown stream `{name}`.{nearest(name, [*names(), 'embedded'])} "
                        "`lifelong streams` lists all.")  # fmt: skip
    return getattr(importlib.import_module(f"lifelong.streams.benchmarks.{name}"), discover.camel(name))


def choose(value: Any) -> Benchmark:
    """A named stream from `name` or `{name: {setting: value}}`."""
    if isinstance(value, Benchmark):
        return value
    value = {value: {}} if isinstance(value, str) else value
    if len(value) != 1 or not isinstance(next(iter(value)), str):
        raise UserError("a named stream is one name with its settings, like {clinc150: {order: 1}}.")
    name, settings = next(iter(value.items()))
    if not isinstance(settings, dict | None):
        raise UserError(f"the settings of `{name}` must be a mapping; got {settings!r}.")
    return build(load(name), settings or {}, name)


def written(each: Benchmark) -> dict[str, dict[str, Any]]:
    """What a stream file would say, every setting written out."""
    values = {field.name: getattr(each, field.name) for field in fields(each)}
    return {name_of(each): {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}}


class Setting(NamedTuple):
    name: str
    hint: Any
    default: Any
    note: str


def settings_of(cls: type[Benchmark]) -> Iterator[Setting]:
    """Its settings with the comments beside them, own ones first."""
    notes = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Benchmark):
            notes |= _comments(base)
    own = [f for f in fields(cls) if f.name in cls.__annotations__]
    for each in (*own, *(f for f in fields(cls) if f not in own)):
        default = each.default if each.default is not MISSING else each.default_factory()
        yield Setting(each.name, hints(cls)[each.name], default, notes[each.name])


def _comments(cls: type) -> dict[str, str]:
    text = inspect.getsource(cls)
    lines, body = text.splitlines(), ast.parse(text).body[0].body
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign):
            found[node.target.id] = (
                lines[node.end_lineno - 1][node.end_col_offset :].partition("#")[2].strip()
            )
    return found
