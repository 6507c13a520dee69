"""The bench file: methods x streams x orders x seeds, as a list of runs.

    name: embedded
    stream: {model: minilm, stages: embedded, defaults: {epochs: 3}}   # or a stream file
    methods:
      ewc: [full, {ewc: {strength: 100}}]
      small replay: {method: [lora, {reservoir: {size: 50}}], changes: [defaults.epochs=2]}
    seeds: [0, 1, 2]

or, in place of `stream`, several:

    streams: {short: short.yaml, long: {stream: long.yaml, orders: 3}}

Every run is a stream file of its own, so that `lifelong run` would do the same. The bounds
(`sequential`, `joint`, `per_task`) are added where they are not named. Needs no torch.

Settings that are searched are found on another stream (`streams.tuning`), and frozen before a run is made:

    tune: {stream: {stages: ...}, seeds: [0], trials: 8, search: {defaults.learning_rate: [1e-4, 1e-3]}}
    methods:
      ewc: {method: [lora, ewc], search: {method.ewc.strength: {low: 1, high: 1e4, log: true}}}
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, ValidationError, model_validator

from lifelong.core.settings import Range
from lifelong.errors import UserError, nearest
from lifelong.streams import mistakes, overrides, plain_yaml, search_space
from lifelong.streams.bench_cells import Cell, Written, cells_of, config_of, folder_of, origins
from lifelong.streams.part import Part
from lifelong.streams.tuning import FOLDER, Tuning, frozen, plan

BOUNDS = ("sequential", "joint", "per_task")
Space = Annotated[dict[str, Any], BeforeValidator(search_space.checked)]


class Entry(Part):
    """One line of the table."""

    method: Any  # as in a stream file
    changes: tuple[str, ...] = ()  # dotted overrides of the stream file
    search: Space = {}


def _entries(value: Any) -> Any:
    if isinstance(value, list):  # names of methods
        value = {str(each): each for each in value}
    if not isinstance(value, dict) or not value:
        raise UserError("methods: name at least one, such as {ewc: [full, {ewc: {strength: 100}}]}.")
    return {label: _entry(label, each) for label, each in value.items()}


def _entry(label: Any, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not set(value) & set(Entry.model_fields):
        return {"method": value}
    return ({"method": label} if label in BOUNDS else {}) | value


Orders = tuple[tuple[str, ...] | int | str, ...] | Annotated[int, Range(1)]


class Repeats(Part):
    """How often a method is run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    orders: Orders = 1  # of the stages,
    # or how many: the first is that of the stream, the others are drawn by `order_seed`; of a named
    # stream the values of its setting `order`
    order_seed: Annotated[int, Range(0)] = 0
    paired: bool = False  # seed i sees order i; else every seed sees every order

    @model_validator(mode="after")
    def _seeded(self) -> "Repeats":
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds: give at least one, none twice; got {list(self.seeds)}.")
        return self


class StreamEntry(Part):
    """One of several streams."""

    stream: Any = None  # content of a stream file, or the path of one
    orders: Orders | None = None  # in place of those of the bench


def _streams(value: Any) -> Any:
    if not isinstance(value, dict):
        raise UserError("streams: give them by name, such as {short: short.yaml, long: long.yaml}.")
    return {
        name: each if isinstance(each, dict) and "stream" in each else {"stream": each}
        for name, each in value.items()
    }


class Tune(Repeats):
    """The stream on which settings are searched: another one of the same scenario, or the reported one with
    `changes` that make it another."""

    stream: Any = None  # content, or the path of a stream file; content lacks nothing but its stages
    changes: tuple[str, ...] = ()  # dotted overrides of it
    seeds: tuple[int, ...] = (0,)
    search: Space = {}  # of every method, bounds too
    trials: Annotated[int, Range(1)] | None = None  # of each method; null: the whole grid
    seed: Annotated[int, Range(0)] = 0  # of what is drawn


def _check_folders(key: str, names: Iterable[str]) -> None:
    taken: dict[str, str] = {}
    for name in names:
        if not name or "/" in name or name.startswith(".") or name == FOLDER:
            raise UserError(
                f"{key}: `{name}` becomes the name of a folder: no `/`, no leading dot; `{FOLDER}` is taken."
            )
        if (folder := folder_of(name)) in taken:
            raise UserError(f"{key}: `{name}` and `{taken[folder]}` would share the folder {folder}.")
        taken[folder] = name


class BenchFile(Repeats):
    name: str
    stream: Any = None  # content of a stream file, or the path of one
    streams: Annotated[dict[str, StreamEntry], BeforeValidator(_streams)] = {}  # or several
    methods: Annotated[dict[str, Entry], BeforeValidator(_entries)]
    tune: Tune | None = None
    output: str = ""  # empty: runs/<name>
    bounds: bool = True  # add the naive, the joint and the separate run
    workers: Annotated[int, Range(1)] = 2  # processes
    threads: Annotated[int, Range(1)] = 1  # of each process
    ray: str = ""  # local, auto or an address: the runs go to a Ray cluster; empty: to processes here

    @model_validator(mode="after")
    def _consistent(self) -> "BenchFile":
        if (self.stream is None) == (not self.streams):
            raise UserError(
                "stream: give one, as content of a stream file or its path, or several by name in `streams`."
            )
        _check_folders("methods", self.methods)
        _check_folders("streams", self.streams)
        for label, entry in self.methods.items():
            if entry.search and self.tune is None:
                raise UserError(f"methods.{label}: to search, name under `tune` another stream to search on.")
        if self.tune is not None and not any(self.searches().values()):
            raise UserError("tune: nothing is searched: give `search` here or to a method.")
        return self

    def entries(self) -> dict[str, Entry]:
        """Every line of the table, bounds first."""
        added = {name: Entry(method=name) for name in BOUNDS if self.bounds and name not in self.methods}
        return added | self.methods

    def searches(self) -> dict[str, dict[str, Any]]:
        """What is searched for each line."""
        common = self.tune.search if self.tune else {}
        return {label: common | entry.search for label, entry in self.entries().items()}


class Bench(NamedTuple):
    settings: BenchFile
    cells: tuple[Cell, ...]
    output: Path
    tuning: Tuning | None = None  # where settings are searched

    def alone(self, stream: str) -> "Bench":
        """What concerns one of several streams."""
        named = self.settings.model_copy(update={"name": f"{self.settings.name}: {stream}"})
        cells = tuple(cell for cell in self.cells if cell.stream == stream)
        return self._replace(settings=named, cells=cells, output=self.output / folder_of(stream))


def read(path: str | Path, changes: Iterable[str] = (), freeze: bool = True) -> Bench:
    """Read a bench file; every run in it is checked as a stream file is. Where settings are searched they are
    those that `lifelong tune` froze; without `freeze` those of the file.
    """
    file = _written(Path(path), changes)
    tuning = plan(file) if file.settings.tune else None
    tuning = frozen(tuning) if tuning and freeze else tuning
    made: list[Cell] = []
    for stream in file.origins:
        for label, entry in file.settings.entries().items():
            found = tuning.chosen.get(label, {}) if tuning else {}
            where = f"{file.path.name}: {stream.where}methods.{label}"
            chosen = config_of(file, stream, entry, where, (*entry.changes, *found.get("changes", ())))
            folder = file.output / folder_of(stream.name) / folder_of(label)
            place = file.path.name + (f": streams.{stream.name}" if stream.name else "")
            made += cells_of(chosen, file.settings, stream, label, folder, place)
    return Bench(file.settings, tuple(made), file.output, tuning)


def _written(path: Path, changes: Iterable[str]) -> Written:
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
    streams = settings.streams or {"": StreamEntry(stream=settings.stream)}
    return Written(path, settings, origins(streams, path))
