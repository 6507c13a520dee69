"""python -m bench [names ...] [--quick] [--device cpu|cuda] [--json FILE]"""

import argparse
import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # TRL reports its use over the network otherwise
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says when it begins and ends

QUESTIONS = ("startup", "step", "sft", "scoring", "o_lora", "importance", "checkpoint", "merge")
EVERY = (*QUESTIONS, "methods", "runs")  # the last two only by name: they take long, and `runs` needs data


def main(arguments: list[str] | None = None) -> int:
    """0 where every limit holds, 1 where one is broken."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Our speed beside what else there is."
    )
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"of {', '.join(EVERY)}; default: all but methods and runs"
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it works")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON as well")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.names) - set(EVERY))
    if unknown:
        parser.error(f"no question is named {', '.join(unknown)}; there are {', '.join(EVERY)}")

    from bench.figure import Settings
    from bench.table import machine, show

    settings = Settings(quick=given.quick, device=given.device)
    begun, figures = machine(given.device), []
    print("\n".join(f"{key:<10} {value}" for key, value in begun.items()), flush=True)
    for name in given.names or QUESTIONS:
        found = importlib.import_module(f"bench.{name}").measure(settings)
        print(show(name, found), flush=True)
        figures += found
    ended = os.getloadavg()
    print(f"\nload at the end {ended[0]:.2f} (1 min), {ended[1]:.2f} (5 min); {begun['cores']} cores")
    if given.json:
        table = {
            "machine": begun,
            "quick": given.quick,
            "figures": [asdict(f) | {"holds": f.holds} for f in figures],
        }
        given.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    broken = [f.question for f in figures if f.holds is False]
    print(
        f"{len(broken)} of {sum(f.limit is not None for f in figures)} limits broken"
        if broken
        else "every limit holds"
    )
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
