"""One run is one folder; everything that a report shows is read from here.

    config.json                      the resolved configuration, with its fingerprint
    environment.json                 versions, device, precision
    log.jsonl                        one line per optimiser step
    stages/000-untrained/            evaluation.json, answers.jsonl
    stages/001-<name>/               checkpoint/ (weights and states), cost.json, evaluation.json, ...
                                     guard.json: was it promoted; repair.json: which share was kept
    checkpoints/001-000120/          inside a stage: index of the stage and steps made
    summary.json                     accuracy matrix, metrics, what was visible at test time

Every file appears whole; a checkpoint carries checksums of its parts.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lifelong.errors import UserError
from lifelong.store.files import (
    Lock,
    checksum,
    plain_disk_errors,
    read_json,
    whole_folder,
    write_json,
    write_text,
)

FORMAT = 1
UNTRAINED = "000-untrained"


class Position(NamedTuple):
    """Where a checkpoint stands; `step` is None at a stage's end."""

    stage: int
    step: int | None
    folder: Path


def fingerprint(config: dict[str, Any]) -> str:
    text = json.dumps(config, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RunFolder:
    """The writer's view; one process at a time."""

    def __init__(self, path: Path, config: dict[str, Any], stages: Iterable[str], keep: int = 2) -> None:
        """Open for writing. `keep` is the number of checkpoints kept inside a stage.

        Raises UserError where another process writes or the folder holds another configuration.
        """
        self.path = Path(path)
        self.stages = [UNTRAINED] + [f"{i:03d}-{_safe(name)}" for i, name in enumerate(stages, start=1)]
        self.keep = keep
        self.notices: list[str] = []
        self.lock = Lock(self.path)
        try:
            self._claim(config)
        except BaseException:
            self.lock.release()
            raise
        self._log = None

    def _claim(self, config: dict[str, Any]) -> None:
        mine = {"fingerprint": fingerprint(config), **config, "format": FORMAT}
        file = self.path / "config.json"
        if not file.exists():
            others = [p.name for p in self.path.iterdir() if p.name != "lock" and not p.name.startswith(".")]
            if others:
                raise UserError(
                    f"{self.path} is not empty and is no run folder (it holds {others[0]}); "
                    "choose another `output`."
                )
            write_json(file, mine)
            return
        theirs = _configuration(self.path)
        if theirs["fingerprint"] != mine["fingerprint"]:
            raise UserError(
                f"{self.path} holds a run of another configuration (it differs in "
                f"{', '.join(_differences(theirs, mine)) or 'its format'}). Choose another `output`, or "
                "remove the folder."
            )

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
        self.lock.release()

    # stages ---------------------------------------------------------------------------------

    def stage(self, index: int) -> Path:
        """Folder of a row: 0 is the untrained model, k the k-th stage."""
        return self.path / "stages" / self.stages[index]

    def has(self, index: int, name: str) -> bool:
        return (self.stage(index) / name).exists()

    def write(self, index: int, name: str, value: Any) -> None:
        write_json(self.stage(index) / name, value)

    def discard(self, index: int, *names: str) -> None:
        """Remove files of a row that is made anew."""
        for name in names:
            (self.stage(index) / name).unlink(missing_ok=True)

    def write_summary(self, value: Any) -> None:
        write_json(self.path / "summary.json", value)

    def write_environment(self, value: Any) -> None:
        write_json(self.path / "environment.json", value)

    def write_lines(self, index: int, name: str, records: Iterable[Any]) -> None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_text(self.stage(index) / name, lines)

    # checkpoints ----------------------------------------------------------------------------

    def save(self, stage: int, step: int | None, tensors: dict[str, Any], tree: Any) -> None:
        """Write a checkpoint: at a stage's end (step None) or inside it. `stage` counts from 0. One of
        step 0 stays until the stage ends.
        """
        from safetensors.torch import save_file

        target = self.inside(stage, step) if step is not None else self.stage(stage + 1) / "checkpoint"
        with whole_folder(target) as folder:
            save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "state.safetensors")
            (folder / "state.json").write_text(json.dumps(tree), encoding="utf-8")
            parts = {name: checksum(folder / name) for name in ("state.safetensors", "state.json")}
            (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "parts": parts}))
        later = [each for each in self._inner(stage) if each.step]
        for old in later[: -self.keep] if step is not None else self._inner():
            shutil.rmtree(old.folder, ignore_errors=True)

    def load(self, position: Position) -> tuple[dict[str, Any], Any]:
        return load_checkpoint(position)

    def latest(self) -> Position | None:
        """The newest checkpoint whose checksums hold; broken ones are named in `notices`."""
        ends = [
            Position(i - 1, None, self.stage(i) / "checkpoint")
            for i in range(1, len(self.stages))
            if (self.stage(i) / "checkpoint").exists()
        ]
        done = ends[-1].stage if ends else -1
        for position in [*reversed([p for p in self._inner() if p.stage > done]), *reversed(ends)]:
            problem = broken(position.folder)
            if problem is None:
                return position
            self.notices.append(
                f"checkpoint {position.folder} is damaged ({problem}); using the one before it"
            )
        return None

    def inside(self, stage: int, step: int) -> Path:
        """Folder of a checkpoint inside a stage."""
        return self.path / "checkpoints" / f"{stage + 1:03d}-{step:09d}"

    def _inner(self, stage: int | None = None) -> list[Position]:
        folders = sorted(p for p in (self.path / "checkpoints").glob("[0-9]*-[0-9]*") if p.is_dir())
        found = [Position(int(p.name[:3]) - 1, int(p.name[4:]), p) for p in folders]
        return [p for p in found if stage is None or p.stage == stage]

    # log ------------------------------------------------------------------------------------

    def log(self, record: dict[str, Any]) -> None:
        if self._log is None:
            with plain_disk_errors(self.path):
                self._log = (self.path / "log.jsonl").open("a", encoding="utf-8")
        with plain_disk_errors(self.path):
            self._log.write(json.dumps(record) + "\n")

    def flush_log(self) -> None:
        if self._log is not None:
            with plain_disk_errors(self.path):
                self._log.flush()

    def read_log(self) -> list[Any]:
        return _lines(self.path / "log.jsonl")

    def cut_log(self, stage: int, step: int) -> None:
        """Forget log lines from (stage, step) on: they will be written again."""
        if self._log is not None:  # the file is replaced, so the handle would write into the void
            self._log.close()
            self._log = None
        file = self.path / "log.jsonl"
        if not file.exists():
            return
        kept, lines = [], file.read_text(encoding="utf-8").splitlines()
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a killed process
                continue
            if (record["stage"], record["step"]) < (stage, step):
                kept.append(line + "\n")
        if len(kept) < len(lines):
            write_text(file, "".join(kept))


def load_checkpoint(position: Position) -> tuple[dict[str, Any], Any]:
    """(tensors by path, plain values) of a checkpoint, as `save` got them."""
    from safetensors.torch import load_file

    tensors = load_file(position.folder / "state.safetensors")
    return tensors, read_json(position.folder / "state.json")


def broken(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        parts = read_json(folder / "manifest.json")["parts"]
        for name, digest in parts.items():
            if checksum(folder / name) != digest:
                return f"{name} has another checksum"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def read_run(folder: Path) -> dict[str, Any]:
    """A run as plain values; works while the run is being written. UserError if it is none."""
    folder = Path(folder)
    found: dict[str, Any] = {"folder": str(folder), "config": _configuration(folder)}
    found["environment"] = _optional(folder / "environment.json", {})
    found["summary"] = _optional(folder / "summary.json", {})
    found["log"] = _lines(folder / "log.jsonl")
    stages = sorted((folder / "stages").glob("[0-9]*-*")) if (folder / "stages").exists() else []
    found["evaluations"] = [
        read_json(s / "evaluation.json") for s in stages if (s / "evaluation.json").exists()
    ]
    found["costs"] = [read_json(s / "cost.json") for s in stages if (s / "cost.json").exists()]
    found["diagnostics"] = [
        read_json(s / "diagnostics.json") for s in stages if (s / "diagnostics.json").exists()
    ]
    found["guards"] = [read_json(s / "guard.json") for s in stages if (s / "guard.json").exists()]
    return found


def _configuration(folder: Path) -> dict[str, Any]:
    """config.json of a run; model folders have a file of that name too."""
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is no run folder (it has no config.json).")
    found = read_json(folder / "config.json")
    if "fingerprint" not in found:
        raise UserError(f"{folder} is no run folder: its config.json is that of something else.")
    return found


def find_runs(folder: Path) -> list[Path]:
    """Run folders at or below `folder`, sorted; parts of a per-task run are not listed."""
    folder = Path(folder)
    if (folder / "config.json").exists():
        return [folder]
    if not folder.exists():
        raise UserError(f"{folder} does not exist.")
    found = sorted({p.parent for p in folder.rglob("config.json")})
    runs = [p for p in found if not any(parent in found for parent in p.parents)]
    runs = [p for p in runs if "fingerprint" in read_json(p / "config.json")]
    if not runs:
        raise UserError(f"no run folder at or below {folder}.")
    return runs


def _optional(path: Path, default: Any) -> Any:
    return read_json(path) if path.exists() else default


def _lines(path: Path) -> list[Any]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # being written
            break
    return found


def _differences(theirs: Any, mine: Any, path: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(mine, dict):
        keys = [k for k in {**theirs, **mine} if k != "fingerprint"]
        return [d for k in keys for d in _differences(theirs.get(k), mine.get(k), f"{path}.{k}".lstrip("."))]
    if isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        pairs = enumerate(zip(theirs, mine, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, f"{path}.{i}")]
    return [] if theirs == mine else [path]


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:60]
