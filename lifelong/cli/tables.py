"""Tables for people, JSON for programs; torch is not needed for either."""

import json
from pathlib import Path
from typing import Any

from lifelong.core import discover
from lifelong.errors import UserError, nearest
from lifelong.store.run import read_run

METRICS = ("average_accuracy", "forgetting", "backward_transfer", "learning_accuracy", "general_ability")
HEADS = ("accuracy", "forgetting", "backward", "learned", "general")


def print_runs(folders: list[Path], page: Path, as_json: bool) -> None:
    """One line per run: what was learned, lost and kept, and what it cost."""
    runs = [read_run(folder) for folder in folders]
    if as_json:
        keep = ("folder", "config", "summary", "costs", "evaluations")
        print(json.dumps({"report": str(page), "runs": [{k: run[k] for k in keep} for run in runs]}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method")
    for head in ("seed", *HEADS, "minutes", "memory"):
        table.add_column(head, justify="right")
    for run in runs:
        table.add_row(*_row(run))
    console = Console(width=None if Console().is_terminal else 100)
    console.print(table)
    console.print(
        "accuracy: mean over tasks after the last stage. forgetting: best earlier minus final (less is "
        "better). backward: final minus just learned. learned: just after its stage. general: kept share "
        "of what was never trained.",
        style="dim",
    )
    visible = runs[0]["summary"].get("visible")
    if visible:
        console.print(visible, style="dim")
    console.print(f"report: {page}", soft_wrap=True)


def _row(run: dict[str, Any]) -> list[str]:
    found = {m["id"]: m["value"] for m in run["summary"].get("metrics", [])}
    cells = ["-" if found.get(name) is None else f"{100 * found[name]:.1f}" for name in METRICS]
    seconds = sum(cost["seconds"] + cost.get("evaluation_seconds", 0) for cost in run["costs"])
    peak = max((cost["peak_memory_bytes"] for cost in run["costs"]), default=0)
    memory = f"{peak / 2**30:.2f} GiB"
    return [run["config"]["method_name"], str(run["config"]["seed"]), *cells, f"{seconds / 60:.1f}", memory]


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
        width = max(len(each.id) for each in chosen)
        for each in chosen:
            print(f"{each.id:<{width}}  {each.axis:<10}  {each.summary}")


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
             f"cost      {each.cost or '-'}", "", "settings"]  # fmt: skip
    lines += [f"  {f.name} = {f.default}    {f.note}" for f in each.fields] or ["  none"]
    lines += ["", "verified", *(f"  {fact}" for fact in each.verified or ("-",))]
    return "\n".join(lines)
