"""One run is one folder; everything that a report shows is read from here.

    config.json                      the resolved configuration, with its fingerprint
    environment.json                 versions, device, precision
    log.jsonl                        one line per optimiser step
    stages/000-untrained/            evaluation.json, answers.jsonl
    stages/001-<name>/               checkpoint/ (weights and states), cost.json, evaluation.json, ...
                                     guard.json: was it promoted; repair.json: which share was kept
                                     node.json: parent, fingerprints, figures (see `lifelong log`)
    checkpoints/001-000120/          inside a stage: index of the stage and steps made
    summary.json                     accuracy matrix, metrics, what was visible at test time
    aside/001/                       stages that `lifelong revert` set aside, with their log and config
    tags/<name>                      id of a node that `lifelong tag` named

Every file appears whole; checkpoints, records and lines of the log carry checksums. A stage that has
begun keeps its configuration; stages may be added after it, and those that have not begun may change.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lifelong.errors import UserError
from lifelong.store import node
from lifelong.store.checkpoint import broken, read_checkpoint, write_checkpoint
from lifelong.store.configuration import Config, configuration, conflicts, fingerprint, judges_untrained
from lifelong.store.files import (
    Lock,
    checksum,
    parse,
    read_json,
    remove_folder,
    sweep,
    whole_folder,
    write_record,
    write_text,
)
from lifelong.store.log import Log, read_log

FORMAT = 1
UNTRAINED = "000-untrained"
RECORDS = ("evaluation.json", "cost.json", "diagnostics.json")  # of a stage


class Position(NamedTuple):
    """Where a checkpoint stands; `step` is None at a stage's end."""

    stage: int
    step: int | None
    folder: Path


class RunFolder:
    """The writer's view; one process at a time."""

    def __init__(self, path: Path, config: Config, stages: Iterable[str], keep: int = 2) -> None:
        """Open for writing. `keep` is the number of checkpoints kept inside a stage.

        Raises UserError where another process writes, or what has begun has another configuration.
        """
        self.path, self.stages, self.keep = Path(path), stage_names(stages), keep
        self.config = {"fingerprint": fingerprint(config), **config, "format": FORMAT}
        self.notices: list[str] = []
        self._sound: set[Path] = set()  # stages' checkpoints whose checksums held
        self.lock = Lock(self.path)
        try:
            self._claim()
            self._seal_finished()
        except BaseException:
            self.lock.release()
            raise
        self._log = Log(self.path)

    def _claim(self) -> None:
        theirs = self._known_configuration()
        sweep(self.path)
        if theirs == self.config:
            return
        if theirs is not None:
            self._replan(theirs)
        write_record(self.path / "config.json", self.config)

    def _known_configuration(self) -> Config | None:
        """What the folder was made with; None where it is empty, and where that is damaged but known by
        the checkpoints to be the same.
        """
        file = self.path / "config.json"
        if not file.exists():
            others = [p.name for p in self.path.iterdir() if p.name != "lock" and not p.name.startswith(".")]
            if others:
                raise UserError(
                    f"{self.path} is not empty and is no run folder (it holds {others[0]}); "
                    "choose another `output`."
                )
            return None
        try:
            return configuration(self.path)
        except UserError:
            if not self._is_of_checkpoints():
                raise
            self.notices.append(f"{file} is damaged. The checkpoints are of this configuration: it is kept.")
            return None

    def _is_of_checkpoints(self) -> bool:
        """Was the newest checkpoint that can be read made with this configuration?"""
        for position in self._checkpoints():
            with contextlib.suppress(OSError, ValueError):
                known = parse(position.folder / "manifest.json").get("run")
                return known == fingerprint(self.config, position.stage + 1)
        return False

    def _replan(self, theirs: Config) -> None:
        """Take another configuration, as far as nothing that has begun depends on it."""
        begun = self._begun(theirs)
        found = conflicts(theirs, self.config, begun) if begun else []
        if found:
            last = theirs["stages"][begun - 1]["name"]
            raise UserError(
                f"{self.path} holds a run of another configuration (it differs in {', '.join(found)}). What "
                f"has begun may not change, here up to stage {last}; later stages may. Choose another "
                "`output`, go back with `lifelong revert`, or go on elsewhere with `lifelong branch`."
            )
        stale = [p for p in node.stage_folders(self.path) if node.row_of(p) > begun]
        untrained = self.path / "stages" / UNTRAINED
        if not begun and untrained.exists() and judges_untrained(theirs) != judges_untrained(self.config):
            stale.append(untrained)
        for folder in stale:
            remove_folder(folder)
        stages = self.config.get("stages", [])
        if begun and theirs["stages"] != stages:
            last, count = stages[begun - 1]["name"], len(stages) - begun
            self.notices.append(f"{self.path} goes on after stage {last}; {count} more to come.")

    def _begun(self, config: Config) -> int:
        """Stages that have a checkpoint; of a run with a model for every stage, those that have a run."""
        ends = [node.row_of(p) for p in node.stage_folders(self.path) if (p / "checkpoint").exists()]
        parts = [self.path / "per_task" / stage["name"] for stage in config.get("stages", ())]
        alone = [i for i, part in enumerate(parts, 1) if part.exists()]
        return max([0, *ends, *alone, *(each.stage + 1 for each in self._inner())])

    def _seal_finished(self) -> None:
        """Write the nodes of stages that have none, or one that is damaged."""
        for folder in node.stage_folders(self.path):
            problem = node.damage(folder)
            if problem:
                self.notices.append(f"{folder / node.FILE} is damaged ({problem}); it is made again.")
                (folder / node.FILE).unlink()
            if node.is_finished(folder) and not (folder / node.FILE).exists():
                with contextlib.suppress(UserError):  # what is damaged is judged or trained again, and told
                    self._seal(folder)

    def close(self) -> None:
        self._log.close()
        self.lock.release()

    # stages ---------------------------------------------------------------------------------

    def stage(self, index: int) -> Path:
        """Folder of a row: 0 is the untrained model, k the k-th stage."""
        return self.path / "stages" / self.stages[index]

    def has(self, index: int, name: str) -> bool:
        return (self.stage(index) / name).exists()

    def write(self, index: int, name: str, value: Any) -> None:
        write_record(self.stage(index) / name, value)

    def discard(self, index: int, *names: str) -> None:
        """Remove files of a row that is made anew."""
        for name in names:
            (self.stage(index) / name).unlink(missing_ok=True)

    def write_summary(self, value: Any) -> None:
        write_record(self.path / "summary.json", value)

    def write_environment(self, value: Any) -> None:
        write_record(self.path / "environment.json", value)

    def write_evaluation(self, index: int, value: dict[str, Any], answers: Iterable[Any]) -> None:
        """The figures of a row, and the answers that they follow from."""
        lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        file = self.stage(index) / "answers.jsonl"
        write_text(file, lines)
        self.write(index, "evaluation.json", {**value, "answers_checksum": checksum(file)})

    def read_answers(self, index: int) -> list[Any]:
        with (self.stage(index) / "answers.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def judged(self, index: int) -> bool:
        """Does the row have its evaluation? One that is damaged is named in `notices` and counts as none."""
        problem = self.has(index, "evaluation.json") and _damage(self.stage(index))
        if problem:
            self.notices.append(problem)
        return self.has(index, "evaluation.json") and not problem

    def seal(self, index: int) -> None:
        """The stage has been judged: it is a node of the model's history from now on."""
        self._seal(self.stage(index))

    def _seal(self, folder: Path) -> None:
        if self.config.get("stream") != "per_task":  # its parts are runs with nodes
            node.seal(self.path, folder)

    def forget(self, index: int) -> None:
        """A stage that is trained again is judged again, and so are the stages after it."""
        for row in range(index, len(self.stages)):
            self.discard(row, "evaluation.json", node.FILE)
        (self.path / "summary.json").unlink(missing_ok=True)

    def take_over(self, untrained: Path) -> None:
        """Copy another run's evaluation of the untrained model, unless there is one."""
        if self.has(0, "evaluation.json"):
            return
        for name in ("answers.jsonl", "evaluation.json"):  # the last one says that all is there
            write_text(self.stage(0) / name, (untrained / name).read_text(encoding="utf-8"))
        if self.judged(0):
            self.seal(0)

    # checkpoints ----------------------------------------------------------------------------

    def save(self, stage: int, step: int | None, tensors: dict[str, Any], tree: Any) -> None:
        """Write a checkpoint: at a stage's end (step None) or inside it. `stage` counts from 0. One of
        step 0 stays until the stage ends.
        """
        target = self.inside(stage, step) if step is not None else self.end(stage).folder
        before = self.end(stage - 1).folder if stage else None
        with whole_folder(target) as folder:
            shared = before if before and self._is_sound(before) else None
            write_checkpoint(folder, tensors, tree, shared, fingerprint(self.config, stage + 1))
        if step is None:
            self._sound.add(target)
        later = [each for each in self._inner(stage) if each.step]
        self._remove(later[: -self.keep] if step is not None else self._inner())

    def load(self, position: Position) -> tuple[dict[str, Any], Any]:
        return load_checkpoint(position)

    def _is_sound(self, checkpoint: Path) -> bool:
        """Damage must not be shared with later checkpoints."""
        if checkpoint not in self._sound and broken(checkpoint) is None:
            self._sound.add(checkpoint)
        return checkpoint in self._sound

    def latest(self) -> Position | None:
        """The newest checkpoint whose checksums hold; broken ones are named in `notices`."""
        for position in self._checkpoints():
            problem = broken(position.folder)
            if problem is None:
                self._sound.add(position.folder)
                if position.step is None:  # what a killed process had yet to remove
                    self._remove(p for p in self._inner() if p.stage <= position.stage)
                return position
            self.notices.append(
                f"checkpoint {position.folder} is damaged ({problem}); using the one before it"
            )
        return None

    def _checkpoints(self) -> list[Position]:
        """All there are, the newest first."""
        ends = [self.end(index) for index in range(len(self.stages) - 1)]
        found = [*self._inner(), *(end for end in ends if end.folder.exists())]
        return sorted(found, key=lambda p: (p.stage, p.step is None, p.step or 0), reverse=True)

    def end(self, stage: int) -> Position:
        """Where the checkpoint of a finished stage lies. `stage` counts from 0."""
        return Position(stage, None, self.stage(stage + 1) / "checkpoint")

    def inside(self, stage: int, step: int) -> Path:
        """Folder of a checkpoint inside a stage."""
        return self.path / "checkpoints" / f"{stage + 1:03d}-{step:09d}"

    def _inner(self, stage: int | None = None) -> list[Position]:
        folders = sorted(p for p in (self.path / "checkpoints").glob("[0-9]*-[0-9]*") if p.is_dir())
        found = [Position(int(p.name[:3]) - 1, int(p.name[4:]), p) for p in folders]
        return [p for p in found if stage is None or p.stage == stage]

    def _remove(self, positions: Iterable[Position]) -> None:
        for position in positions:
            shutil.rmtree(position.folder, ignore_errors=True)

    # log ------------------------------------------------------------------------------------

    def log(self, record: dict[str, Any]) -> None:
        self._log.append(record)

    def flush_log(self) -> None:
        self._log.flush()

    def read_log(self) -> list[Any]:
        return read_log(self.path)

    def cut_log(self, stage: int, step: int) -> None:
        """Forget log lines from (stage, step) on; earlier ones that are damaged are named in `notices`."""
        self.notices += self._log.cut(stage, step)


def load_checkpoint(position: Position) -> tuple[dict[str, Any], Any]:
    """(tensors by path, plain values) of a checkpoint, as `save` got them."""
    return read_checkpoint(position.folder)


def _damage(stage: Path) -> str | None:
    """What is wrong with the record of a stage that was judged, or None."""
    found = {}
    for file in (stage / name for name in RECORDS):
        try:
            found[file.name] = parse(file) if file.exists() else {}
        except ValueError as error:
            return f"{file} is damaged ({error})."
    answers, digest = stage / "answers.jsonl", found["evaluation.json"].get("answers_checksum")
    if digest is not None and (not answers.exists() or checksum(answers) != digest):
        return f"{answers} is damaged (it has another checksum)."
    return None


def read_run(folder: Path) -> dict[str, Any]:
    """A run as plain values; works while the run is being written. UserError if it is none."""
    folder = Path(folder)
    found: dict[str, Any] = {"folder": str(folder), "config": configuration(folder)}
    for name in ("environment", "summary"):
        found[name] = read_json(file) if (file := folder / f"{name}.json").exists() else {}
    found["log"] = read_log(folder)
    stages = node.stage_folders(folder)
    names = {"evaluations": "evaluation", "costs": "cost", "diagnostics": "diagnostics", "guards": "guard"}
    for key, name in names.items():
        files = (stage / f"{name}.json" for stage in stages)
        found[key] = [read_json(file) for file in files if file.exists()]
    return found


def find_runs(folder: Path) -> list[Path]:
    """Run folders at or below `folder`, sorted; parts of a per-task run are not listed."""
    folder = Path(folder)
    if (folder / "config.json").exists():
        return [folder]
    if not folder.exists():
        raise UserError(f"{folder} does not exist.")
    found = [p for p in _outermost(folder) if "fingerprint" in read_json(p / "config.json")]
    if not found:
        raise UserError(f"no run folder at or below {folder}.")
    return found


def _outermost(folder: Path) -> list[Path]:
    """Folders with a config.json, sorted; nothing below one of them is looked at."""
    if (folder / "config.json").exists():
        return [folder]
    inner = [Path(e.path) for e in os.scandir(folder) if e.is_dir(follow_symlinks=False) and e.name[0] != "."]
    return [found for each in sorted(inner) for found in _outermost(each)]


def stage_names(stages: Iterable[str]) -> list[str]:
    """Names of the folders of all rows."""
    return [UNTRAINED] + [f"{i:03d}-{_safe(name)}" for i, name in enumerate(stages, start=1)]


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:60]
