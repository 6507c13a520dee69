"""`lifelong demo`: the embedded model learns the embedded stream in three ways, side by side."""

from pathlib import Path

METHODS = {
    "sequential": "plain LoRA, one task after another: the lower bound",
    "o_lora_replay": "O-LoRA and a small memory of earlier rows",
    "joint": "all tasks at once: the upper bound",
}


def run_demo(output: Path, seed: int, as_json: bool) -> None:
    """Train, compare, report. Resumes where it was interrupted."""
    from rich.console import Console

    from lifelong import launch
    from lifelong.cli.progress import stage_names, watching
    from lifelong.cli.tables import print_runs
    from lifelong.report import write_report
    from lifelong.streams.builtin import demo
    from lifelong.streams.config import read

    console = Console(stderr=True, quiet=as_json, highlight=False)
    console.print("SmolLM2-135M-Instruct learns five tasks, one after another: " + ", ".join(
        stage.name for stage in read(demo()).stages))  # fmt: skip
    folders = []
    for method, meaning in METHODS.items():
        console.print(f"[bold]{method}[/bold]  {meaning}")
        folder = output / f"{method}-seed{seed}"
        chosen = read(demo(), [f"method={method}", f"seed={seed}", f"output={folder}"])
        with watching(quiet=as_json, title=method, stages=stage_names(chosen)) as listen:
            launch.run_config(chosen, demo().parent, listen)
        folders.append(folder)
    page = write_report(folders, output / "report.html")
    print_runs(folders, page, as_json)
