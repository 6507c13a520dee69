"""From a configuration to finished runs: what the command line and `lifelong.run` both call."""

import copy
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from lifelong import __version__
from lifelong.core import discover, engine, evaluation
from lifelong.core.agreement import (
    check_erasure,
    check_head,
    check_kinds,
    check_objectives,
    check_optimizer,
)
from lifelong.core.axes import Method
from lifelong.core.composition import Methods, axis_of, compose
from lifelong.core.engine import Event, Listener, Settings
from lifelong.core.guard import check_guard
from lifelong.core.matrix import AccuracyMatrix
from lifelong.core.model import Model
from lifelong.core.stream import EvalSet, Optimization, Stage, Stream, joined, without_erased
from lifelong.errors import UserError
from lifelong.models import compute, pretrained, restore
from lifelong.models.judge import judge_stream
from lifelong.store import content
from lifelong.store.files import read_json
from lifelong.store.follower import Follower
from lifelong.store.run import RunFolder
from lifelong.streams import build, config
from lifelong.streams.config import RunConfig

PER_TASK = "per_task"


@dataclass
class Run:
    """A finished run: its folder, its numbers, and the model as the last stage left it."""

    folder: Path
    summary: dict[str, Any]
    model: Model | None = None

    @property
    def matrix(self) -> AccuracyMatrix:
        return AccuracyMatrix.from_dict(self.summary["matrix"])


def run(
    model: Model | str,
    stream: Stream | RunConfig | str | Path | dict[str, Any],
    methods: Methods | Sequence[Method] | str | None = None,
    *,
    output: str | Path | None = None,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: str | Path | None = None,
    listen: Listener = lambda event: None,
    untrained: Path | None = None,
) -> Run:
    """Train `model` on every stage of `stream` and judge it after each; resumes what is in `output`.

    `model` is a loaded model or a name that `load` takes; `stream` a stream object, a stream file
    or its content, whose relative paths start at `folder` (default: where the file is); `methods`
    method objects, or a recipe's name (default: what the file says). A `model` given here takes the
    place of the one that the file names. `untrained` is a folder with the evaluation of the untrained
    model on the same sets, as another run made it. What can be refused without the weights is refused first.
    """
    chosen = _as_config(stream, model)
    methods = _as_methods(methods, chosen)
    seed = _one_seed(chosen) if seed is None else seed
    if chosen is not None:
        if folder is None:
            folder = Path(stream).parent if isinstance(stream, (str, Path)) else Path()
        stream = build.stream(chosen, folder)
    stream = planned(stream, methods, listen)
    if isinstance(model, str):
        model = load_model(chosen, seed) if chosen else pretrained.load(model, seed=seed)
    check_kinds(stream, model)
    check_head(stream, methods, model)
    record = {} if chosen is None else chosen.resolved()
    if chosen is not None:
        compute.set_attention(model, chosen.attention, stream)
        settings = settings or settings_of(chosen)
    settings = replace(settings or Settings(), seed=seed)
    target = Path(output or (record and record["output"]) or "runs/run")
    return execute(model, stream, methods, target, settings, record, listen, untrained)


def planned(stream: Stream, methods: Methods, listen: Listener = lambda event: None) -> Stream:
    """The stages as they are trained: in order, or joined. UserError where that is seen to fail without
    the weights.
    """
    stream = stream if methods.stream == "sequence" else _bound(stream, methods, listen)
    check_objectives(stream, methods)
    check_optimizer(stream, methods)
    check_erasure(stream, methods)
    check_guard(stream, methods)
    return stream


def _bound(stream: Stream, methods: Methods, listen: Listener) -> Stream:
    """A bound is not guarded, and it retrains: as if rows that the stream erases had never been in it."""
    if stream.guard is not None:
        text = f"{methods.stream} has no earlier stages, so there is nothing to guard."
        listen(Event("notice", 0, text=text))
        stream = replace(stream, guard=None)
    stream = without_erased(stream)
    return joined(stream) if methods.stream == "joint" else stream


def _one_seed(chosen: RunConfig | None) -> int:
    if chosen is None:
        return 0
    if len(chosen.all_seeds) > 1:
        raise UserError(f"`seeds` names several: {list(chosen.all_seeds)}; give `seed`, one for each run.")
    return chosen.all_seeds[0]


def run_config(chosen: RunConfig, folder: Path, listen: Listener = lambda event: None) -> list[Run]:
    """Every seed of a stream file that lies in `folder`; one output folder each if there are several."""
    seeds = chosen.all_seeds
    base = Path(chosen.resolved()["output"])
    done = []
    for seed in seeds:
        output = base if len(seeds) == 1 else base / f"seed-{seed}"
        done.append(run(chosen.model.name, chosen, output=output, seed=seed, folder=folder,
                        listen=listen, settings=settings_of(chosen)))  # fmt: skip
    return done


def judge(
    model: Model | str | Path,
    stream: RunConfig | str | Path | dict[str, Any],
    folder: str | Path | None = None,
    stage: str | None = None,
) -> list[dict[str, Any]]:
    """Figures of `model` (a loaded one, a run folder, or a name) on the evaluation sets of a stream.
    `stage` names a stage of a run folder; default: the last one finished.
    """
    chosen = _as_config(stream, model)
    if folder is None:
        folder = Path(stream).parent if isinstance(stream, (str, Path)) else Path()
    built = build.stream(chosen, folder)
    if not isinstance(model, Model):
        model = restore.load(model, stage)
    check_kinds(built, model, trains=False)
    compute.set_attention(model, chosen.attention, built)
    return judge_stream(model, built, compute.precision(chosen.precision, model.device))


def settings_of(chosen: RunConfig) -> Settings:
    return Settings(
        precision=compute.precision(chosen.precision, compute.device()),
        checkpoint_seconds=chosen.checkpoint_seconds,
        keep_checkpoints=chosen.keep_checkpoints,
        trackers=tuple(chosen.trackers),
        diagnostics=build.diagnostics(chosen.diagnostics),
        evaluate_steps=chosen.evaluate_steps,
    )


def load_model(chosen: RunConfig, seed: int = 0) -> Model:
    """The model of a stream file; `seed` draws its weights where it is made and names no seed of its own."""
    choice = chosen.model.model_dump()
    choice["seed"] = seed if choice["seed"] is None else choice["seed"]
    return pretrained.load(choice.pop("name"), **choice)


def execute(
    model: Model, stream: Stream, methods: Methods, output: Path, settings: Settings,
    record: dict[str, Any], listen: Listener, untrained: Path | None = None,
) -> Run:  # fmt: skip
    """One run in one folder: the sequence, the joint bound, or one fresh model per task."""
    names = [PER_TASK] if methods.stream == PER_TASK else [stage.name for stage in stream.stages]
    about = describe(model, stream, methods, settings, record)
    processes = PartialState(cpu=model.device.type == "cpu")
    if processes.num_processes > 1 and any(stage.budget.seconds for stage in stream.stages):
        raise UserError("a budget in seconds needs one clock: with several processes give steps or tokens.")
    writes = processes.is_main_process
    folder = RunFolder(output, about, names, settings.keep_checkpoints) if writes else Follower(output, names)
    processes.wait_for_everyone()
    listen = listen if writes else lambda event: None
    try:
        folder.write_environment(environment(settings, model))
        if methods.stream == PER_TASK:
            summary = _per_task(model, stream, methods, folder, settings, record, listen)
            return Run(folder.path, summary)
        if untrained is not None:
            folder.take_over(untrained)
        summary = engine.train(model, stream, methods, folder, settings, listen)
        return Run(folder.path, summary, model)
    finally:
        folder.close()


def _per_task(
    model: Model, stream: Stream, methods: Methods, folder: RunFolder, settings: Settings,
    record: dict[str, Any], listen: Listener,
) -> dict[str, Any]:  # fmt: skip
    """A fresh copy of the model for every stage; the parts are runs of their own below the folder."""
    rows: list[list[dict[str, Any]]] = [[], []]
    costs, alone = [], replace(methods, stream="sequence")
    for index, stage in enumerate(stream.stages):
        part = replace(stream, stages=(stage,))
        fresh = replace(model, network=copy.deepcopy(model.network))
        there = folder.path / PER_TASK / stage.name
        made = execute(fresh, part, alone, there, settings, record, partial(_renumbered, listen, index))
        parts = sorted((made.folder / "stages").iterdir())
        for row in (0, 1):
            sets = read_json(parts[row] / "evaluation.json")["sets"]
            rows[row] += [s | {"task": index} for s in sets if not s["general"]]
            if index == len(stream.stages) - 1:
                rows[row] += [s for s in sets if s["general"]]
        costs.append(read_json(parts[1] / "cost.json"))
    for row in (0, 1):
        folder.write(row, "evaluation.json", {"stage": PER_TASK if row else None, "sets": rows[row]})
    summed = ("seconds", "evaluation_seconds", "tokens", "pad_tokens", "steps", "truncated_rows")
    total = {k: sum(c[k] for c in costs) for k in summed}
    peak = max(c["peak_memory_bytes"] for c in costs)
    kept = {k: sum(c[k] for c in costs) for k in ("state_bytes", "memory_bytes")}
    rate = total["tokens"] / max(total["seconds"], 1e-9)
    folder.write(
        1,
        "cost.json",
        {"name": PER_TASK, **total, "tokens_per_second": rate, "peak_memory_bytes": peak, **kept},
    )
    return evaluation.summarise(joined(stream), folder)


def _renumbered(listen: Listener, index: int, event: engine.Event) -> None:
    """Every part of a per-task run counts its only stage as the first."""
    listen(event._replace(stage=event.stage and index + 1))


def describe(
    model: Model, stream: Stream, methods: Methods, settings: Settings, record: dict[str, Any]
) -> dict[str, Any]:
    """What config.json says: enough to read a report, to export, and to know the run again."""
    about = _json({
        "name": record.get("name", "run"),
        "method_name": methods.name,
        "seed": settings.seed,
        "precision": settings.precision,
        "model": {"name": model.name, "kind": model.kind, "fingerprint": model.fingerprint,
                  "parameters": sum(p.numel() for p in model.network.parameters()),
                  "source": record.get("model", {"name": model.name}) | model.notes.get("made", {})},
    }) | plan_of(stream, methods)  # fmt: skip
    return about | {"fingerprint": content.digest(about | {"name": None})}


def plan_of(stream: Stream, methods: Methods) -> dict[str, Any]:
    """What config.json says of the methods and the rows: all that is known without the model."""
    named = [(axis_of(part), part) for part in methods.parts]
    return _json({
        "methods": [{"axis": axis, "name": _id(m), "settings": asdict(m)} for axis, m in named],
        "stream": methods.stream,
        "candidates": stream.candidates,
        "stages": [_about_stage(stage) for stage in stream.stages],
        "general": [_about_set(each) for each in stream.general],
    })  # fmt: skip


def _about_stage(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "num_rows": len(stage.rows),
        "num_eval_rows": sum(len(each.rows) for each in stage.evals),
        "evals": [_about_set(each) for each in stage.evals],
        "objective": {"name": _id(stage.objective), "settings": asdict(stage.objective)},
        "labels": list(stage.labels),
        "erases": asdict(stage.erases) if stage.erases else None,
        "budget": {k: v for k, v in asdict(stage.budget).items() if v is not None},
        "optimization": _about_steps(stage.optimization),
        "data": content.rows_digest(stage.rows),
    }  # fmt: skip


def _about_steps(chosen: Optimization) -> dict[str, Any]:
    """Settings that have a say. That the optimiser is AdamW goes without saying, as it did before there
    was a choice, so that runs of that time go on.
    """
    idle = {"adamw": ("optimizer", "momentum"), "sgd": ("beta1", "beta2")}[chosen.optimizer]
    told = {k: v for k, v in asdict(replace(chosen, schedule=None)).items() if k not in idle}
    return told | {"schedule": {"name": _id(chosen.schedule), **asdict(chosen.schedule)}}


def _about_set(each: EvalSet) -> dict[str, Any]:
    return {"name": each.name, "num_rows": len(each.rows), "data": evaluation.identity(each)}


def _id(method: Method) -> str:
    cls = type(method)
    own = cls.__module__.startswith("lifelong.")
    return cls.__module__.rpartition(".")[2] if own else f"{cls.__module__}:{cls.__qualname__}"


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(each) for key, each in value.items()}
    return [_json(each) for each in value] if isinstance(value, (list, tuple)) else value


def environment(settings: Settings, model: Model) -> dict[str, Any]:
    import accelerate
    import transformers

    device = model.device
    return {
        "lifelong": __version__,
        "code": f"{__version__}+{content.sources_digest(discover.PACKAGE)[:8]}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": settings.precision,
        "attention": model.network.config._attn_implementation,
    }


def _as_methods(methods: Methods | Sequence[Method] | str | None, chosen: RunConfig | None) -> Methods:
    if methods is None:
        return build.methods(chosen.method if chosen else [{"sequential": {}}])
    if isinstance(methods, str):
        return build.methods([{methods: {}}])
    return methods if isinstance(methods, Methods) else compose(methods, build.default_tuner())


def _as_config(stream: Any, model: Any) -> RunConfig | None:
    if isinstance(stream, Stream):
        return None
    name = model.name if isinstance(model, Model) else str(model)
    if isinstance(stream, dict):
        stream = config.parse({"name": "run", "method": "sequential", "model": name} | stream, "stream")
    elif isinstance(stream, (str, Path)):
        stream = config.read(stream)
    if isinstance(stream, RunConfig):
        other = stream.model.name != name
        return stream.model_copy(update={"model": config.ModelChoice(name=name)}) if other else stream
    raise UserError(f"stream must be a stream file, its content or a Stream; got {type(stream).__name__}.")
