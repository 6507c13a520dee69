"""One self-contained HTML page from run folders. No script, no network, no torch.

The page reads on a phone, in the dark and on paper; every text that comes from a run is escaped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lifelong.report import charts, colours, formats, sections
from lifelong.report.compare import Group, Run, Spread, columns, grouped, is_percent
from lifelong.store.files import write_text
from lifelong.store.run import read_run

HEADLINE = (
    ("average_accuracy", "Average accuracy", "at the end"),
    ("forgetting", "Forgetting", "less is better"),
    ("backward_transfer", "Backward transfer", "on old tasks"),
    ("learning_accuracy", "Learning accuracy", "when taught"),
    ("general_ability", "General ability", "kept"),
)


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page on the runs in `folders` to `output`."""
    output = Path(output)
    write_text(output, build_report([read_run(folder) for folder in folders]))
    return output


def build_report(runs: Sequence[Run]) -> str:
    """The page as text; `runs` as `lifelong.store.run.read_run` gives them."""
    assert runs, "a report needs at least one run"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    groups = grouped(runs)
    percent = all(is_percent(run) for run in runs)
    told = sorted(groups, key=lambda group: group.bound != "")  # bounds after the methods
    return environment.get_template("report.html.jinja").render(
        title=_title(runs),
        facts=_facts(runs),
        story=_story(groups, percent),
        warnings=_warnings(groups),
        race=_race(groups, percent),
        heads=HEADLINE,
        units=_units(percent),
        percent=percent,
        table=[_line(group, percent) for group in groups],
        seeds=any(group.num_seeds > 1 for group in groups),
        visible=_visible(runs),
        several=len(runs) > 1,
        runs=[_run(run, group) for group in told for run in group.runs],
        formulas=_formulas(runs),
        guard_heads=sections.GUARD_HEADS,
        light=colours.ramp(colours.LIGHT),
        dark=colours.ramp(colours.DARK),
    )


def _run(run: Run, group: Group) -> dict[str, Any]:
    return {
        "label": group.label,
        "bound": group.bound,
        "seed": run["config"]["seed"],
        "folder": run["folder"],
        "status": sections.status(run),
        "visible": run["summary"].get("visible", ""),
        "figures": sections.figures(run),
        "undefined": sections.undefined(run),
        "heat": sections.heat_map(run),
        "tasks": sections.task_curves(run),
        "general": sections.general_curves(run),
        "losses": sections.loss_curves(run),
        "costs": sections.costs(run),
        "diagnostics": sections.diagnostics(run),
        "guards": sections.guards(run),
        "settings": sections.settings(run),
        "environment": sections.environment(run),
    }


def _title(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(run["config"]["name"] for run in runs))
    return names[0] if len(names) == 1 else f"{len(runs)} runs"


def _facts(runs: Sequence[Run]) -> list[str]:
    models = dict.fromkeys(
        f"{run['config']['model']['name']} ({formats.count(run['config']['model']['parameters'])} parameters)"
        for run in runs
    )
    tasks = max(len(columns(run)) for run in runs)
    seeds = {run["config"]["seed"] for run in runs}
    return [
        *models,
        f"{tasks} task{'s' * (tasks != 1)}",
        f"{len(runs)} run{'s' * (len(runs) != 1)}",
        f"{len(seeds)} seed{'s' * (len(seeds) != 1)}",
    ]


def _story(groups: Sequence[Group], percent: bool) -> Markup:
    """What the comparison says, in two sentences."""
    done = [g for g in groups if g.finished and g.metric("average_accuracy")]
    ours = [g for g in done if not g.bound] or done
    if not ours:
        return Markup("No run has ended yet: the figures below are over the tasks taught so far.")
    best = ours[0]

    def end(group: Group) -> str:
        return formats.score(group.metric("average_accuracy").mean, percent) + "\u00a0%" * percent

    lower = next((g for g in done if g.bound == "lower" and g is not best), None)
    upper = next((g for g in done if g.bound == "upper" and g is not best), None)
    others = [f"plain training in sequence at {end(lower)}"] if lower else []
    others += [f"joint training on all tasks at once at {end(upper)}"] if upper else []
    text = Markup("<strong>{}</strong> ends at <strong>{}</strong> on average over all tasks").format(
        best.label, end(best)
    )
    text += "; " * bool(others) + " and ".join(others) + "."
    lost = best.metric("forgetting")
    if lost is None:
        return text
    text += f" Earlier tasks end {_lost(lost.mean, percent)} their best"
    plain = lower.metric("forgetting") if lower else None
    return text + (f"; with plain training, {_lost(plain.mean, percent)} it." if plain else ".")


def _lost(value: float, percent: bool) -> str:
    side = "below" if value >= 0 else "above"
    unit = "\u00a0points" if percent else ""
    return f"{formats.score(abs(value), percent)}{unit} {side}"


def _warnings(groups: Sequence[Group]) -> list[str]:
    found = []
    bounds = {group.bound for group in groups}
    if "lower" not in bounds:
        found.append("No naive sequential run is among these: what plain training would lose is not shown.")
    if "upper" not in bounds:
        found.append(
            "No joint run is among these: what training on all tasks at once would reach is not shown."
        )
    if len({frozenset(columns(run)) for g in groups for run in g.runs if columns(run)}) > 1:
        found.append("The runs were not judged on the same tasks: their averages cannot be compared.")
    if len({run["config"]["model"]["fingerprint"] for g in groups for run in g.runs}) > 1:
        found.append("The runs did not start from the same model: differences are not due to methods alone.")
    if any(not group.finished for group in groups):
        found.append("Runs marked unfinished are averaged over the tasks taught so far.")
    return found


def _race(groups: Sequence[Group], percent: bool) -> dict[str, Any] | None:
    """Rows of the comparison chart; places in percent of the axis."""
    rows = [(g, g.metric("learning_accuracy"), g.metric("average_accuracy")) for g in groups]
    rows = [(g, start, end) for g, start, end in rows if end is not None]
    if not rows:
        return None
    values = [x for _, start, end in rows for x in (end.low, end.high, start.mean if start else end.mean)]
    low, high, step = charts.nice_range(values, (0.0, 1.0) if percent else None)

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    marks = [place(end.mean) for g, _, end in rows if g.bound]
    ticks = [low + k * step for k in range(round((high - low) / step) + 1)]

    def shown(spread: Spread | None) -> str:
        return formats.DASH if spread is None else formats.score(spread.mean, percent) + "\u00a0%" * percent

    return {
        "ticks": [(place(t), formats.number(100 * t, 0) if percent else formats.number(t, 2)) for t in ticks],
        "rows": [
            {
                "label": g.label,
                "bound": g.bound,
                "status": "" if g.finished else sections.status(g.runs[0]),
                "end": shown(end),
                "svg": charts.track(
                    label=f"{g.label}: {shown(start)} when taught, {shown(end)} at the end",
                    start=place(start.mean) if start else None,
                    end=place(end.mean),
                    spread=(place(end.low), place(end.high)) if g.num_seeds > 1 else None,
                    marks=marks,
                    bound=bool(g.bound),
                ),
            }
            for g, start, end in rows
        ],
    }


def _line(group: Group, percent: bool) -> dict[str, Any]:
    """One line of the headline table: (figure, note below it) for each column."""
    cells = []
    for name, _, _ in HEADLINE:
        share = percent or name in sections.RATIOS
        cells.append(
            _cell(group.metric(name), lambda v, share=share: formats.score(v, share), group.num_seeds)
        )
    half = group.half_width()
    if half is not None:
        cells[0] = (cells[0][0], f"\u00b1 {formats.score(half, True)}")
    cells.append(_cell(group.seconds(), formats.duration, group.num_seeds))
    cells.append((formats.size(group.peak_memory()), ""))
    return {
        "label": group.label,
        "bound": group.bound,
        "status": "" if group.finished else sections.status(group.runs[0]),
        "num_seeds": group.num_seeds,
        "cells": cells,
    }


def _cell(spread: Spread | None, text: Any, num_seeds: int) -> tuple[str, str]:
    if spread is None:
        return formats.DASH, ""
    low, high = text(spread.low), text(spread.high)
    return text(spread.mean), f"{low} to {high}" if num_seeds > 1 and low != high else ""


def _units(percent: bool) -> dict[str, str]:
    """What follows the heads of the headline table; no break before the unit."""
    units = {name: sections.unit_of(name, percent) for name, _, _ in HEADLINE}
    return {name: f",\u00a0{unit}" if unit else "" for name, unit in units.items()}


def _visible(runs: Sequence[Run]) -> str:
    """The sentence, where one holds for all runs; else it stands at each run."""
    found = {run["summary"].get("visible", "") for run in runs}
    return found.pop() if len(found) == 1 else ""


def _formulas(runs: Sequence[Run]) -> list[tuple[str, str]]:
    found = {e["title"]: e["formula"] for run in runs for e in run["summary"].get("metrics", ())}
    return list(found.items())
