"""Tables for people, JSON for programs; torch is not needed for either."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.core import discover
from lifelong.errors import UserError, nearest
from lifelong.store.run import read_run
from lifelong.streams import plain_yaml

if TYPE_CHECKING:
    from lifelong.report.compare import Scale

QUESTIONS = {
    "objectives": "what a step minimises",
    "tuners": "where the update lives",
    "penalties": "what holds the past",
    "replay": "what is seen again",
    "mixing": "in which proportions rows are drawn",
    "mergers": "what happens between stages",
    "analytic": "what has a closed form",
    "unlearning": "how rows are forgotten",
    "schedules": "how fast",
    "diagnostics": "what changed inside",
    "metrics": "how a model is judged",
    "recipes": "compositions under one name",
}
METRICS = ("average_accuracy", "forgetting", "backward_transfer", "learning_accuracy", "general_ability")
HEADS = ("{word}", "forgetting", "backward", "learned", "general")  # `Scale` says what is in braces
MEANINGS = (
    "mean over the tasks after the last stage{unit}",
    "mean drop of a task from its best earlier score{apart}; less is better",
    "mean change of a task since its own stage{apart}",
    "mean over the tasks, each right after its own stage{unit}",
    "share kept of what was never trained, in %",
)


def print_runs(folders: list[Path], page: Path, as_json: bool) -> None:
    """One line per run: what was learned, lost and kept, and what it cost."""
    runs = [read_run(folder) for folder in folders]
    if as_json:
        keep = ("folder", "config", "summary", "costs", "evaluations", "diagnostics", "guards")
        print(json.dumps({"report": str(page), "runs": [{k: run[k] for k in keep} for run in runs]}))
        return
    from rich.console import Console
    from rich.table import Table

    from lifelong.report.compare import scale_of

    scale = scale_of(runs)
    unit, apart = (f", in {each}" if each else "" for each in (scale.unit, scale.apart))
    told = {"word": scale.word, "unit": unit, "apart": apart}
    heads, meanings = ([text.format(**told) for text in texts] for texts in (HEADS, MEANINGS))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("method", overflow="fold")
    for head in ("seed", *heads, "minutes", "GiB"):
        table.add_column(head, justify="right")
    for run in runs:
        table.add_row(*_row(run, scale))
    console = Console(width=None if Console().is_terminal else 100, highlight=False)
    console.print(table)
    console.print()
    width = max(map(len, heads))
    for head, meaning in zip(heads, meanings, strict=True):
        console.print(f"{head:<{width}}  {meaning}", style="dim", soft_wrap=True)
    for text in dict.fromkeys(run["summary"]["visible"] for run in runs if run["summary"]):
        console.print(text, style="dim")
    for run in runs:
        _print_guards(run, console)
    for note in [note for run in runs for note in _notes(run)]:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    console.print(f"report: {page}", soft_wrap=True, markup=False)


def _print_guards(run: dict[str, Any], console: Any) -> None:
    """What the last stage lost, and every earlier one that was not promoted or was repaired."""
    from rich.table import Table

    from lifelong.report.sections import GUARD_HEADS, guards

    found = guards(run)
    for each in [g for g in found[:-1] if g["repair"] or not g["promoted"]] + found[-1:]:
        verdict = "promoted" if each["promoted"] else "NOT PROMOTED"
        console.print(
            f"\nbudget for forgetting, stage {each['stage']}: {verdict}", style="bold", soft_wrap=True
        )
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for number, head in enumerate(GUARD_HEADS):
            text = f"{head} ({each['confidence']} %)" if head == "Interval" else head
            table.add_column(text.lower(), justify="right" if 2 <= number <= 8 else "left", overflow="fold")
        for row in each["rows"]:
            table.add_row(*row)
        console.print(table, markup=False) if each["rows"] else console.print("nothing to compare with yet")
        if each["repair"]:
            console.print(each["repair"], soft_wrap=True, markup=False)


def _notes(run: dict[str, Any]) -> list[str]:
    """What a reader of the table must know: rows that were cut, stages still to come."""
    name = f"{run['config']['method_name']}, seed {run['config']['seed']}"
    found = []
    stages = {each["name"]: each["num_rows"] for each in run["config"]["stages"]}
    for cost in run["costs"]:
        if cost.get("truncated_rows"):
            rows = stages.get(cost["name"], sum(stages.values()))
            found.append(
                f"{name}, stage {cost['name']}: {cost['truncated_rows']} of {rows} training rows are longer "
                "than the model's window and were cut to fit."
            )
    if not run["summary"].get("finished"):
        found.append(
            f"{name} is not finished; the command that began it goes on, and the figures change then."
        )
    return found


def _row(run: dict[str, Any], scale: "Scale") -> list[str]:
    found = {m["id"]: m["value"] for m in run["summary"].get("metrics", [])}
    cells = [_figure(found.get(name), scale.percent or name == "general_ability") for name in METRICS]
    seconds = sum(cost["seconds"] + cost.get("evaluation_seconds", 0) for cost in run["costs"])
    peak = max((cost["peak_memory_bytes"] for cost in run["costs"]), default=0)
    memory = f"{peak / 2**30:.2f}"
    return [run["config"]["method_name"], str(run["config"]["seed"]), *cells, f"{seconds / 60:.1f}", memory]


def _figure(value: float | None, percent: bool) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if percent else f"{value:.3f}"


def print_sets(sets: list[dict[str, Any]], as_json: bool) -> None:
    """Figures of evaluation sets, with 95 % intervals."""
    if as_json:
        print(json.dumps(sets))
        return
    for each in sets:
        factor = 100 if each["unit"] == "%" else 1
        low, value, high = (factor * each[k] for k in ("low", "value", "high"))
        print(f"{each['name']:<24} {each['metric']:<12} {value:8.2f}{each['unit']:<2} "
              f"[{low:.2f}, {high:.2f}]  {each['count']} rows")  # fmt: skip


def print_methods(name: str | None, axis: str | None, as_json: bool) -> None:
    """All methods, those of an axis, or the page of one."""
    if axis is not None and axis not in discover.AXES:
        raise UserError(f"unknown axis `{axis}`.{nearest(axis, discover.AXES)}")
    if name is not None:
        chosen = [discover.describe(discover.axis_of(name), name)]
    else:
        chosen = [each for each in discover.describe_all() if axis in (None, each.axis)]
    if as_json:
        print(json.dumps([as_plain(each) for each in chosen]))
    elif name is not None:
        print(method_page(chosen[0]))
    else:
        _print_list(chosen)


def _print_list(chosen: list[discover.Description]) -> None:
    width = max(len(each.id) for each in chosen)
    for axis in dict.fromkeys(each.axis for each in chosen):
        print(f"{axis}: {QUESTIONS[axis]}")
        for each in chosen:
            if each.axis == axis:
                print(f"  {each.id:<{width}}  {each.summary}")
        print()
    print("`lifelong methods NAME` shows the paper, the cost, all settings, and what has been verified.")


def as_plain(each: discover.Description) -> dict[str, Any]:
    fields = [
        {"name": f.name, "type": f.annotation, "default": f.default, "note": f.note} for f in each.fields
    ]
    return {
        "id": each.id, "axis": each.axis, "summary": each.summary, "paper": each.paper, "cost": each.cost,
        "verified": list(each.verified), "settings": fields,
    }  # fmt: skip


def method_page(each: discover.Description) -> str:
    """The help page of one method, from its source."""
    lines = [f"{each.id} ({each.axis})", "", each.document, "", f"paper     {each.paper or '-'}",
             f"cost      {each.cost or '-'}", ""]  # fmt: skip
    lines += _parts(each.id) if each.axis == "recipes" else _settings(each)
    lines += ["", "verified", *(f"  {fact}" for fact in each.verified or ("-",))]
    return "\n".join(lines)


def _parts(name: str) -> list[str]:
    """The methods of a recipe, and how to change one."""
    content = plain_yaml.read(discover.PACKAGE / "recipes" / f"{name}.yaml")
    parts = [each if isinstance(each, dict) else {each: None} for each in content["methods"]]
    found = [(key, json.dumps(own or {}).replace('"', "")) for each in parts for key, own in each.items()]
    change = f"method={{{name}: {{{found[0][0]}: {{setting: value}}}}}}"
    return ["made of", *(f"  {key}: {own}" for key, own in found), f"  to change a part: {change}"]


def _settings(each: discover.Description) -> list[str]:
    settings = [(f"{f.name} = {f.default}", limits(f.annotation), f.note) for f in each.fields]
    widths = [max((len(row[i]) for row in settings), default=0) for i in (0, 1)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in settings]
    return ["settings", *(lines or ["  none"])]


def limits(annotation: str) -> str:
    """The allowed values of a setting, from the source of its annotation: `>= 0`, `in [0, 1)`."""
    range_ = re.search(r"Range\((.*)\)\]", annotation)
    if range_ is None:
        options = re.search(r"Literal\[(.*)\]", annotation)
        return f"one of {options[1]}" if options else ""
    values = [part.strip() for part in range_[1].split(",")]
    plain = [each for each in values if "=" not in each]
    low_open, high_open = ("open_low=True" in values), ("open_high=True" in values)
    if len(plain) == 2:
        return f"in {'(' if low_open else '['}{plain[0]}, {plain[1]}{')' if high_open else ']'}"
    return f"{'>' if low_open else '>='} {plain[0]}" if plain else ""
