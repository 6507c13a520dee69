"""The command line: parse, call, print. Heavy imports stand inside the verbs."""

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from lifelong.errors import OverBudget, UserError

app = typer.Typer(
    name="lifelong",
    help="Keep teaching one pretrained model, one task after another, and say in numbers what it "
    "learned, what it lost and what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

OUT_OF_MEMORY = (
    "out of memory; what was saved stays. Set micro_batch_size below batch_size: rows are then taken in "
    "smaller groups, with the same result."
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Stage = Annotated[
    str | None, typer.Option(help="Stage of a run folder, by name; default: the last one finished.")
]
NodeName = Annotated[
    str, typer.Argument(metavar="NODE", help="Id or its first digits, tag, or RUN_FOLDER[:stage].")
]
Below = Annotated[Path, typer.Option("--in", help="Folder below which ids and tags are looked for.")]
BenchFile = Annotated[Path, typer.Argument(help="Bench file (YAML).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell the trials; run none.")]
RUNS = Path("runs")
Changes = Annotated[
    list[str] | None, typer.Argument(help="Overrides, such as stages.0.epochs=2 method=o_lora_replay seed=3.")
]


def version(wanted: bool) -> None:
    if wanted:
        from lifelong import __version__

        print(f"lifelong {__version__}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the runs and the report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Teach the embedded model five tasks in three ways, compare, and write a report. Minutes."""
    from lifelong.cli.demo import run_demo

    run_demo(output, seed, as_json)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Where to write the template.")] = Path("stream.yaml"),
    stream: Annotated[str | None, typer.Option(help="A named stream, see `lifelong streams`.")] = None,
) -> None:
    """Write a commented stream file to start from."""
    from lifelong.cli.streams import template
    from lifelong.store.files import write_text

    if file.exists():
        raise UserError(f"{file} exists; name another file.")
    write_text(file, template(stream))
    print(f"wrote {file}; run it with: lifelong run {file}")


@app.command()
def run(stream: Annotated[Path, typer.Argument(help="Stream file (YAML).")], changes: Changes = None,
        as_json: Json = False) -> None:  # fmt: skip
    """Train every stage of a stream file and judge after each. The same command resumes."""
    from lifelong.streams.config import read

    chosen = read(stream, changes or [])
    from lifelong import launch
    from lifelong.cli.progress import stage_names, watching
    from lifelong.cli.tables import print_runs
    from lifelong.report import write_report
    from lifelong.store.run import find_runs

    output, refused = Path(chosen.resolved()["output"]), None
    leads = os.environ.get("RANK", "0") == "0"  # of several processes the first one reports
    try:
        with watching(quiet=as_json or not leads, stages=stage_names(chosen)) as listen:
            folders = [each.folder for each in launch.run_config(chosen, stream.parent, listen)]
    except OverBudget as error:
        folders, refused = find_runs(output), error
    if leads:
        page = write_report(folders, output / "report.html")
        print_runs(folders, page, as_json)
    if refused:
        raise refused


@app.command(name="eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Run folder, exported folder, model folder, name, or a node (see `log`).")
    ],
    stream: Annotated[
        Path | None, typer.Argument(help="Stream file whose evaluation sets judge the model.")
    ] = None,
    changes: Changes = None,
    stage: Stage = None,
    harness: Annotated[
        str | None, typer.Option(help="lm-eval: judge by public benchmarks instead of a stream.")
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="Tasks of the harness, such as arc_easy,hellaswag or mmlu_*.")
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of each task.")] = None,
    include_path: Annotated[
        list[Path] | None, typer.Option(help="Folder with tasks of your own (YAML); may be repeated.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that the harness asks at once.")] = 8,
    below: Below = RUNS,
    as_json: Json = False,
) -> None:
    """Judge a saved model on the evaluation sets of a stream, or on public benchmarks."""
    from lifelong.cli.evaluate import on_benchmarks, on_stream

    if harness is None:
        on_stream(model, stream, changes or [], stage, below, as_json)
    else:
        given = [*([str(stream)] if stream else ()), *(changes or [])]
        on_benchmarks(
            model, harness, given, tasks, stage, below, limit, include_path or [], batch_size, as_json
        )


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    output: Annotated[
        Path | None, typer.Option(help="The page to write; default: report.html in the first.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rebuild the report from run folders: one HTML file that needs nothing else."""
    from lifelong.cli.tables import print_runs
    from lifelong.report import write_report
    from lifelong.store.run import find_runs

    found = [run for folder in folders for run in find_runs(folder)]
    page = write_report(found, output or folders[0] / "report.html")
    print_runs(found, page, as_json)


@app.command()
def bench(file: BenchFile, changes: Changes = None, as_json: Json = False) -> None:
    """Compare methods over orders and seeds: runs, bounds, intervals, cost. The same command resumes."""
    from lifelong.streams.bench_file import read

    chosen = read(file, changes or [])
    from lifelong.cli.bench import run_bench

    run_bench(chosen, as_json)


@app.command()
def tune(file: BenchFile, changes: Changes = None, dry: DryRun = False, as_json: Json = False) -> None:
    """Search settings on another stream; freeze the best for `lifelong bench`. The same command resumes."""
    from lifelong.streams.bench_file import read

    chosen = read(file, changes or [], freeze=False)
    from lifelong.cli.bench import run_tune

    run_tune(chosen, dry, as_json)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="Run folder.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    stage: Stage = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write a peft adapter, not a whole model.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a plain transformers checkpoint or a peft adapter that other tools load."""
    from lifelong.models.export import export_run

    written = export_run(source, output, stage, adapter)
    told = f"wrote {written['kind']} {written['folder']} ({written['note']})"
    print(json.dumps(written) if as_json else told)


@app.command()
def merge(
    left: Annotated[Path, typer.Argument(help="Model folder, for example an exported stage.")],
    right: Annotated[Path, typer.Argument(help="Another state of the same model.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    share: Annotated[float, typer.Option(help="0: all of the left, 1: all of the right.")] = 0.5,
    as_json: Json = False,
) -> None:
    """Write the model on the straight line between two, one tensor at a time."""
    from lifelong.models.merging import merge_models

    merge_models(left, right, output, share)
    told = f"wrote {output}: {1 - share:g} of {left} and {share:g} of {right}"
    print(json.dumps({"folder": str(output), "share": share}) if as_json else told)


@app.command()
def log(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders that hold some; default: runs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the history of models: every finished stage below its parent."""
    from lifelong.cli.lineage import print_log

    print_log(folders or [RUNS], as_json)


@app.command()
def show(node: NodeName, below: Below = RUNS, as_json: Json = False) -> None:
    """Tell all of one node: parent, data, configuration, code, weights, figures, cost."""
    from lifelong.cli.lineage import print_node

    print_node(node, below, as_json)


@app.command()
def diff(
    before: NodeName,
    after: NodeName,
    weights: Annotated[bool, typer.Option("--weights", help="And where the weights moved.")] = False,
    examples: Annotated[int, typer.Option(min=0, help="Single answers to show per set and side.")] = 3,
    below: Below = RUNS,
    as_json: Json = False,
) -> None:
    """Say what was learned and what was lost between two nodes: per set, per example, with tests."""
    from lifelong.cli.lineage import print_difference
    from lifelong.store.lineage import pair

    print_difference(*pair(before, after, below), examples, weights, as_json)


@app.command()
def revert(node: NodeName, below: Below = RUNS, as_json: Json = False) -> None:
    """Take a run folder back to a node; later stages are set aside, not deleted."""
    from lifelong.cli.lineage import print_revert

    print_revert(node, below, as_json)


@app.command()
def branch(
    node: NodeName,
    folder: Annotated[Path, typer.Argument(help="The new run folder.")],
    below: Below = RUNS,
    as_json: Json = False,
) -> None:
    """Begin a new run folder at a node; finished stages are shared, not copied."""
    from lifelong.cli.lineage import print_branch

    print_branch(node, folder, below, as_json)


@app.command()
def tag(
    node: NodeName,
    name: Annotated[str | None, typer.Argument(help="The tag.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove a tag; NODE may be left out.")] = False,
    below: Below = RUNS,
    as_json: Json = False,
) -> None:
    """Name a node; what a tag names is never freed."""
    from lifelong.cli.lineage import print_tag

    if name is None and not delete:
        raise UserError("tag: name the node and then the tag: lifelong tag NODE NAME")
    print_tag(node, name, delete, below, as_json)


@app.command()
def gc(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders that hold some; default: runs.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; else it is only told.")] = False,
    as_json: Json = False,
) -> None:
    """Free stages that were set aside and that no tag leads to. Tells what, unless --yes."""
    from lifelong.cli.lineage import print_garbage

    print_garbage(folders or [RUNS], yes, as_json)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, for its whole page.")] = None,
    axis: Annotated[str | None, typer.Option(help="Only this axis.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods; or explain one: paper, cost, settings, and what has been verified."""
    from lifelong.cli.tables import print_methods

    print_methods(name, axis, as_json)


@app.command()
def streams(
    name: Annotated[str | None, typer.Argument(help="One stream, for its settings.")] = None,
    as_json: Json = False,
) -> None:
    """List the named streams; or explain one: where its data comes from, and all settings."""
    from lifelong.cli.streams import print_streams

    print_streams(name, as_json)


@app.command()
def order(
    stream: Annotated[Path, typer.Argument(help="Stream file (YAML).")],
    changes: Changes = None,
    prefer: Annotated[str, typer.Option(help="similar or dissimilar neighbours first.")] = "similar",
    model: Annotated[
        str | None, typer.Option(help="Compare by its features; default: by words or pixels.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many orders to show.")] = 5,
    as_json: Json = False,
) -> None:
    """Rank the orders of a stream's stages by how alike neighbours are. Nothing is trained."""
    from lifelong.cli.streams import print_orders

    print_orders(stream, changes or [], prefer, model, top, as_json)


@app.command()
def doctor(
    speed: Annotated[bool, typer.Option("--speed", help="Measure matrix products as well.")] = False,
    as_json: Json = False,
) -> None:
    """Describe this environment in a form fit for a bug report."""
    from lifelong.cli.doctor import examine

    examine(speed, as_json)


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM where the engine does not wait for it. No KeyboardInterrupt: typer takes that
    for its own and says nothing."""


def interrupt(number: int, frame: Any) -> None:
    raise Interrupted


def main() -> None:
    """Run the program; bad input prints one message and exits with status 2, a broken budget with 3."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:  # what a library will change some day is no user's business
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
    warnings.formatwarning = lambda message, *place, **more: f"note: {message}\n"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        app()
    except UserError as error:
        fail(str(error), error.status)
    except Interrupted:
        fail("interrupted; what was saved stays. The same command goes on from the last checkpoint.")
    except MemoryError:
        fail(OUT_OF_MEMORY)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not be imported here
            raise
        fail(OUT_OF_MEMORY)


def fail(message: str, status: int = UserError.status) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
