"""config.json of a run: what a run folder was made with, and what of it may change.

A stage that has begun keeps its configuration. Stages that have not begun may change in any way, and
stages and general sets may be added. A stage that erases may come later too: it splits the evaluation
sets of the stage that it erases from.
"""

from pathlib import Path
from typing import Any

from lifelong.errors import UserError
from lifelong.store.content import digest
from lifelong.store.files import read_json

FILE = "config.json"
FINGERPRINT = 16  # hex digits
Config = dict[str, Any]


def configuration(folder: Path) -> Config:
    """config.json of a run; model folders have a file of that name too."""
    if not (folder / FILE).exists():
        raise UserError(f"{folder} is no run folder (it has no {FILE}).")
    found = read_json(folder / FILE)
    if "fingerprint" not in found:
        raise UserError(f"{folder} is no run folder: its {FILE} is that of something else.")
    return found


def fingerprint(config: Config, begun: int | None = None) -> str:
    """Of all that a configuration says, or of what the weights after `begun` stages come from."""
    if begun is not None:
        config = _binding(config, begun, general=0, split=_erased_from(config, begun))
    return digest(config)[:FINGERPRINT]


def conflicts(theirs: Config, mine: Config, begun: int) -> list[str]:
    """What differs and may not, once `begun` stages have: all but later stages, further general sets, the
    run's name, and where the same base weights lie.
    """
    general = len(theirs.get("general", ()))
    split = _erased_from(theirs, begun) | _erased_from(mine, begun)
    return _differences(*(_binding(config, begun, general, split) for config in (theirs, mine)))


def judges_untrained(config: Config) -> Any:
    """What the evaluation of the untrained model depends on."""
    sets = [(stage.get("evals"), stage.get("labels")) for stage in config["stages"]]
    return [config.get(key) for key in ("model", "precision", "candidates", "general")] + [sets]


def _binding(config: Config, begun: int, general: int, split: set[str]) -> Config:
    """What may not change any more."""
    kept = {key: value for key, value in config.items() if key not in ("name", "fingerprint")}
    kept["general"] = config.get("general", [])[:general]
    kept["stages"] = [
        {k: v for k, v in stage.items() if stage["name"] not in split or k not in ("evals", "num_eval_rows")}
        for stage in config.get("stages", [])[:begun]
    ]
    if kept.get("model", {}).get("fingerprint"):
        kept["model"] = {"fingerprint": kept["model"]["fingerprint"]}
    return kept


def _erased_from(config: Config, begun: int) -> set[str]:
    """Stages that lose rows to one that has not begun."""
    later = (stage.get("erases") for stage in config.get("stages", [])[begun:])
    return {erases["stage"] for erases in later if erases}


def _differences(theirs: Any, mine: Any, path: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(mine, dict):
        keys = {**theirs, **mine}
        return [d for k in keys for d in _differences(theirs.get(k), mine.get(k), f"{path}.{k}".lstrip("."))]
    if isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        pairs = enumerate(zip(theirs, mine, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, f"{path}.{i}")]
    return [] if theirs == mine else [path]
