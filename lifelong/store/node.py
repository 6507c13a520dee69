"""A finished stage as a node of a model's history. Plain values, no torch.

`node.json` beside a stage's checkpoint is written when the stage has been judged, from the files of
the run alone; where it is missing (a run of an older version, a killed process) or damaged it is
derived again to the same values. Its id is a hash of the parent's id, the training rows, the
configuration, the code and the weights: two runs that made the same step from the same model have one
node. Row 0 is the untrained model, named by its weights.
"""

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from lifelong.errors import UserError
from lifelong.store.content import digest
from lifelong.store.files import parse, read_json, write_record

FILE = "node.json"
ID = 12  # hex digits
UNTRAINED = "untrained"  # how the model before the first stage is called
FINGERPRINT = 16  # hex digits


@dataclass(frozen=True, kw_only=True)
class Node:
    """One state of a model, and how it came about."""

    id: str
    parent: str | None  # None: the untrained model
    stage: str
    row: int  # of its run: 0 is the untrained model
    time: str  # of its checkpoint, UTC
    code: str  # version and digest of the sources
    data: str  # fingerprint of the training rows
    weights: str  # fingerprint of what was learned; of the model, where it is untrained
    configuration: dict[str, Any]
    metrics: dict[str, Any]
    cost: dict[str, Any]
    promoted: bool  # False where a guard turned the update down
    folder: Path  # of the stage
    aside: bool  # set aside by `revert`

    @property
    def run(self) -> Path:
        """The run folder that it lies in."""
        return self.home.parent.parent if self.aside else self.home

    @cached_property
    def home(self) -> Path:
        """The run folder, or the folder below its `aside`."""
        return self.folder.parent.parent

    @property
    def place(self) -> str:
        """As the command line takes it."""
        return f"{self.home}:{self.stage if self.row else UNTRAINED}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON keeps."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return found | {"folder": str(self.folder), "run": str(self.run)}


def stage_folders(run: Path) -> list[Path]:
    """Folders of the stages that a run folder holds, the untrained model first."""
    if not (run / "stages").is_dir():
        return []
    return sorted((run / "stages").glob("[0-9]*-*"), key=row_of)


def row_of(folder: Path) -> int:
    return int(folder.name.partition("-")[0])


def is_finished(folder: Path) -> bool:
    """Trained and judged; the untrained model: judged."""
    if (folder / FILE).exists():
        return True
    trained = row_of(folder) == 0 or (folder / "checkpoint").is_dir()
    return trained and (folder / "evaluation.json").exists()


def seal(run: Path, folder: Path) -> None:
    """Write node.json of a finished stage; parents are sealed before. What was judged later is added
    to a node, which keeps its id while its weights stay.
    """
    folders = stage_folders(run)
    before = [each for each in folders if row_of(each) < row_of(folder)]
    parent = read_record(run, before[-1])["id"] if before else None
    found = derive(run, folder, parent)
    if (folder / FILE).exists():
        old = read_json(folder / FILE)
        if old["weights"] == found["weights"]:
            found |= {key: old[key] for key in ("id", "parent", "time", "code")}
    write_record(folder / FILE, found)


def damage(folder: Path) -> str | None:
    """What is wrong with node.json, if anything."""
    try:
        parse(folder / FILE)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return str(error)
    return None


def read_record(run: Path, folder: Path, parent: str | None = None) -> dict[str, Any]:
    """The content of node.json, derived where the file is missing."""
    try:
        return parse(folder / FILE)
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise UserError(
            f"{folder / FILE} is damaged ({error}). Remove this one file: it is written again from the "
            "others."
        ) from None
    if parent is None and row_of(folder):
        before = [each for each in stage_folders(run) if row_of(each) < row_of(folder)]
        for each in before:
            parent = read_record(run, each, parent)["id"]
    return derive(run, folder, parent)


def derive(run: Path, folder: Path, parent: str | None) -> dict[str, Any]:
    """The content of node.json, from the other files of the run."""
    config, row = read_json(run / "config.json"), row_of(folder)
    file = run / "environment.json"
    environment = read_json(file) if file.exists() else {}
    evaluation = folder / "evaluation.json"
    if not row:
        base = config["model"].get("fingerprint") or digest(config["model"])
        return {
            "id": base[:ID], "parent": None, "stage": config["model"].get("name", "untrained"), "row": 0,
            "time": _time(evaluation), "code": "", "data": "", "weights": base[:FINGERPRINT],
            "configuration": {"model": config["model"]}, "metrics": metrics(read_json(evaluation), 0),
            "cost": {},
        }  # fmt: skip
    if row > len(config["stages"]):
        raise UserError(f"{folder} is a stage that {run / 'config.json'} does not name. Put it elsewhere.")
    about, manifest = dict(config["stages"][row - 1]), folder / "checkpoint" / "manifest.json"
    if not manifest.exists():
        raise UserError(f"{folder} is damaged: its checkpoint has no manifest.json.")
    parts = {k: v for k, v in read_json(manifest)["parts"].items() if not k.endswith(".json")}
    for judged_by in ("evals", "num_eval_rows"):
        about.pop(judged_by, None)
    common = ("methods", "method_name", "stream", "seed", "precision", "candidates")
    found = {
        "parent": parent,
        "data": about.pop("data", "")[:FINGERPRINT],
        "configuration": {key: config[key] for key in common if key in config} | {"stage": about},
        "code": environment.get("code", environment.get("lifelong", "")),
        "weights": digest(parts)[:FINGERPRINT],
    }
    cost = read_json(folder / "cost.json") if (folder / "cost.json").exists() else {}
    return {"id": digest(found)[:ID], "stage": about["name"], "row": row, "time": _time(manifest), **found,
            "metrics": metrics(read_json(evaluation), row), "cost": cost}  # fmt: skip


def metrics(evaluation: dict[str, Any], row: int) -> dict[str, Any]:
    """The accuracy row and general ability; `average` is over the tasks taught by then, each counting
    the same, where all are shares.
    """
    tasks = [each for each in evaluation["sets"] if not each["general"]]
    taught = [each for each in tasks if each["task"] < row]
    shares = bool(taught) and all(each["unit"] == "%" for each in taught)
    return {
        "average": sum(each["value"] for each in taught) / len(taught) if shares else None,
        "tasks": {each["name"]: each["value"] for each in tasks},
        "taught": [each["name"] for each in taught],
        "general": {each["name"]: each["value"] for each in evaluation["sets"] if each["general"]},
        "units": {each["name"]: each["unit"] for each in evaluation["sets"]},
    }


def _time(file: Path) -> str:
    seconds = file.stat().st_mtime if file.exists() else 0
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")
