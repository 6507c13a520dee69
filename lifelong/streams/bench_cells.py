"""The runs of a bench: a method on each stream, in every order and with every seed."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from lifelong.errors import UserError
from lifelong.store.content import digest
from lifelong.streams import config, plain_yaml
from lifelong.streams.config import RunConfig, Training

if TYPE_CHECKING:
    from lifelong.streams.bench_file import BenchFile, Entry, Repeats, StreamEntry

PACE = set(Training.model_fields) - {"objective"}  # changes what is learned, not what is judged
OWN = ("method", "seed", "seeds", "output", "name")  # what the bench itself says of a run


class Origin(NamedTuple):
    """The stream file of a stream."""

    content: dict[str, Any]
    folder: Path  # that its paths start from
    name: str = ""  # empty where the bench has one stream
    orders: Any = None  # where they are other than those of the bench

    @property
    def where(self) -> str:
        """Stands before the keys of a bench file."""
        return f"streams.{self.name}, " if self.name else ""


class Cell(NamedTuple):
    """One run of the bench."""

    label: str
    order: int
    seed: int
    chosen: RunConfig
    folder: Path  # of the run
    rows: str  # digest of what the untrained model's figures follow from: all but method, pace and seed
    start: Path  # that paths of the stream start from
    stream: str  # its name; empty where the bench has one

    @property
    def line(self) -> tuple[str, str, int]:
        """All seeds of a method on one order of a stream."""
        return self.stream, self.label, self.order

    @property
    def called(self) -> str:
        return f"{self.stream}: {self.label}" if self.stream else self.label


class Written(NamedTuple):
    """A bench file as it was read."""

    path: Path
    settings: "BenchFile"
    origins: tuple[Origin, ...]

    @property
    def output(self) -> Path:
        return Path(self.settings.output or f"runs/{self.settings.name}")


def origins(streams: "dict[str, StreamEntry]", path: Path) -> tuple[Origin, ...]:
    """The streams of the bench file `path`, by their names."""
    keys = {name: f"streams.{name}" if name else "stream" for name in streams}
    return tuple(
        origin(each.stream, path, keys[name])._replace(name=name, orders=each.orders)
        for name, each in streams.items()
    )


def origin(value: Any, path: Path, key: str) -> Origin:
    """The stream that `key` of the bench file `path` names."""
    folder = path.parent
    if isinstance(value, str):
        file = path.parent / value
        if not file.is_file():
            raise UserError(f"{path.name}: {key}: no stream file {file}.")
        folder, value = file.parent, plain_yaml.read(file)
    if not isinstance(value, dict):
        raise UserError(f"{path.name}: {key} must be the content of a stream file, or the path of one.")
    return Origin(value, folder)


def config_of(file: Written, stream: Origin, entry: "Entry", where: str, changes: Sequence[str]) -> RunConfig:
    """The stream file of a method's runs."""
    bare = {key: value for key, value in stream.content.items() if key not in OWN}
    name = f"{file.settings.name}-{stream.name}" if stream.name else file.settings.name
    try:
        return config.parse(bare | {"method": entry.method, "name": name}, where, changes)
    except UserError as error:  # what is said of an override does not name the method
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def cells_of(
    chosen: RunConfig, repeats: "Repeats", stream: Origin, label: str, folder: Path, where: str
) -> Iterable[Cell]:
    """A run of every order and seed, below `folder`."""
    if stream.orders is not None:
        repeats = repeats.model_copy(update={"orders": stream.orders})
    orders = _named(repeats, chosen, where) if chosen.named else _listed(repeats, chosen, where)
    for order, seed in _pairs(repeats, len(orders), where):
        mine = chosen.model_copy(update={"stages": orders[order]})
        place, rows = folder / f"order{order}-seed{seed}", _rows(mine, stream.folder)
        yield Cell(label, order, seed, mine, place, rows, stream.folder, stream.name)


def folder_of(label: str) -> str:
    return label.replace(" ", "-")


def _rows(chosen: RunConfig, start: Path) -> str:
    record = chosen.resolved() | {"method": None, "start": str(start)}
    stages = [record["defaults"]] if chosen.named else record["stages"]
    for stage in stages:
        for key in PACE:
            del stage[key]
    return digest(record)


def _listed(repeats: "Repeats", chosen: RunConfig, where: str) -> list[Any]:
    """The listed stages in every order."""
    stages = {stage.name: stage for stage in chosen.listed}
    found, names = [tuple(stages)], list(stages)
    if not isinstance(repeats.orders, int):
        found = list(repeats.orders)
        for index, order in enumerate(found):
            if isinstance(order, (int, str)) or sorted(order) != sorted(names):
                raise UserError(f"{where}: orders[{index}] must hold each of {', '.join(names)} once.")
    else:
        draw = Random(repeats.order_seed)
        found += [tuple(draw.sample(names, len(names))) for _ in range(repeats.orders - 1)]
    return [tuple(stages[name] for name in order) for order in found]


def _named(repeats: "Repeats", chosen: RunConfig, where: str) -> list[Any]:
    """The named stream with every value of its setting `order`."""
    if repeats.orders == 1:
        return [chosen.named]
    if isinstance(repeats.orders, int):
        raise UserError(f"{where}: orders: give the values of the stream's `order`, such as [1, 2, 3].")
    return [replace(chosen.named, order=value) for value in repeats.orders]


def _pairs(repeats: "Repeats", num_orders: int, where: str) -> list[tuple[int, int]]:
    """(order, seed) of every run of a method."""
    if not repeats.paired:
        return [(order, seed) for order in range(num_orders) for seed in repeats.seeds]
    if num_orders != len(repeats.seeds):
        raise UserError(
            f"{where}: paired runs need as many orders as seeds; got {num_orders} and {len(repeats.seeds)}."
        )
    return list(enumerate(repeats.seeds))
