"""The stream file: what a run is made of, as the user writes it and as the run records it.

`read` gives a `RunConfig`. Short forms are written out on reading (`model: smollm2` becomes
`model: {name: smollm2}`), so that the record (`resolved`) has one form and reads back as itself.
Needs no torch: a mistake in the file is told at once.

Defaults and ranges of `Training` and `GuardChoice` are those of `core.stream`, which cannot be read
without torch; a test holds the two together.
"""

import json
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ValidationError,
    WrapValidator,
    model_validator,
)

from lifelong.core import discover
from lifelong.core.settings import Range
from lifelong.errors import UserError, nearest
from lifelong.store.content import digest
from lifelong.streams import benchmark, builtin, mistakes, overrides, plain_yaml
from lifelong.streams.part import ModelChoice, Part

METHOD_AXES = ("tuners", "penalties", "replay", "mixing", "mergers", "analytic", "unlearning", "recipes")
BUDGET = ("epochs", "steps", "tokens", "seconds")
BATCH = ("batch_size", "batch_tokens")
LABELS = (  # change no number
    "name", "output", "trackers", "checkpoint_seconds", "keep_checkpoints", "diagnostics", "evaluate_steps",
)  # fmt: skip
# Of training; at these values they leave the fingerprint as it was before they were there, so that what
# was tuned then still holds.
LATER = {"optimizer": "adamw", "momentum": 0.0}
Settings = dict[str, Any]
Positive = Range(0, open_low=True)
Drop = Annotated[float, Range(0, 1, open_low=True)]


def choose(axes: tuple[str, ...], value: Any) -> dict[str, Settings]:
    """`name` or `{name: {setting: value}}`, checked against the sources of the methods."""
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, dict) or len(value) != 1:
        raise UserError("must be one name, or one name with its settings like {lora: {rank: 8}}; "
                        f"got {mistakes.shown(value)}.")  # fmt: skip
    name, settings = next(iter(value.items()))
    settings = {} if settings is None else settings
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise UserError(f"the settings of `{name}` must be a mapping; got {mistakes.shown(settings)}.")
    if ":" not in name:
        axis = discover.axis_of(name, axes)
        known = [field.name for field in discover.describe(axis, name).fields]
        for key in settings if axis != "recipes" else ():
            if key not in known:
                raise UserError(f"unknown setting `{key}` of {name}.{nearest(str(key), known)}")
    return {name: settings}


def _methods(value: Any) -> list[dict[str, Settings]]:
    chosen = [choose(METHOD_AXES, each) for each in (value if isinstance(value, list) else [value])]
    recipes = [name for each in chosen for name in each if name in discover.names("recipes")]
    if recipes and len(chosen) > 1:
        raise UserError(f"`{recipes[0]}` is a recipe and stands alone; to change a part of it write "
                        f"{{{recipes[0]}: {{its method: {{setting: value}}}}}}.")  # fmt: skip
    return chosen


def _named(key: str, value: Any) -> Any:
    return {key: value} if isinstance(value, str) else value


def _stages(value: Any, handler: Any) -> Any:
    """A list of stages, or a named stream."""
    return benchmark.choose(value) if isinstance(value, (str, dict, benchmark.Benchmark)) else handler(value)


def _texts(value: Any) -> Any:
    """Labels as texts; whole numbers and true or false are taken as written in JSON."""
    if not isinstance(value, list):
        return value
    return [json.dumps(each) if isinstance(each, (bool, int)) else each for each in value]


Objective = Annotated[dict[str, Settings], BeforeValidator(partial(choose, ("objectives",)))]
Schedule = Annotated[dict[str, Settings], BeforeValidator(partial(choose, ("schedules",)))]
Metric = Annotated[dict[str, Settings], BeforeValidator(partial(choose, ("metrics",)))]
Diagnostic = Annotated[dict[str, Settings], BeforeValidator(partial(choose, ("diagnostics",)))]
MethodList = Annotated[list[dict[str, Settings]], BeforeValidator(_methods)]
Labels = Annotated[tuple[str, ...], BeforeValidator(_texts)]


class Source(Part):
    path: str  # file, folder, data set name or embedded:<file>
    split: str | None = None
    name: str | None = None  # configuration of a data set that has several
    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "datasets"] | None = None
    columns: dict[str, str] = {}  # our column: column of the data
    skip: Annotated[int, Range(1)] | None = None  # rows left out before those that are taken
    limit: Annotated[int, Range(1)] | None = None  # rows
    shuffle_seed: Annotated[int, Range(0)] | None = None  # shuffled before both


class EvalSource(Source):
    objective: Objective | None = None
    metric: Metric | None = None


class GeneralSet(Part):
    name: str
    data: Annotated[Source, BeforeValidator(partial(_named, "path"))]
    objective: Objective | None = None
    metric: Metric | None = None
    labels: Labels | None = None


class GuardChoice(Part):
    """What must not be lost; defaults and ranges are those of `core.stream.Guard`."""

    allowed_drop_fraction: Drop | None = 0.02
    general_drop_fraction: Drop | None = 0.03
    sets: dict[str, Drop | None] = {}
    otherwise: Literal["stop", "repair", "keep"] = "stop"
    undecided: Literal["refuse", "promote"] = "refuse"
    reference: Literal["best", "before", "first"] = "best"
    confidence: Annotated[float, Range(0.5, 1, open_high=True)] = 0.95
    layer_groups: Annotated[int, Range(1)] = 1
    trials: Annotated[int, Range(1)] = 6


class Training(Part):
    """What a stage may set and `defaults` may set for all."""

    objective: Objective | None = None  # None: follows from the columns
    epochs: Annotated[float, Positive] | None = None
    steps: Annotated[int, Range(1)] | None = None
    tokens: Annotated[int, Range(1)] | None = None
    seconds: Annotated[float, Positive] | None = None
    learning_rate: Annotated[float, Positive] = 1e-3
    schedule: Schedule = {"linear": {"warmup_fraction": 0.05}}
    batch_size: Annotated[int, Range(1)] | None = 16
    batch_tokens: Annotated[int, Range(1)] | None = None
    micro_batch_size: Annotated[int, Range(1)] | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Range(0)] = 0.0
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    beta1: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    beta2: Annotated[float, Range(0, 1, open_high=True)] = 0.999
    max_grad_norm: Annotated[float, Positive] | None = 1.0
    sort_by_length: bool = True


class Erase(Source):
    """Which rows of an earlier stage an erase stage takes back."""

    path: str | None = None  # rows given explicitly
    stage: str
    labels: Labels | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Erase":
        reading = [k for k, f in Source.model_fields.items() if k != "path" and getattr(self, k) != f.default]
        if self.path is None and reading:
            raise UserError(f"`{reading[0]}` says how a file of rows is read; give its `path` too.")
        if self.path is not None and self.labels is not None:
            raise UserError("give `labels` or `path`, not both; with neither the whole stage is erased.")
        return self


class StageChoice(Training):
    name: str
    train: Annotated[Source, BeforeValidator(partial(_named, "path"))] | None = None
    erase: Annotated[Erase, BeforeValidator(partial(_named, "stage"))] | None = None
    eval: dict[str, EvalSource] = {}
    labels: Labels | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_evals(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "eval" not in raw:
            return raw
        given = raw["eval"]
        if isinstance(given, str) or (isinstance(given, dict) and "path" in given):
            given = {raw.get("name", ""): given}
        elif isinstance(given, list):
            paths = [_named("path", each) for each in given]
            stems = [Path(str(each.get("path"))).stem if isinstance(each, dict) else "" for each in paths]
            if len(set(stems)) < len(stems):
                raise UserError("eval: two files of the same name; write a mapping of names to files.")
            given = dict(zip(stems, paths, strict=True))
        if given in (None, {}) and raw.get("erase") is None:
            raise UserError("eval: name at least one file.")
        if isinstance(given, dict):
            given = {name: _named("path", each) for name, each in given.items()}
        return {**raw, "eval": given}

    @model_validator(mode="after")
    def _trains_or_erases(self) -> "StageChoice":
        if (self.train is None) == (self.erase is None):
            raise UserError("give `train`, rows to learn, or `erase`, rows to forget; exactly one of them.")
        if self.erase is None and not self.eval:
            raise UserError("`eval` is missing.")
        for key in ("objective", "labels") if self.erase is not None else ():
            if getattr(self, key) is not None:
                raise UserError(f"{key}: a stage that erases has the {key} of the stage that it erases from; "
                                "leave it out.")  # fmt: skip
        return self


class RunConfig(Part):
    """One run (or one per seed), as read from a stream file."""

    name: str
    model: Annotated[ModelChoice, BeforeValidator(partial(_named, "name"))]
    output: str = ""  # empty: runs/<name>
    method: MethodList
    seed: Annotated[int, Range(0)] = 0
    seeds: tuple[int, ...] | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    candidates: Literal["task", "seen", "all"] = "task"
    checkpoint_seconds: Annotated[float, Positive] = 300.0
    keep_checkpoints: Annotated[int, Range(1)] = 2
    trackers: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    evaluate_steps: Annotated[int, Range(1)] | None = None  # steps
    defaults: Training = Training()
    stages: Annotated[tuple[StageChoice, ...], WrapValidator(_stages)]  # or a Benchmark
    general: tuple[GeneralSet, ...] = ()
    guard: GuardChoice | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.seeds is not None and "seed" in self.model_fields_set:
            raise UserError("give `seed` or `seeds`, not both.")
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise UserError(f"seeds: give at least one, none twice; got {list(self.seeds)}.")
        if not self.listed and self.named is None:
            raise UserError("stages: give at least one.")
        for group, members in (("stages", self.listed), ("general", self.general)):
            names = [each.name for each in members]
            for i, name in enumerate(names):
                if not re.fullmatch(r"[^\W_][\w-]*", name) or name.isdecimal():
                    raise UserError(f"{group}[{i}].name: use letters, digits, - and _, and not digits alone; "
                                    f"got {name!r}.")  # fmt: skip
                if name in names[:i]:
                    raise UserError(f"{group}[{i}].name: `{name}` is taken; names must differ.")
        for i, stage in enumerate(self.listed):
            if stage.erase is not None:
                self._check_erased(i, stage.erase.stage)
            self._check_training(stage, f"stages[{i}]", "here or under `defaults`")
        if self.named is not None:
            self._check_training(Training(), "stages", "under `defaults`")
        return self

    def _check_training(self, stage: Training, where: str, place: str) -> None:
        merged = self.training(stage)
        if all(merged[key] is None for key in BUDGET):
            raise UserError(f"{where}: no budget. Give {', '.join(BUDGET[:-1])} or {BUDGET[-1]}, {place}.")
        if (merged["batch_size"] is None) == (merged["batch_tokens"] is None):
            raise UserError(f"{where}: give exactly one of batch_size (rows) and batch_tokens (positions).")

    def _check_erased(self, index: int, name: str) -> None:
        """Raise UserError unless an earlier stage that trains is called `name`."""
        where, every = f"stages[{index}].erase.stage", [each.name for each in self.stages]
        if name not in every:
            raise UserError(f"{where}: no stage is called `{name}`.{nearest(name, every)}")
        if every.index(name) >= index:
            raise UserError(f"{where}: `{name}` comes later; only what was taught before can be erased.")
        if self.stages[every.index(name)].train is None:
            raise UserError(f"{where}: `{name}` erases rows itself; name the stage that taught them.")

    @property
    def named(self) -> benchmark.Benchmark | None:
        """The named stream, where `stages` names one."""
        return self.stages if isinstance(self.stages, benchmark.Benchmark) else None

    @property
    def listed(self) -> tuple[StageChoice, ...]:
        """The stages that the file lists; none where it names a stream."""
        return () if self.named is not None else self.stages

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return (self.seed,) if self.seeds is None else self.seeds

    def with_seed(self, seed: int) -> "RunConfig":
        """The same run for one of its seeds."""
        return RunConfig.model_validate({**self.resolved(), "seed": seed, "seeds": None})

    def training(self, stage: Training) -> Settings:
        """Settings of a stage over those of `defaults`. A budget replaces a budget as a whole, and
        `batch_tokens` replaces `batch_size`."""
        merged: Settings = {}
        for layer in (self.defaults, stage):
            own = layer.model_fields_set & set(Training.model_fields)
            values = layer.model_dump(mode="json", include=set(Training.model_fields))
            for group in (BUDGET, BATCH):
                if own & set(group):
                    merged |= {key: values[key] if key in own else None for key in group}
            merged |= {key: value for key, value in values.items() if key in own or key not in merged}
        if isinstance(stage, StageChoice) and stage.erase is not None:
            merged["objective"] = None  # that of the stage that it erases from
        return {key: merged[key] for key in Training.model_fields}

    def resolved(self) -> Settings:
        """Plain JSON with every default written out; reads back as an equal configuration."""
        record = self.model_dump(mode="json", exclude={"stages", "defaults"}, exclude_none=True)
        record["output"] = self.output or f"runs/{self.name}"
        if self.guard is not None:
            record["guard"] = self.guard.model_dump(mode="json")  # null means: not guarded
        if self.seeds is not None:
            del record["seed"]
        if self.named is not None:
            return record | {"stages": benchmark.written(self.named), "defaults": self.training(Training())}
        record["stages"] = [
            stage.model_dump(mode="json", exclude=set(Training.model_fields), exclude_none=True)
            | self.training(stage)
            for stage in self.listed
        ]
        return record

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything in the record that can change a number (files are not read)."""
        return digest(self._telling())

    @property
    def asks(self) -> str:
        """The same wherever the files lie: the fingerprint of their rows stands beside it."""
        return digest(_without(self._telling(), "path"))

    def _telling(self) -> Settings:
        told = {key: value for key, value in self.resolved().items() if key not in LABELS}
        paces = [told["defaults"]] if "defaults" in told else told["stages"]
        for pace in paces:
            for key, unsaid in LATER.items():
                if pace.get(key) == unsaid:
                    del pace[key]
        return told


def _without(value: Any, name: str) -> Any:
    """Plain values, every entry of that name left out."""
    if isinstance(value, dict):
        return {key: _without(each, name) for key, each in value.items() if key != name}
    return [_without(each, name) for each in value] if isinstance(value, list) else value


def read(path: str | Path, changes: Iterable[str] = ()) -> RunConfig:
    """Read a stream file and apply dotted overrides to it."""
    path = Path(path)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        near = nearest(path.name, [p.name for p in folder.glob("*.y*ml")])
        raise UserError(f"no stream file {path}.{near} `lifelong init` writes one.")
    return parse(plain_yaml.read(path), path.name, changes)


def parse(raw: Any, where: str, changes: Iterable[str] = ()) -> RunConfig:
    """A configuration from plain values; `where` names them in errors."""
    if not isinstance(raw, dict):
        raise UserError(
            f"{where}: must hold keys such as model, method and stages; got {mistakes.shown(raw)}."
        )
    raw = json.loads(json.dumps(raw))  # overrides change a copy
    for key, embedded in (("stages", builtin.stages), ("general", builtin.general)):
        if raw.get(key) == "embedded":
            raw[key] = embedded()
    places = overrides.apply(raw, changes)
    if isinstance(raw.get("stages"), (str, dict)):
        try:
            raw["stages"] = benchmark.choose(raw["stages"])
        except UserError as error:
            raise UserError(f"{where}: stages: {error}") from None
        raw.setdefault("candidates", raw["stages"].candidates)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(mistakes.tell(error, RunConfig, where, places)) from None
