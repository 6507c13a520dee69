"""The runs of a bench: a method on a stream, in every order and with every seed."""

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
    from lifelong.streams.bench_file import BenchFile, Entry, Repeats

PACE = set(Training.model_fields) - {"objective"}  # changes what is learned, not what is judged
OWN = ("method", "seed", "seeds", "output", "name")  # what the bench itself says of a run


class Cell(NamedTuple):
    """One run of the bench."""

    label: str
    order: int
    seed: int
    chosen: RunConfig
    folder: Path  # of the run
    rows: str  # digest of what the untrained model's figures follow from: all but method, pace and seed


class Written(NamedTuple):
    """A bench file as it was read."""

    path: Path
    settings: "BenchFile"
    content: dict[str, Any]  # of the stream file
    folder: Path  # that paths of the stream start from

    @property
    def output(self) -> Path:
        return Path(self.settings.output or f"runs/{self.settings.name}")


def stream_content(value: Any, path: Path, key: str) -> tuple[dict[str, Any], Path]:
    """(content of the stream that `key` of a bench file names, folder that its paths start from)."""
    folder = path.parent
    if isinstance(value, str):
        file = path.parent / value
        if not file.is_file():
            raise UserError(f"{path.name}: {key}: no stream file {file}.")
        folder, value = file.parent, plain_yaml.read(file)
    if not isinstance(value, dict):
        raise UserError(f"{path.name}: {key} must be the content of a stream file, or the path of one.")
    return value, folder


def config_of(
    file: Written, content: dict[str, Any], entry: "Entry", where: str, changes: Sequence[str]
) -> RunConfig:
    """The stream file of a method's runs."""
    bare = {key: value for key, value in content.items() if key not in OWN}
    try:
        return config.parse(bare | {"method": entry.method, "name": file.settings.name}, where, changes)
    except UserError as error:  # what is said of an override does not name the method
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def cells_of(chosen: RunConfig, repeats: "Repeats", label: str, folder: Path, where: str) -> Iterable[Cell]:
    """A run of every order and seed, below `folder`."""
    orders = _named(repeats, chosen, where) if chosen.named else _listed(repeats, chosen, where)
    for order, seed in _pairs(repeats, len(orders), where):
        mine = chosen.model_copy(update={"stages": orders[order]})
        yield Cell(label, order, seed, mine, folder / f"order{order}-seed{seed}", _rows(mine))


def folder_of(label: str) -> str:
    return label.replace(" ", "-")


def _rows(chosen: RunConfig) -> str:
    record = chosen.resolved() | {"method": None}
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
