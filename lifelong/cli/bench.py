"""`lifelong bench`: a line for every run that ends, then the table."""

import json
import time

from rich.console import Console

from lifelong import bench as benches
from lifelong import standings
from lifelong.report.standings import as_markdown, write_standings
from lifelong.streams.bench_file import Bench


def run_bench(bench: Bench, as_json: bool) -> None:
    console = Console(stderr=True, quiet=as_json, highlight=False)
    begun = time.monotonic()

    def told(each: benches.Told) -> None:
        ended = f"failed: {each.problem.splitlines()[-1]}" if each.problem else f"{each.seconds:.0f} s"
        gone = time.monotonic() - begun
        where = f"{each.cell.label}, {each.cell.folder.name}"
        console.print(f"{each.done:>4} of {each.total}  {where}: {ended}  ({gone / 60:.1f} min)")

    benches.run(bench, told)
    found = standings.of(bench)
    page = write_standings(found, bench.output)
    if as_json:
        print(json.dumps(found | {"page": str(page)}))
        return
    print(as_markdown(found))
    print(f"table: {page}, and bench.md and bench.csv beside it")
