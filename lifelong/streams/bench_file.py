"""The bench file: methods x orders x seeds on one stream, as a list of runs.

    name: embedded
    stream: {model: minilm, stages: embedded, defaults: {epochs: 3}}   # or a stream file
    methods:
      ewc: [full, {ewc: {strength: 100}}]
      small replay: {method: [lora, {reservoir: {size: 50}}], changes: [defaults.epochs=2]}
    seeds: [0, 1, 2]

Every run is a stream file of its own, so that `lifelong run` would do the same. The bounds
(`sequential`, `joint`, `per_task`) are added where they are not named. Needs no torch.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, ValidationError, model_validator

from lifelong.core.settings import Range
from lifelong.errors import UserError, nearest
from lifelong.store.content import digest
from lifelong.streams import config, mistakes, overrides, plain_yaml
from lifelong.streams.config import Part, RunConfig, Training

BOUNDS = ("sequential", "joint", "per_task")
PACE = set(Training.model_fields) - {"objective"}  # changes what is learned, not what is judged
OWN = ("method", "seed", "seeds", "output", "name")  # what the bench itself says of a run


class Entry(Part):
    """One line of the table."""

    method: Any  # as in a stream file
    changes: tuple[str, ...] = ()  # dotted overrides of the stream file


def _entries(value: Any) -> Any:
    if isinstance(value, list):  # names of methods
        value = {str(each): each for each in value}
    if not isinstance(value, dict) or not value:
        raise UserError("methods: name at least one, such as {ewc: [full, {ewc: {strength: 100}}]}.")
    return {
        label: each if isinstance(each, dict) and set(each) <= {"method", "changes"} else {"method": each}
        for label, each in value.items()
    }


class BenchFile(Part):
    name: str
    stream: Any  # content of a stream file, or the path of one
    methods: Annotated[dict[str, Entry], BeforeValidator(_entries)]
    output: str = ""  # empty: runs/<name>
    seeds: tuple[int, ...] = (0, 1, 2)
    orders: tuple[tuple[str, ...] | int | str, ...] | Annotated[int, Range(1)] = 1  # orders of the stages,
    # or how many: the first is that of the stream, the others are drawn by `order_seed`; of a named
    # stream the values of its setting `order`
    order_seed: Annotated[int, Range(0)] = 0
    paired: bool = False  # seed i sees order i; else every seed sees every order
    bounds: bool = True  # add the naive, the joint and the separate run
    workers: Annotated[int, Range(1)] = 2  # processes
    threads: Annotated[int, Range(1)] = 1  # of each process
    ray: str = ""  # local, auto or an address: the runs go to a Ray cluster; empty: to processes here

    @model_validator(mode="after")
    def _consistent(self) -> "BenchFile":
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds: give at least one, none twice; got {list(self.seeds)}.")
        for label in self.methods:
            if not label or "/" in label or label.startswith("."):
                raise UserError(f"methods: `{label}` becomes the name of a folder: no `/`, no leading dot.")
        return self


class Cell(NamedTuple):
    """One run of the bench."""

    label: str
    order: int
    seed: int
    chosen: RunConfig
    folder: Path  # of the run
    rows: str  # digest of what the untrained model's figures follow from: all but method, pace and seed


class Bench(NamedTuple):
    settings: BenchFile
    cells: tuple[Cell, ...]
    folder: Path  # that paths of the stream start from
    output: Path


def read(path: str | Path, changes: Iterable[str] = ()) -> Bench:
    """Read a bench file; every run in it is checked as a stream file is."""
    path = Path(path)
    if not path.is_file():
        near = (
            nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        )
        raise UserError(f"no bench file {path}.{near}")
    raw = plain_yaml.read(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path.name}: must hold keys such as name, stream and methods.")
    places = overrides.apply(raw, changes)
    try:
        settings = BenchFile.model_validate(raw)
    except ValidationError as error:
        raise UserError(mistakes.tell(error, BenchFile, path.name, places)) from None
    content, folder = settings.stream, path.parent
    if isinstance(content, str):
        folder = (path.parent / content).parent
        content = plain_yaml.read(path.parent / content)
    if not isinstance(content, dict):
        raise UserError(f"{path.name}: stream must be the content of a stream file, or the path of one.")
    output = Path(settings.output or f"runs/{settings.name}")
    return Bench(settings, tuple(_cells(settings, content, output, path.name)), folder, output)


def _cells(settings: BenchFile, content: dict[str, Any], output: Path, where: str) -> Iterable[Cell]:
    entries = dict(settings.methods)
    if settings.bounds:
        entries = {name: Entry(method=name) for name in BOUNDS if name not in entries} | entries
    bare = {key: value for key, value in content.items() if key not in OWN}
    for label, entry in entries.items():
        raw = bare | {"method": entry.method, "name": settings.name}
        chosen = config.parse(raw, f"{where}: methods.{label}", entry.changes)
        orders = _named(settings, chosen, where) if chosen.named else _listed(settings, chosen, where)
        for order, seed in _pairs(settings, len(orders), where):
            mine = chosen.model_copy(update={"stages": orders[order]})
            folder = output / label.replace(" ", "-") / f"order{order}-seed{seed}"
            yield Cell(label, order, seed, mine, folder, _rows(mine))


def _rows(chosen: RunConfig) -> str:
    record = chosen.resolved() | {"method": None}
    stages = [record["defaults"]] if chosen.named else record["stages"]
    for stage in stages:
        for key in PACE:
            del stage[key]
    return digest(record)


def _listed(settings: BenchFile, chosen: RunConfig, where: str) -> list[Any]:
    """The listed stages in every order."""
    stages = {stage.name: stage for stage in chosen.listed}
    found, names = [tuple(stages)], list(stages)
    if not isinstance(settings.orders, int):
        found = list(settings.orders)
        for index, order in enumerate(found):
            if isinstance(order, (int, str)) or sorted(order) != sorted(names):
                raise UserError(f"{where}: orders[{index}] must hold each of {', '.join(names)} once.")
    else:
        draw = Random(settings.order_seed)
        found += [tuple(draw.sample(names, len(names))) for _ in range(settings.orders - 1)]
    return [tuple(stages[name] for name in order) for order in found]


def _named(settings: BenchFile, chosen: RunConfig, where: str) -> list[Any]:
    """The named stream with every value of its setting `order`."""
    if settings.orders == 1:
        return [chosen.named]
    if isinstance(settings.orders, int):
        raise UserError(f"{where}: orders: give the values of the stream's `order`, such as [1, 2, 3].")
    return [replace(chosen.named, order=value) for value in settings.orders]


def _pairs(settings: BenchFile, num_orders: int, where: str) -> list[tuple[int, int]]:
    """(order, seed) of every run of a method."""
    if not settings.paired:
        return [(order, seed) for order in range(num_orders) for seed in settings.seeds]
    if num_orders != len(settings.seeds):
        raise UserError(
            f"{where}: paired runs need as many orders as seeds; got {num_orders} and {len(settings.seeds)}."
        )
    return list(enumerate(settings.seeds))
