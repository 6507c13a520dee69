"""A model as a stage of a run left it, without the data that it was trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lifelong.core import discover, settings
from lifelong.core import state as states
from lifelong.core.axes import Tuner
from lifelong.core.model import Model
from lifelong.errors import UserError, nearest
from lifelong.models import pretrained
from lifelong.store.files import read_json
from lifelong.store.run import Position, broken, load_checkpoint


@dataclass
class Restored:
    model: Model
    tuner: Tuner
    tuner_state: states.State
    stage: str
    config: dict[str, Any]


def is_run(path: str | Path) -> bool:
    return (Path(path) / "config.json").exists() and (Path(path) / "stages").exists()


def finished_stages(folder: Path) -> dict[str, Path]:
    """Checkpoint folders by the name of the stage, in order."""
    config = read_json(folder / "config.json")
    names = [stage["name"] for stage in config["stages"]] if config["stream"] != "joint" else ["joint"]
    found = {}
    for path in sorted((folder / "stages").glob("[0-9]*-*")):
        index = int(path.name[:3])
        if index and (path / "checkpoint").exists() and index <= len(names):
            found[names[index - 1]] = path / "checkpoint"
    return found


def open_run(folder: str | Path, stage: str | None = None) -> Restored:
    """Load the base model and put the update of one stage (default: the last finished one) on it.

    Raises UserError for a stage that does not exist, a damaged checkpoint, or base weights that are
    not those of the run.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise UserError(f"{folder} is no run folder (it has no config.json and stages).")
    config = read_json(folder / "config.json")
    if config["stream"] == "per_task":
        return open_run(_part(folder, config, stage))
    found = finished_stages(folder)
    if not found:
        raise UserError(f"{folder} holds no finished stage yet; run it first.")
    stage = stage or list(found)[-1]
    if stage not in found:
        raise UserError(f"{folder} has no finished stage `{stage}`.{nearest(stage, found)}")
    problem = broken(found[stage])
    if problem:
        raise UserError(f"the checkpoint of stage {stage} in {folder} is damaged ({problem}).")
    saved = states.join(*load_checkpoint(Position(0, None, found[stage])))
    tuner = _tuner(config)
    source = dict(config["model"]["source"])
    model = pretrained.load(source.pop("name"), **source, dtype=torch.float32 if tuner.trains_base else None)
    if config["model"]["fingerprint"] and model.fingerprint != config["model"]["fingerprint"]:
        raise UserError(
            f"{model.name} is not the model that {folder} was trained on: its weights have another "
            f"fingerprint ({model.fingerprint[:12]}, not {config['model']['fingerprint'][:12]})."
        )
    return _put_on(model, tuner, saved, stage, config)


def _part(folder: Path, config: dict[str, Any], stage: str | None) -> Path:
    """The run of one stage in a run with a model for every stage."""
    names = [about["name"] for about in config["stages"]]
    if stage is None:
        raise UserError(f"{folder} has a model for every stage; name one with `stage`: {', '.join(names)}.")
    if stage not in names:
        raise UserError(f"{folder} has no stage `{stage}`.{nearest(stage, names)}")
    return folder / "per_task" / stage


def _put_on(model: Model, tuner: Tuner, saved: states.State, stage: str, config: dict[str, Any]) -> Restored:
    tuner_state = tuner.attach(model, saved["states"]["tuner"], seed=0)
    for about in config["stages"]:
        cls = discover.load(about["objective"]["name"], "objectives")
        objective = settings.build(cls, about["objective"]["settings"], "objective")
        objective.begin_stage(model, saved["notes"]["labels"], seed=0)
    params = dict(model.network.named_parameters())
    with torch.no_grad():
        for name, value in saved["params"].items():
            params[name].copy_(value)
    model.network.eval()
    return Restored(model, tuner, tuner_state, stage, config)


def _tuner(config: dict[str, Any]) -> Tuner:
    entry = next(m for m in config["methods"] if m["axis"] == "tuners")
    return settings.build(discover.load(entry["name"], "tuners"), entry["settings"], "config.json")


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
    adapter = Path(name) / "adapter_config.json"
    if adapter.is_file() and not (Path(name) / "config.json").exists():
        base = read_json(adapter).get("base_model_name_or_path")
        return pretrained.load(base, **{"adapter": str(name)} | choices)
    return pretrained.load(str(name), **choices)
