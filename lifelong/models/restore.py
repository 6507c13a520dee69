"""A model as a stage of a run left it, without the data that it was trained on."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong.core import discover, head, settings
from lifelong.core import state as states
from lifelong.core.axes import Tuner
from lifelong.core.life import derive
from lifelong.core.model import Model
from lifelong.errors import UserError, nearest
from lifelong.models import pretrained, routed
from lifelong.models.heads import NAME as HEAD
from lifelong.store.checkpoint import broken, read_checkpoint
from lifelong.store.files import read_json
from lifelong.store.node import Node, row_of, stage_folders


@dataclass
class Restored:
    model: Model
    tuner: Tuner
    tuner_state: states.State
    stage: str
    config: dict[str, Any]


@dataclass
class Saved:
    """What a run keeps of one finished stage."""

    tuner: Tuner
    content: states.State  # of the checkpoint
    stage: str
    folder: Path
    config: dict[str, Any]


def is_run(path: str | Path) -> bool:
    return (Path(path) / "config.json").exists() and (Path(path) / "stages").exists()


def finished_stages(folder: Path) -> dict[str, Path]:
    """Checkpoint folders by the name of the stage, in order."""
    config = read_json(folder / "config.json")
    names = [stage["name"] for stage in config["stages"]] if config["stream"] != "joint" else ["joint"]
    found = {}
    for path in stage_folders(folder):
        index = row_of(path)
        if index and (path / "checkpoint").exists() and index <= len(names):
            found[names[index - 1]] = path / "checkpoint"
    return found


def open_run(folder: str | Path, stage: str | None = None) -> Restored:
    """Load the base model and put the update of one stage (default: the last finished one) on it.

    Raises UserError for a stage that does not exist, a damaged checkpoint, or base weights that are
    not those of the run.
    """
    return put_on(read_run(folder, stage))


def read_run(folder: str | Path, stage: str | None = None) -> Saved:
    """The checkpoint of one stage, without a model."""
    folder = Path(folder)
    if not is_run(folder):
        raise UserError(f"{folder} is no run folder (it has no config.json and stages).")
    config = read_json(folder / "config.json")
    if config["stream"] == "per_task":
        return read_run(_part(folder, config, stage))
    found = finished_stages(folder)
    if not found:
        raise UserError(f"{folder} holds no finished stage yet; run it first.")
    stage = stage or _promoted(folder, found)
    if stage not in found:
        raise UserError(f"{folder} has no finished stage `{stage}`.{nearest(stage, found)}")
    problem = broken(found[stage])
    if problem:
        raise UserError(f"the checkpoint of stage {stage} in {folder} is damaged ({problem}).")
    content = states.join(*read_checkpoint(found[stage]))
    return Saved(_tuner(config), content, stage, folder, config)


def _promoted(folder: Path, found: Mapping[str, Path]) -> str:
    """The last finished stage that its guard let pass; a warning names those after it."""
    refused: list[str] = []
    for stage, checkpoint in reversed(found.items()):
        guard = checkpoint.parent / "guard.json"
        if not guard.exists() or read_json(guard)["promoted"]:
            if refused:
                names = ", ".join(reversed(refused))
                warnings.warn(
                    f"{folder}: over budget and not promoted: {names}; this is stage {stage}. Name another "
                    "with `stage`.",
                    stacklevel=2,
                )
            return stage
        refused.append(stage)
    raise UserError(
        f"{folder} has no stage that was promoted: {', '.join(found)} lost more than the guard allows. Name "
        "one with `stage`, or take the model that the run began from."
    )


def _part(folder: Path, config: dict[str, Any], stage: str | None) -> Path:
    """The run of one stage in a run with a model for every stage."""
    names = [about["name"] for about in config["stages"]]
    if stage is None:
        raise UserError(f"{folder} has a model for every stage; name one with `stage`: {', '.join(names)}.")
    if stage not in names:
        raise UserError(f"{folder} has no stage `{stage}`.{nearest(stage, names)}")
    return folder / "per_task" / stage


def base_of(saved: Saved) -> Model:
    """The model as it was before the first stage."""
    choice = saved.config["model"]
    source = dict(choice["source"])
    dtype = torch.float32 if saved.tuner.trains_base else None
    model = pretrained.load(source.pop("name"), **source, dtype=dtype)
    if choice["fingerprint"] and model.fingerprint != choice["fingerprint"]:
        raise UserError(
            f"{model.name} is not the model that {saved.folder} was trained on: its weights have another "
            f"fingerprint ({model.fingerprint[:12]}, not {choice['fingerprint'][:12]})."
        )
    return model


def put_on(saved: Saved) -> Restored:
    model = base_of(saved)
    tuner_state = saved.tuner.attach(model, saved.content["states"]["tuner"], seed=0)
    add_heads(model, saved)
    _copy(model, saved.content["params"])
    model.network.eval()
    return Restored(model, saved.tuner, tuner_state, saved.stage, saved.config)


def add_heads(model: Model, saved: Saved) -> None:
    """What the learners and objectives of the run add to a network, with the values of the stage."""
    for entry in (each for each in saved.config["methods"] if each["axis"] == "analytic"):
        learner = settings.build(discover.load(entry["name"], "analytic"), entry["settings"], "config.json")
        head.attach(model, learner.expansion, derive(saved.config["seed"], 2))
    for about in saved.config["stages"]:
        cls = discover.load(about["objective"]["name"], "objectives")
        objective = settings.build(cls, about["objective"]["settings"], "objective")
        objective.begin_stage(model, saved.content["notes"]["labels"], seed=0)
    _copy(model, {name: value for name, value in saved.content["params"].items() if _of_head(name)})


def learned(saved: Saved, base: str) -> routed.Learned:
    """What the tuner of the run learned, for a base with the fingerprint `base`."""
    entry = _entry(saved.config)
    params = {name: value for name, value in saved.content["params"].items() if not _of_head(name)}
    return routed.Learned(entry["name"], entry["settings"], saved.content["states"]["tuner"], params, base)


def _of_head(name: str) -> bool:
    return name.startswith(f"{HEAD}.")


def _copy(model: Model, values: Mapping[str, Tensor]) -> None:
    params = dict(model.network.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            params[name].copy_(value)


def _entry(config: dict[str, Any]) -> dict[str, Any]:
    return next(m for m in config["methods"] if m["axis"] == "tuners")


def _tuner(config: dict[str, Any]) -> Tuner:
    entry = _entry(config)
    return settings.build(discover.load(entry["name"], "tuners"), entry["settings"], "config.json")


def at(node: Node) -> Model:
    """The model as a node of its history is, the update folded in."""
    if node.row:
        return load(node.home, node.stage)
    config = read_json(node.home / "config.json")
    return base_of(Saved(_tuner(config), {}, node.stage, node.home, config))


def load(name: str | Path, stage: str | None = None, **choices: Any) -> Model:
    """A model from a run folder (with its update folded in), an exported folder, a Hub name, a
    local folder or an embedded name. `choices` go to `pretrained.load`. An exported adapter is put
    on the base that it names.
    """
    if is_run(name):
        restored = open_run(name, stage)
        restored.tuner.fold(restored.model, restored.tuner_state)
        return restored.model
    if stage is not None:
        raise UserError(f"{name} is no run folder, so there is no stage `{stage}` in it.")
    if routed.is_routed(name):
        return _load_routed(Path(name), choices)
    adapter = Path(name) / "adapter_config.json"
    if adapter.is_file() and not (Path(name) / "config.json").exists():
        base = read_json(adapter).get("base_model_name_or_path")
        return pretrained.load(base, **{"adapter": str(name)} | choices)
    return pretrained.load(str(name), **choices)


def _load_routed(folder: Path, choices: dict[str, Any]) -> Model:
    """An exported base with the tuner beside it put on."""
    found = routed.read_learned(folder)
    if ":" in found.tuner and not choices.get("trust_remote_code"):
        raise UserError(
            f"{folder} was trained with a method of its author, `{found.tuner}`. Read that code, and set "
            "`trust_remote_code` to true if you trust it."
        )
    model = pretrained.load(str(folder), **choices, routed=True)
    if model.fingerprint != found.base:
        raise UserError(
            f"{folder}: its base weights are not those that {found.tuner} was trained on (fingerprint "
            f"{model.fingerprint[:12]}, not {found.base[:12]}). Export the run again."
        )
    tuner = settings.build(discover.load(found.tuner, "tuners"), found.settings, str(folder))
    state = tuner.attach(model, found.state, seed=0)
    _copy(model, found.params)
    tuner.fold(model, state)
    model.network.eval()
    return model
