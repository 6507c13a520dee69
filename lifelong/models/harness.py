"""Public benchmarks of language models, run by lm-eval on a model that is loaded here.

lm-eval (Gao et al., doi:10.5281/zenodo.10256836) tokenises, asks and scores by itself, so that its
figures are those that others publish. Our own likelihoods of labels agree with it item by item; a test
says how closely. Differences in what is asked: lm-eval tokenises a prompt together with its
continuation and splits afterwards, and a label's likelihood has no end token (the objective
`classification` has one, unless `end_token` is false).
"""

import logging
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from lifelong.core.labelled import judging
from lifelong.core.model import Model
from lifelong.errors import UserError

NAME = "lm-eval"
ROWS_AT_ONCE = 8
NOT_FIGURES = ("alias", "name", "sample_len", "sample_count")


class Tasks(NamedTuple):
    """Tasks with their data, and what lm-eval found them with."""

    loaded: list[Any]
    manager: Any


def tasks_of(names: Sequence[str], folders: Sequence[Path] = ()) -> Tasks:
    """Tasks by name, group or pattern such as `mmlu_*`; `folders` hold more of them as YAML. UserError for
    one that there is not, or whose data cannot be had.
    """
    with redirect_stdout(sys.stderr):  # it prints
        manager = _manager(folders)
        return Tasks(_loaded(manager, chosen(names, manager.all_tasks)), manager)


def evaluate(
    model: Model, tasks: Tasks, *, limit: int | None = None, rows_at_once: int = ROWS_AT_ONCE
) -> dict[str, Any]:
    """What lm-eval returns, with every sample. `limit` takes the first rows of each task."""
    check(model)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with redirect_stdout(sys.stderr), judging(model.network):
        asked = HFLM(
            pretrained=model.network, tokenizer=model.processor, max_length=model.window,
            backend="seq2seq" if model.kind == "encoder_decoder" else "causal", batch_size=rows_at_once,
        )  # fmt: skip
        result = simple_evaluate(asked, tasks=tasks.loaded, task_manager=tasks.manager, limit=limit)
    return result | {"lm_eval_version": version("lm_eval")}


def figures(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry per task and metric; `stderr` is None where lm-eval gives none."""
    found = []
    for task, values in (result["results"] | result.get("groups", {})).items():
        for key, value in values.items():
            metric, _, sieve = key.partition(",")
            if key in NOT_FIGURES or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = values.get(f"{metric}_stderr,{sieve}")
            found.append({
                "task": task, "metric": metric, "filter": sieve, "value": value,
                "stderr": error if isinstance(error, (int, float)) else None,
                "rows": values.get("sample_len", result["n-samples"].get(task, {}).get("effective")),
                "shots": result["n-shot"].get(task),
                "better": "higher" if result["higher_is_better"].get(task, {}).get(metric, True) else "lower",
            })  # fmt: skip
    return found


def check(model: Model) -> None:
    """Raise UserError for a model that lm-eval cannot ask."""
    if model.kind not in ("decoder", "encoder_decoder"):
        raise UserError(
            f"--harness {NAME} asks language models; {model.name} is of kind {model.kind}. Judge it on a "
            "stream file instead."
        )
    if model.answering is not None:
        raise UserError(
            f"{model.name} picks a part of itself for each row, which it must see before it is asked; {NAME} "
            "does not show it. Judge it on a stream file instead."
        )


def chosen(tasks: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that are meant. UserError for one that fits none."""
    from lm_eval.utils import pattern_match

    found: dict[str, None] = {}
    for task in tasks:
        fits = pattern_match([task], known)
        if not fits:
            close = get_close_matches(task, known, n=1, cutoff=0.5)
            near = f"Did you mean `{close[0]}`?" if close else "`lm-eval ls tasks` lists them."
            raise UserError(f"--tasks: {NAME} knows no task `{task}`. {near}")
        found |= dict.fromkeys(fits)
    return list(found)


def _manager(folders: Sequence[Path]) -> Any:
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"--include-path: no folder {folder}.")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError(f"--harness {NAME} needs the package: pip install 'lifelong[harness]'") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=[str(folder) for folder in folders])


def _loaded(known: Any, names: list[str]) -> list[Any]:
    """The tasks with their data."""
    try:
        found = known.load(names)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:240]
        raise UserError(f"--tasks: the data of {', '.join(names)} cannot be loaded ({told}).") from None
    inner = {child for children in found["group_map"].values() for child in children}
    every = found["groups"] | found["tasks"]
    return [each for name, each in every.items() if name not in inner]
