"""The table of a bench, as a page, as Markdown and as CSV; from plain values, see `lifelong.standings`."""

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from lifelong.report import charts, curves, formats, inside
from lifelong.report.build import write_report
from lifelong.store.files import write_text

Row = dict[str, Any]


Show = Callable[[float | None], str]  # a score as text, in the unit of the table


def points(value: float | None) -> str:
    """A share in percent."""
    return formats.score(value, True)


def signed(found: dict[str, float] | None, show: Show) -> str:
    if found is None:
        return formats.DASH
    value, low, high = ("+" * (v > 0) + show(v) for v in (found["value"], found["low"], found["high"]))
    return f"{value} [{low}, {high}]"


def reach(row: Row, show: Show) -> str:
    """Average accuracy with its interval."""
    if row["interval"] is None:
        return show(row["average_accuracy"])
    low, high = row["interval"]
    return f"{show(row['average_accuracy'])} [{show(low)}, {show(high)}]"


Column = tuple[str, str, Callable[[Row, Show], str]]
COLUMNS: tuple[Column, ...] = (
    # heading with what `_scale` fills in, value that the page sorts by, text
    ("method", "label", lambda r, _: r["label"] + (" (bound)" if r["bound"] else "") + " *" * r["tied"]),
    ("average {word}{unit}", "average_accuracy", reach),
    ("to sequential{apart}", "difference", lambda r, show: signed(r["difference"], show)),
    ("forgetting{apart}", "forgetting", lambda r, show: show(r["forgetting"])),
    ("learning {word}{unit}", "learning_accuracy", lambda r, show: show(r["learning_accuracy"])),
    ("general ability kept, %", "general_ability", lambda r, _: points(r["general_ability"])),
    ("rank", "rank", lambda r, _: formats.number(r["rank"], 1)),
    ("time, x", "time", lambda r, _: formats.number(r["time"], 2)),
    ("seconds", "seconds", lambda r, _: formats.number(r["seconds"], 1)),
    ("peak memory", "peak_memory_bytes", lambda r, _: formats.size(r["peak_memory_bytes"])),
    ("kept per task", "kept_bytes", lambda r, _: formats.size(r["kept_bytes"])),
    ("task identity", "identity", lambda r, _: r["identity"] or formats.DASH),
    ("runs", "runs", lambda r, _: f"{r['runs']} of {r['planned']}" + (", failed" if r["problem"] else "")),
)
ERASED: tuple[Column, ...] = (
    ("{word} on what was erased{unit}", "erased_accuracy", lambda r, show: show(r["erased_accuracy"])),
    ("erasure gap{apart}", "erasure_gap", lambda r, show: show(r["erasure_gap"])),
)
TUNED: tuple[Column, ...] = (
    ("on the tuning stream{unit}", "tuning_score", lambda r, show: show(r["tuning_score"])),
    ("chosen settings", "settings", lambda r, _: r["settings"] or "as written"),
    ("tuning, trials", "trials", lambda r, _: str(r["trials"])),
    ("tuning, seconds", "tuning_seconds", lambda r, _: formats.number(r["tuning_seconds"], 1)),
)
NOTES = (
    "* not distinguishable from the best method: the 95 % interval of the paired difference holds 0.",
    "{Word}: mean over tasks at the end, mean over runs; intervals by resampling runs and rows.",
    "Forgetting: best earlier {word} minus the final one, mean over earlier tasks; less is better.",
    "Time: seconds of training in units of sequential training's with the same order and seed.",
    "Task identity: could an answer at test time use which task its row is of, and by what.",
)
UNLIKE = {  # what a table's figures are where they are no shares
    "log-likelihood": "Log-likelihood: of a token, in nats; minus the logarithm of the perplexity.",
    "score": "Score: of the metric of each set; a perplexity counts as minus its logarithm.",
}
CURVES = "Average {word} over the tasks seen, after each stage, mean over runs"
INSIDE = "What diagnostics saw after the last stage, mean over runs"
APART = ("folders", "curves", "inside", "interval", "difference")  # not one figure
REPORT = "report.html"  # of a run, in its folder
UNTUNED = "No settings were searched for this table: they are those of the bench file."


def write_standings(standings: dict[str, Any], output: Path) -> Path:
    """Write bench.md, bench.csv, bench.curves.csv and bench.html into `output`; returns the page. Where runs
    were looked into, bench.diagnostics.csv as well.
    """
    text = as_markdown(standings) + curves_as_markdown(standings) + inside_as_markdown(standings)
    write_text(output / "bench.md", text)
    if inside.table(standings)[1]:
        write_text(output / "bench.diagnostics.csv", inside.as_csv(standings))
    write_text(output / "bench.csv", as_csv(standings))
    if not standings["streams"]:
        write_text(output / "bench.curves.csv", curves.as_csv(standings))
    for folder in (Path(each) for row in standings["rows"] for each in row["folders"]):
        if not (folder / REPORT).exists():  # the process was killed before
            write_report([folder], folder / REPORT)
    page = output / "bench.html"
    write_text(page, as_page(standings, output))
    return page


def about(standings: dict[str, Any]) -> list[str]:
    """What holds for the whole table."""
    seeds, orders = len(standings["seeds"]), standings["orders"]
    runs = f"{orders} order{'s' * (orders != 1)}, {seeds} seed{'s' * (seeds != 1)}."
    if names := list(standings["streams"]):
        alike = "Mean over streams, which count alike; each has a table of its own"
        runs = f"{alike}: {', '.join(names)}. Of each at most {runs}"
    failed = [f"{row['label']}: {row['problem']}" for row in standings["rows"] if row["problem"]]
    notes = [_filled(note, standings) for note in NOTES]
    unlike = [] if standings["percent"] else [UNLIKE.get(standings["word"], "")]
    return [runs, *_tuning(standings), *standings["visible"], *notes, *filter(None, unlike), *failed]


def _filled(text: str, standings: dict[str, Any]) -> str:
    """With what the figures of the table are."""
    word = standings["word"]
    unit, apart = (f", {each}" if each else "" for each in (standings["unit"], standings["apart"]))
    return text.format(word=word, Word=word[0].upper() + word[1:], unit=unit, apart=apart)


def _show(standings: dict[str, Any]) -> Show:
    return lambda value: formats.score(value, standings["percent"])


def _tuning(standings: dict[str, Any]) -> list[str]:
    """Where settings come from."""
    found = standings["tuning"]
    if found is None:
        return [UNTUNED]
    stages, seeds, orders = ", ".join(found["stages"]), found["seeds"], found["orders"]
    where = f"{stages} ({orders} order{'s' * (orders != 1)}, {seeds} seed{'s' * (seeds != 1)})"
    rest = [row["label"] for row in standings["rows"] if not row["trials"]]
    lines = [
        f"Settings were chosen on another stream of the same scenario ({found['protocol']}, "
        f"arXiv:2403.09066): {where}; by average accuracy there, and frozen before this stream was run.",
        f"The search took {found['runs']} runs, {found['seconds'] / 60:.1f} minutes of training and judging.",
    ]
    return [*lines, f"Not tuned, as written: {', '.join(rest)}."] if rest else lines


def columns(standings: dict[str, Any]) -> tuple[Column, ...]:
    """Those of the search stand beside the reported accuracy, and after the cost; those of several streams
    before the forgetting, and those of erasure where something was erased.
    """
    erased = ERASED if any(row["erased_accuracy"] is not None for row in standings["rows"]) else ()
    tuned = TUNED if standings["tuning"] is not None else ()
    streams = tuple(_on(name) for name in standings["streams"])
    found = (*COLUMNS[:2], *tuned[:1], *erased, COLUMNS[2], *streams, *COLUMNS[3:-1], *tuned[1:], COLUMNS[-1])
    return tuple((_filled(head, standings), key, text) for head, key, text in found)


def _on(stream: str) -> Column:
    """Average accuracy on one of several streams."""
    name = stream.replace("{", "{{").replace("}", "}}")
    return f"on {name}{{unit}}", f"on {stream}", lambda row, show: show(row[f"on {stream}"])


def as_markdown(standings: dict[str, Any]) -> str:
    shown = columns(standings)
    show = _show(standings)
    rows = [[text(row, show) for _, _, text in shown] for row in standings["rows"]]
    notes = [f"- {line.splitlines()[-1]}\n" for line in about(standings)]
    return _markdown_table([head for head, _, _ in shown], rows) + "\n" + "".join(notes)


def curves_as_markdown(standings: dict[str, Any]) -> str:
    heads, rows = curves.table(standings)
    told = _filled(CURVES + "{unit}", standings)
    return f"\n{told}:\n\n{_markdown_table(heads, rows)}" if rows else ""


def inside_as_markdown(standings: dict[str, Any]) -> str:
    heads, rows = inside.table(standings)
    return f"\n{INSIDE}:\n\n{_markdown_table(heads, rows)}" if rows else ""


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (heads, *rows)]
    lines = [f"| {line} |\n" for line in lines]
    return "".join([lines[0], "|" + "---|" * len(heads) + "\n", *lines[1:]])


def as_csv(standings: dict[str, Any]) -> str:
    text = io.StringIO()
    names = [key for key in standings["rows"][0] if key not in APART]
    ends = ["low", "high", "difference", "difference_low", "difference_high"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *ends])
    for row in standings["rows"]:
        apart = row["difference"] or {"value": None, "low": None, "high": None}
        writer.writerow([*(row[name] for name in names), *(row["interval"] or (None, None)), *apart.values()])
    return text.getvalue()


def as_page(standings: dict[str, Any], output: Path) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    shown, show = columns(standings), _show(standings)
    rows = [
        {
            "bound": row["bound"],
            "cells": [(text(row, show), _key(row[key])) for _, key, text in shown],
            "label": row["label"],
            "lacks": "" if row["runs"] == row["planned"] else f"{row['runs']} of {row['planned']} runs",
            "anchor": f"curve-{place}",
            "links": _links(row, standings["streams"], show, output),
        }
        for place, row in enumerate(standings["rows"], start=1)
    ]
    return environment.get_template("standings.html.jinja").render(
        title=standings["name"], heads=[head for head, _, _ in shown], rows=rows, notes=about(standings),
        plots=[
            _plot(standings["rows"], "time", "training time, in units of sequential training's",
                  lambda found: charts.scale(found, 10.0, "{:g}".format), standings["percent"]),
            _plot(standings["rows"], "kept_bytes", "bytes kept per task",
                  lambda found: charts.scale(found, 1024.0, formats.size, least=1.0), standings["percent"]),
        ],
        curves=curves.figures(standings), averages=curves.table(standings), inside=inside.table(standings),
        percent=standings["percent"], word=standings["word"], unit=standings["unit"],
        over=_filled("{Word} over the stream{unit}", standings),
        linked="each stream" if standings["streams"] else "each run",
    )  # fmt: skip


def _links(row: Row, streams: dict[str, str], show: Show, output: Path) -> list[tuple[str, str, str]]:
    """(average accuracy, of what, address) of every run; or of every stream, whose page has the runs."""
    if streams:
        pages = {name: quote(f"{folder}/bench.html") for name, folder in streams.items()}
        return [(show(row[f"on {name}"]), name, page) for name, page in pages.items()]
    return [
        (show(c["average"][-1]), f"order {c['order']}, seed {c['seed']}", _link(folder, output))
        for c, folder in zip(row["curves"], row["folders"], strict=True)
    ]


def _key(value: Any) -> Any:
    """What a column is sorted by."""
    value = value["value"] if isinstance(value, dict) else value
    return "" if value is None else value


def _link(folder: str, output: Path) -> str:
    """Address of a run's report, from the page."""
    return quote(Path(os.path.relpath(Path(folder) / REPORT, output)).as_posix())


def _plot(
    rows: list[Row], key: str, label: str, scale: Callable[[list[float]], charts.Scale], percent: bool
) -> dict[str, Any] | None:
    """Accuracy against a cost, as places in percent of the axes."""
    known = [r for r in rows if r[key] is not None and r["average_accuracy"] is not None]
    if len(known) < 2:
        return None
    place, across = scale([r[key] for r in known])
    factor = 100 if percent else 1
    low, high, step = charts.nice_range(
        [factor * r["average_accuracy"] for r in known], (0.0, 100.0) if percent else None
    )
    count = (high - low) / step
    up = [(100 * i / count, f"{low + i * step:g}") for i in range(math.floor(count) + 1)]
    dots = [
        {
            "x": place(r[key]), "y": 100 * (factor * r["average_accuracy"] - low) / (high - low),
            "label": r["label"], "bound": r["bound"],
        }
        for r in known
    ]  # fmt: skip
    for index, dot in enumerate(dots):  # a name that would lie on another one is left to the pointer
        crowd = [other for other in dots[:index] if other["named"]]
        dot["named"] = all(abs(dot["x"] - o["x"]) > 20 or abs(dot["y"] - o["y"]) > 5 for o in crowd)
    return {"label": label, "dots": dots, "across": across, "up": up}
