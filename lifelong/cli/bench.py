"""`lifelong bench` and `lifelong tune`: a line for every run that ends, then the table."""

import json
import time
from collections.abc import Callable

from rich.console import Console

from lifelong import across, standings, tune
from lifelong import bench as benches
from lifelong.report.standings import as_markdown, write_standings
from lifelong.streams.bench_file import Bench
from lifelong.streams.tuning import PROTOCOL, Tuning


def run_bench(bench: Bench, as_json: bool) -> None:
    benches.run(bench, _teller(as_json))
    found, streams = across.of(bench) if bench.settings.streams else (standings.of(bench), {})
    for name, each in streams.items():
        write_standings(each, bench.alone(name).output)
    page = write_standings(found, bench.output)
    if as_json:
        print(json.dumps(found | {"page": str(page), "tables": streams}))
        return
    for name, each in streams.items():
        print(f"{name}:\n\n{as_markdown(each)}")
    print(as_markdown(found))
    beside = ["bench.md", "bench.csv"] if streams else ["bench.md", "bench.csv", "bench.curves.csv"]
    print(f"table: {page}, and {', '.join(beside[:-1])} and {beside[-1]} beside it")


def run_tune(bench: Bench, dry: bool, as_json: bool) -> None:
    if dry:
        tune.check(bench)
        benches.check(benches.searching(bench))
        _print_trials(bench.tuning, as_json)
        return
    found = tune.run(bench, _teller(as_json))
    if as_json:
        print(json.dumps({"file": str(found.file), "protocol": PROTOCOL, "methods": found.chosen}))
        return
    for label, each in found.chosen.items():
        cost = f"{len(each['trials'])} trials, {each['runs']} runs, {each['seconds'] / 60:.1f} min"
        print(
            f"{label}: {', '.join(each['changes'])}  ({100 * each['score']:.1f} on the tuning stream; {cost})"
        )
    print(f"frozen in {found.file}; `lifelong bench {found.bench}` reports with these settings")


def _print_trials(tuning: Tuning, as_json: bool) -> None:
    """What would be run."""
    if as_json:
        found = [{"method": t.label, "changes": t.changes, "runs": len(t.cells)} for t in tuning.trials]
        print(json.dumps(found))
        return
    for trial in tuning.trials:
        print(f"{trial.label}: {', '.join(trial.changes)}")
    cells = [cell for trial in tuning.trials for cell in trial.cells]
    done = sum(map(benches.finished, cells))
    print(f"{len(tuning.trials)} trials, {len(cells)} runs, {done} of them finished; nothing was begun")


def _teller(quiet: bool) -> Callable[[benches.Told], None]:
    """Prints a line for every run."""
    console, begun = Console(stderr=True, quiet=quiet, highlight=False), time.monotonic()

    def told(each: benches.Told) -> None:
        ended = f"failed: {each.problem.splitlines()[-1]}" if each.problem else f"{each.seconds:.0f} s"
        gone = time.monotonic() - begun
        where = f"{each.cell.called}, {each.cell.folder.name}"
        console.print(f"{each.done:>4} of {each.total}  {where}: {ended}  ({gone / 60:.1f} min)")

    return told
