"""From a stream file to the objects that the engine takes: methods and stages."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lifelong.core import composition, discover
from lifelong.core.axes import AnswerMetric, Diagnostic, Method, Objective, Row, Schedule
from lifelong.core.encoding import check_columns
from lifelong.core.settings import build
from lifelong.core.stream import Budget, EvalSet, Guard, Optimization, Stage, Stream
from lifelong.errors import UserError, nearest
from lifelong.store.content import SOURCE
from lifelong.streams import erasure, plain_yaml
from lifelong.streams.config import (
    BUDGET,
    METHOD_AXES,
    GeneralSet,
    RunConfig,
    Settings,
    Source,
    StageChoice,
    Training,
    choose,
)
from lifelong.streams.data import read_rows
from lifelong.streams.scenarios import Part, labels_of

DEFAULT_TUNER = "lora"
BY_COLUMNS = (  # the objective of a stage that names none: the first whose columns the rows have
    (("messages",), "sft"),
    (("prompt", "completion"), "sft"),
    (("text", "label"), "classification"),
    (("image", "label"), "classification"),
    (("text",), "causal_lm"),
)


def methods(chosen: Sequence[dict[str, Settings]]) -> composition.Methods:
    """The methods that `method:` names: a recipe, or methods one by one."""
    entries, order, name = list(chosen), "sequence", ""
    first, settings = next(iter(entries[0].items()))
    if first in discover.names("recipes"):
        name = first
        entries, order = recipe(first, settings)
    parts = [_method(key, values) for each in entries for key, values in each.items()]
    return composition.compose(parts, default_tuner(), order, name)


def recipe(name: str, changes: Settings) -> tuple[list[dict[str, Settings]], composition.Order]:
    """Methods of a recipe with `changes` to their settings, and the order of its stages. Another tuner
    takes the place of the recipe's own.
    """
    content = plain_yaml.read(discover.PACKAGE / "recipes" / f"{name}.yaml")
    entries = [choose(METHOD_AXES[:-1], each) for each in content["methods"]]
    known, tuners = [key for each in entries for key in each], discover.names("tuners")
    for key, values in changes.items():
        if not isinstance(values, dict):
            raise UserError(f"method {name}: the settings of `{key}` must be a mapping; got {values!r}.")
        if key in tuners and key not in known:
            entries = [{key: {}} if set(each) & set(tuners) else each for each in entries]
        elif key not in known:
            raise UserError(f"method {name}: the recipe has no method `{key}`.{nearest(key, known)}")
    return [{key: {**own, **changes.get(key, {})} for key, own in each.items()} for each in entries], content[
        "stream"
    ]


def default_tuner() -> Method:
    """The tuner of a composition that names none."""
    return _method(DEFAULT_TUNER, {})


def diagnostics(chosen: Sequence[dict[str, Settings]]) -> tuple[Diagnostic, ...]:
    """What is looked at after every stage."""
    return tuple(_one(each, "diagnostics", Diagnostic, "diagnostics") for each in chosen)


def _method(name: str, settings: Settings) -> Method:
    axis = None if ":" in name else discover.axis_of(name, METHOD_AXES)
    return build(_class(name, axis, f"method {name}"), settings, f"method {name}")


def _class(name: str, axis: str | None, where: str) -> type[Method]:
    cls = discover.load(name, axis)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UserError(f"{where}: `{name}` is no method; it must be a dataclass derived from an axis in "
                        "lifelong.core.axes.")  # fmt: skip
    return cls


def _one(chosen: dict[str, Settings], axis: str, base: type, where: str) -> Any:
    name, settings = next(iter(chosen.items()))
    made = build(_class(name, axis, where), settings, f"{where}: {name}")
    if not isinstance(made, base):
        raise UserError(f"{where}: `{name}` cannot stand here; it must be one of {axis}. "
                        f"`lifelong methods` lists them.")  # fmt: skip
    return made


def stream(config: RunConfig, folder: str | Path) -> Stream:
    """Read all rows and build the stages; relative paths start at `folder`."""
    folder = Path(folder)
    stages: list[Stage] = []
    if config.named is not None:
        stages = [_cut(config, part) for part in config.named.parts(folder)]
    for each in config.listed:
        if each.erase is None:
            stages.append(_stage(config, each, folder))
        else:
            stages = _erase_stage(config, each, stages, folder)
    stages = erasure.split_evals(stages)
    general = tuple(_general(each, folder) for each in config.general)
    names = [each.name for stage in stages for each in stage.evals] + [each.name for each in general]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"two evaluation sets are called `{name}`; rename one.")
    guard = None if config.guard is None else Guard(**config.guard.model_dump())
    return Stream(stages=tuple(stages), general=general, candidates=config.candidates, guard=guard)


def _stage(config: RunConfig, choice: StageChoice, folder: Path) -> Stage:
    where = f"stage {choice.name}"
    training = config.training(choice)
    rows = read_rows(choice.train, folder, f"{where}, train")
    objective = _objective(training.pop("objective"), rows, where)
    labels = _labels(rows, objective, choice.labels, where)
    return Stage(
        name=choice.name,
        rows=rows,
        evals=_evals(choice, objective, labels, folder),
        objective=objective,
        labels=labels,
        **_pace(training, where),
    )


def _cut(config: RunConfig, part: Part) -> Stage:
    """A stage of a named stream. Settings of its objective stand over the stream's own."""
    where = f"stage {part.name}"
    training = config.training(Training())
    chosen = training.pop("objective")
    if chosen is None or list(chosen) == list(part.objective):
        own = {name: settings | (chosen or {}).get(name, {}) for name, settings in part.objective.items()}
        chosen = own or None
    objective = _objective(chosen, list(part.train[:1]), where)
    labels = part.labels if _is_labelled(objective, part.train[0]) else ()
    metric = _one({part.metric or objective.metric: {}}, "metrics", AnswerMetric, where)
    evals = tuple(
        EvalSet(name=name, rows=rows, objective=objective, metric=metric, labels=labels)
        for name, rows in part.tests.items()
    )
    trained = map(str, dict.fromkeys(labels_of(part.train))) if labels else ()
    return Stage(
        name=part.name,
        rows=part.train,
        evals=evals,
        objective=objective,
        labels=tuple(dict.fromkeys((*labels, *trained))),
        **_pace(training, where),
    )


def _erase_stage(
    config: RunConfig, choice: StageChoice, stages: Sequence[Stage], folder: Path
) -> list[Stage]:
    """`stages` with one more that erases from one of them; what judges it joins that stage's sets."""
    where = f"stage {choice.name}"
    training = config.training(choice)
    del training["objective"]
    target = next(each for each in stages if each.name == choice.erase.stage)
    rows = ()
    if choice.erase.path is not None:
        source = erasure.source_of(choice.erase, config)
        rows = read_rows(source, folder, f"{where}, erase")
    erases, rows = erasure.request(choice, target, stages, rows)
    check_columns(rows, target.objective, f"{where}, erase")
    _check_labels(rows, target.labels, f"{where}, erase")
    made = Stage(
        name=choice.name, rows=rows, evals=(), objective=target.objective, erases=erases,
        **_pace(training, where),
    )  # fmt: skip
    judges = _evals(choice, target.objective, target.labels, folder)
    judged = replace(target, evals=target.evals + tuple(replace(e, erased_by=choice.name) for e in judges))
    return [*(judged if each is target else each for each in stages), made]


def _evals(
    choice: StageChoice, objective: Objective, labels: tuple[str, ...], folder: Path
) -> tuple[EvalSet, ...]:
    """What `eval` of a stage names."""
    where, found = f"stage {choice.name}, eval", []
    for key, source in choice.eval.items():
        name = key if key == choice.name else f"{choice.name}.{key}"
        own = objective if source.objective is None else _objective(source.objective, [], where)
        found.append(_eval_set(name, source, own, source.metric, labels, folder, where))
    return tuple(found)


def _pace(training: Settings, where: str) -> dict[str, Any]:
    """Budget and optimisation of a stage."""
    schedule = _one(training["schedule"], "schedules", Schedule, where)
    rest = {key: value for key, value in training.items() if key not in (*BUDGET, "schedule")}
    return {
        "budget": build(Budget, {key: training[key] for key in BUDGET}, where),
        "optimization": build(Optimization, {**rest, "schedule": schedule}, where),
    }


def _general(choice: GeneralSet, folder: Path) -> EvalSet:
    where = f"general {choice.name}"
    rows = read_rows(choice.data, folder, where)
    objective = _objective(choice.objective, rows, where)
    labels = _labels(rows, objective, choice.labels, where)
    return _judged(choice.name, rows, objective, choice.metric, labels, where)


def _eval_set(
    name: str,
    source: Source,
    objective: Objective,
    metric: Any,
    labels: tuple[str, ...],
    folder: Path,
    where: str,
) -> EvalSet:
    return _judged(name, read_rows(source, folder, where), objective, metric, labels, where)


def _judged(
    name: str, rows: list[Row], objective: Objective, metric: Any, labels: tuple[str, ...], where: str
) -> EvalSet:
    """An evaluation set whose rows have the columns and the labels that they need."""
    check_columns(rows, objective, where)
    labels = labels if _is_labelled(objective, rows[0]) else ()
    _check_labels(rows, labels, where)
    judge = _one(metric or {objective.metric: {}}, "metrics", AnswerMetric, where)
    return EvalSet(name=name, rows=rows, objective=objective, metric=judge, labels=labels)


def _objective(chosen: dict[str, Settings] | None, rows: list[Row], where: str) -> Objective:
    """The objective named, or the one that the columns of the first row tell."""
    if chosen is None:
        have = set(rows[0]) - {SOURCE}
        name = next((name for columns, name in BY_COLUMNS if have.issuperset(columns)), None)
        if name is None:
            raise UserError(f"{where}: the columns {', '.join(sorted(have))} tell no objective. Name it with "
                            "`objective`, or rename columns with `columns`.")  # fmt: skip
        chosen = {name: {}}
    made = _one(chosen, "objectives", Objective, where)
    check_columns(rows, made, where)
    return made


def _is_labelled(objective: Objective, row: Row) -> bool:
    return any("label" in columns for columns in objective.columns) and isinstance(row.get("label"), str)


def _labels(
    rows: list[Row], objective: Objective, given: tuple[str, ...] | None, where: str
) -> tuple[str, ...]:
    """The labels given, which must cover the rows, else those of the rows, sorted."""
    if not _is_labelled(objective, rows[0]):
        if given is not None:
            raise UserError(f"{where}: `labels` is given, but {composition.snake(objective)} has none.")
        return ()
    if given is None:
        return tuple(sorted({row["label"] for row in rows}))
    if len(set(given)) < len(given) or not given:
        raise UserError(f"{where}: labels must differ and there must be at least one; got {list(given)}.")
    _check_labels(rows, given, where)
    return given


def _check_labels(rows: Sequence[Row], labels: tuple[str, ...], where: str) -> None:
    known = set(labels)
    for row in rows:
        if known and row["label"] not in known:
            raise UserError(
                f"{where}: {row[SOURCE]}: label `{row['label']}` is in no training row and not in `labels`."
                f"{nearest(row['label'], labels)}"
            )
