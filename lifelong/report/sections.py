"""What the page shows of one run, as plain values for the template."""

import math
from typing import Any

import yaml

from lifelong.report import charts, formats
from lifelong.report.charts import Line, Plot
from lifelong.report.colours import step_of
from lifelong.report.compare import RATIOS, Run, finished, is_percent, metrics, num_rows

LOSS_POINTS = 400  # per curve
ORDER = ("average_accuracy", "forgetting", "worst_forgetting", "backward_transfer", "forward_transfer")
DIFFERENCES = ("forgetting", "worst_forgetting", "backward_transfer", "forward_transfer", "erasure_gap")


def figures(run: Run) -> list[dict[str, str]]:
    """Every metric that the run defines, best known first, with its definition."""
    percent = is_percent(run)
    found = [each for each in metrics(run).values() if each["value"] is not None]
    found.sort(key=lambda each: ORDER.index(each["id"]) if each["id"] in ORDER else len(ORDER))
    return [
        {
            "title": each["title"],
            "value": formats.score(each["value"], percent or each["id"] in RATIOS),
            "unit": unit_of(each["id"], percent),
            "formula": each["formula"],
        }
        for each in found
    ]


def undefined(run: Run) -> list[str]:
    return [each["title"] for each in metrics(run).values() if each["value"] is None]


def unit_of(metric: str, percent: bool) -> str:
    if metric in RATIOS:
        return "%"
    return ("points" if metric in DIFFERENCES else "%") if percent else ""


def heat_map(run: Run) -> dict[str, Any] | None:
    """The accuracy matrix, untrained row first; shares are coloured over [0, 1], others over what
    the run reached.
    """
    matrix = run["summary"].get("matrix")
    if not matrix:
        return None
    rows = [matrix["untrained"], *matrix["values"]] if matrix["untrained"] else list(matrix["values"])
    known = [cell for row in rows for cell in row if cell is not None]
    percent = is_percent(run)
    low, high = (0.0, 1.0) if percent else (min(known, default=0.0), max(known, default=1.0))
    first = 0 if matrix["untrained"] else 1
    since = matrix["erased"] or [None] * len(matrix["columns"])

    def cell(row: int, column: int, value: float | None) -> dict[str, Any]:
        share = 0.5 if value is None or high == low else (value - low) / (high - low)
        return {
            "text": formats.score(value, percent),
            "step": None if value is None else step_of(share),
            "taught": matrix["taught"][column] + 1 == row,
            "erased": since[column] is not None and since[column] < row,
        }

    names = [f"{k} {row['stage']}" if k else "untrained" for k, row in enumerate(run["evaluations"])]
    return {
        "columns": matrix["columns"],
        "percent": percent,
        "erases": any(each is not None for each in since),
        "rows": [
            {"name": names[k], "cells": [cell(k, i, value) for i, value in enumerate(row)]}
            for k, row in enumerate(rows, start=first)
        ],
    }


def task_curves(run: Run) -> list[Plot]:
    """One panel per task: its figure before training and after every stage."""
    matrix = run["summary"].get("matrix") or {"columns": (), "taught": ()}
    taught = dict(zip(matrix["columns"], matrix["taught"], strict=True))
    return [_curve(run, name, False, taught.get(name)) for name in _set_names(run, general=False)]


def general_curves(run: Run) -> list[Plot]:
    return [_curve(run, name, True, None) for name in _set_names(run, general=True)]


def _set_names(run: Run, general: bool) -> list[str]:
    names = [s["name"] for row in run["evaluations"] for s in row["sets"] if s["general"] == general]
    return list(dict.fromkeys(names))


def _curve(run: Run, name: str, general: bool, taught: int | None) -> Plot:
    found = [
        (k, s)
        for k, row in enumerate(run["evaluations"])
        for s in row["sets"]
        if s["name"] == name and s["general"] == general and s["value"] is not None
    ]
    percent = bool(found) and found[0][1]["unit"] == "%"
    points = tuple((float(k), s["value"]) for k, s in found)
    bands = tuple(
        (float(k), s["low"], s["high"]) for k, s in found if s["low"] is not None and s["high"] is not None
    )
    values = [y for _, y in points] + [y for _, *ends in bands for y in ends] or [0.0]
    low, high = (0.0, 1.0) if percent else charts.nice_range(values)[:2]
    num_stages = num_rows(run)
    shown = [f"{formats.score(y, True)} %" if percent else formats.number(y, 2) for _, y in points]
    down = any(s["benefit"] is not None and s["benefit"] != s["value"] for _, s in found)  # as for perplexity
    told = ", ".join(
        f"{'untrained' if not k else f'stage {k:.0f}'} {v}" for (k, _), v in zip(points, shown, strict=True)
    )
    return Plot(
        title=name,
        label=f"{name} over the stream: {told}",
        lines=(Line(points=points, kind="main"),),
        dots=points,
        bands=bands if len(bands) == len(points) else (),
        low=low,
        high=high,
        span=(0.0, float(max(num_stages, 1))),
        ticks=("100 %", "0") if percent else (formats.number(high, 2), formats.number(low, 2)),
        note=shown[-1] if shown else formats.DASH,
        less_is_better=down,
        boundaries=tuple(float(k) for k in range(1, num_stages)),
        highlight=(float(taught), taught + 1.0) if taught is not None and taught < num_stages else None,
    )


def loss_curves(run: Run) -> list[Plot]:
    """The loss, then every penalty that was ever above zero."""
    log, names = run["log"], {}
    for entry in log:
        for name in entry.get("penalties") or {}:
            names[name] = None
    plots = [_loss(run, "training loss", [entry.get("loss") for entry in log])]
    plots += [_loss(run, f"penalty: {n}", [(e.get("penalties") or {}).get(n) for e in log]) for n in names]
    return [plot for plot in plots if plot is not None]


def _loss(run: Run, title: str, values: list[float | None]) -> Plot | None:
    """Raw values thinned to LOSS_POINTS, and a moving average that begins afresh at every stage."""
    pieces = _by_stage(run["log"])
    total = sum(len(piece) for _, piece in pieces)
    raw, main, edges, at = [], [], [], 0
    for _, indices in pieces:
        known = [(float(at + i), values[k]) for i, k in enumerate(indices) if _is_number(values[k])]
        share = max(2, int(LOSS_POINTS * len(indices) / total))
        raw.append(charts.thin(known, share))
        even = charts.smooth([y for _, y in known], max(2, len(known) // 25))
        main.append(charts.thin([(x, y) for (x, _), y in zip(known, even, strict=True)], share))
        at += len(indices)
        edges.append(float(at))
    ys = sorted(y for line in raw for _, y in line)
    if not ys or ys[-1] == ys[0] == 0.0:
        return None
    top = max([ys[int(0.98 * (len(ys) - 1))], *(y for line in main for _, y in line)]) * 1.05 or 1.0
    bottom = min(0.0, ys[0])
    last = next(line[-1][1] for line in reversed(main) if line)
    return Plot(
        title=title,
        label=f"{title}, {total} steps, {len(pieces)} stages; at the end {formats.number(last, 3)}",
        lines=(
            *(Line(points=tuple(line), kind="raw") for line in raw),
            *(Line(points=tuple(line), kind="main") for line in main),
        ),
        low=bottom,
        high=top,
        span=(0.0, float(max(total - 1, 1))),
        ticks=(formats.number(top, 2), formats.number(bottom, 0 if bottom == 0 else 2)),
        boundaries=tuple(edges[:-1]),
        note=f"{formats.number(last, 3)} at the end",
        sections=tuple((str(name), len(indices) / total) for name, indices in pieces),
    )


def _by_stage(log: list[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    """(number of the stage from 1, indices of its entries), in the order of the log."""
    pieces: list[tuple[Any, list[int]]] = []
    for index, entry in enumerate(log):
        if not pieces or pieces[-1][0] != entry["stage"]:
            pieces.append((entry["stage"], []))
        pieces[-1][1].append(index)
    return [(str(number), indices) for number, (_, indices) in enumerate(pieces, start=1)]


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def costs(run: Run) -> dict[str, Any]:
    """One line per finished stage, and the sums (peaks where a sum means nothing)."""
    rows, entries = [], run["costs"]
    for number, each in enumerate(entries, start=1):
        rows.append([f"{number} {each['name']}", *_cost(each)])
    total = {
        key: sum(each.get(key) or 0 for each in entries) for key in ("seconds", "evaluation_seconds", "steps")
    }
    total |= {
        key: sum(each.get(key) or 0 for each in entries) for key in ("tokens", "pad_tokens", "truncated_rows")
    }
    total["tokens_per_second"] = total["tokens"] / total["seconds"] if total["seconds"] else None
    for key in ("peak_memory_bytes", "state_bytes", "memory_bytes"):
        total[key] = max((each[key] for each in entries if each.get(key) is not None), default=None)
    return {"rows": rows, "total": _cost(total)}


def _cost(each: dict[str, Any]) -> list[str]:
    positions = (each.get("tokens") or 0) + (each.get("pad_tokens") or 0)
    share = each["pad_tokens"] / positions if positions and each.get("pad_tokens") is not None else None
    return [
        formats.duration(each.get("seconds")),
        formats.duration(each.get("evaluation_seconds")),
        formats.number(each.get("steps"), 0),
        formats.number(each.get("truncated_rows"), 0),
        formats.count(each.get("tokens")),
        formats.score(share, True),
        formats.count(each.get("tokens_per_second")),
        formats.size(each.get("peak_memory_bytes")),
        formats.size(each.get("state_bytes")),
        formats.size(each.get("memory_bytes")),
    ]


def status(run: Run) -> str:
    """Empty for a finished run."""
    done, planned = max(len(run["evaluations"]) - 1, 0), num_rows(run)
    return "" if finished(run) else f"unfinished: {done} of {planned} stages"


def settings(run: Run) -> str:
    return yaml.safe_dump(run["config"], sort_keys=False, allow_unicode=True, width=100)


def environment(run: Run) -> str:
    return yaml.safe_dump(run["environment"], sort_keys=False, allow_unicode=True, width=100)


def diagnostics(run: Run) -> list[dict[str, Any]]:
    """One table per diagnostic: a line for every stage, a column for every figure."""
    found: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate(run.get("diagnostics", ()), start=1):
        for each in stage["diagnostics"]:
            empty = {"title": each["title"], "better": each["better"], "lines": []}
            table = found.setdefault(each["id"], empty)
            table["lines"].append((f"{number} {stage['stage']}", each["figures"]))
    for table in found.values():
        names = list(dict.fromkeys(name for _, figures in table["lines"] for name in figures))
        table["columns"] = [name.replace("_", " ") for name in names]
        table["rows"] = [
            [stage, *(_figure(figures.get(name)) for name in names)] for stage, figures in table["lines"]
        ]
    return list(found.values())


def _figure(value: float | None) -> str:
    whole = value is not None and math.isfinite(value) and value == int(value)
    return formats.number(value, 0 if whole else 3)


GUARD_HEADS = (
    "Set", "Compared with", "Before", "After", "Drop", "Interval", "Allowed", "Rows", "Needed", "Verdict",
)  # fmt: skip


def guards(run: Run) -> list[dict[str, Any]]:
    """One table per stage: what its guard sets lost, and whether it was promoted."""
    return [
        {
            "stage": each["stage"],
            "promoted": each["promoted"],
            "confidence": formats.number(100 * each["settings"]["confidence"], 0),
            "rows": [_guard_row(entry) for entry in each["sets"]],
            "repair": _repair(each["repair"]) if each["repair"] else "",
        }
        for each in run.get("guards", ())
    ]


def _guard_row(entry: dict[str, Any]) -> list[str]:
    share = entry["unit"] == "%"
    low, high = formats.number(_hundred(entry["low"])), formats.number(_hundred(entry["high"]))
    return [
        entry["name"],
        entry["reference"],
        _value(entry["before"], entry["unit"]),
        _value(entry["after"], entry["unit"]),
        formats.number(_hundred(entry["drop"])) + (" points" if share else " %"),
        f"{low} to {high}",
        formats.number(_hundred(entry["allowed"])),
        formats.number(entry["count"], 0),
        formats.number(entry["rows_needed"], 0),
        entry["verdict"],
    ]


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _value(value: float, unit: str) -> str:
    return f"{formats.score(value, True)} %" if unit == "%" else formats.number(value, 2)


def _repair(found: dict[str, Any]) -> str:
    """What a repair kept, and what it cost."""
    lost = ", ".join(each["name"] for each in found["refused"])
    cost = f"{len(found['trials'])} trials, {found['num_sets_judged']} sets judged, "
    cost += formats.duration(found["seconds"])
    if not any(found["shares"]):
        return (
            f"The whole update broke {lost}, and no share of it that was tried keeps every budget ({cost})."
        )
    kept = ", ".join(formats.number(100 * share) for share in found["shares"])
    new = "; ".join(
        f"{each['name']} {_value(each['value'], each['unit'])} with the whole update, "
        f"{_value(each['after'], each['unit'])} with this share"
        for each in found["new"]
    )
    return f"The whole update broke {lost}. Repaired: {kept} % of it is kept ({cost}). What it taught: {new}."
