"""Printing the named streams, and orders of stages."""

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifelong.errors import UserError
from lifelong.streams import benchmark, builtin, curriculum
from lifelong.streams.config import read

PERCEPTRON = "{name: perceptron, hidden_sizes: [100, 100]}"


def print_streams(name: str | None, as_json: bool) -> None:
    """All named streams, or the settings of one."""
    chosen = [name] if name else list(benchmark.names())
    classes = {each: benchmark.load(each) for each in chosen}
    if as_json:
        print(json.dumps([_plain(each, cls) for each, cls in classes.items()]))
    elif name:
        print(_page(name, classes[name]))
    else:
        width = max(map(len, chosen))
        for each, cls in classes.items():
            print(f"  {each:<{width}}  {_summary(cls)}")
        print("\n`lifelong streams NAME` shows where the data comes from, and all settings; "
              "`lifelong init --stream NAME` writes a stream file.")  # fmt: skip


def _plain(name: str, cls: type[benchmark.Benchmark]) -> dict[str, Any]:
    settings = [{"name": s.name, "default": s.default, "meaning": s.note} for s in benchmark.settings_of(cls)]
    return {"name": name, "summary": _summary(cls), "hub": cls.hub, "needs": cls.needs,
            "licence": cls.licence, "settings": settings}  # fmt: skip


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").partition("\n")[0]


def _page(name: str, cls: type[benchmark.Benchmark]) -> str:
    settings = list(benchmark.settings_of(cls))
    width = max(len(s.name) for s in settings)
    lines = [name, f"  {_summary(cls)}", "", f"Hub: {cls.hub or '-'}"]
    lines += textwrap.wrap(f"Local folder: {cls.needs}", 100, subsequent_indent="  ")
    lines += [f"Licence of the data: {cls.licence or 'that of your data'}", "", "Settings:"]
    lines += [f"  {s.name:<{width}}  {json.dumps(s.default):<10}  {s.note}" for s in settings]
    return "\n".join(lines)


def template(name: str | None) -> str:
    """A stream file to start from; with a named stream, its own settings written out."""
    text = builtin.template()
    if name is None:
        return text
    cls = benchmark.load(name)
    about, _, _ = text.partition("# Five short tasks")
    about = re.sub(r"^candidates: .*\n", "", about, flags=re.MULTILINE)  # follows from the stream
    if cls.vision:
        about = re.sub(r"^model: .*$", f"model: {PERCEPTRON}", about, flags=re.MULTILINE)
        about = re.sub(r"^method: .*$", "method: [full, reservoir]", about, flags=re.MULTILINE)
    lines = [
        f"# {_summary(cls)} `lifelong streams {name}` says where the data comes from.",
        "stages:",
        f"  {name}:",
    ]
    lines += [f"    {s.name}: {json.dumps(s.default)}  # {s.note}" for s in benchmark.settings_of(cls)]
    return about + "\n".join(lines) + "\n" + "general: embedded\n" * (not cls.vision)


def print_orders(
    file: Path, changes: Sequence[str], prefer: str, model: str | None, top: int, as_json: bool
) -> None:
    if prefer not in ("similar", "dissimilar"):
        raise UserError(f"--prefer must be similar or dissimilar; got {prefer}.")
    chosen = read(file, changes)
    from lifelong.streams import build

    stages = build.stream(chosen, file.parent).stages
    if model is None:
        means = [curriculum.mean_features(stage.rows) for stage in stages]
    else:
        from lifelong.models import pretrained
        from lifelong.streams.model_features import mean_features

        loaded = pretrained.load(model)
        means = [mean_features(loaded, stage.rows) for stage in stages]
    names = [stage.name for stage in stages]
    ranked = curriculum.rank(curriculum.similarity(means), prefer)[:top]
    found = [{"order": [names[i] for i in each.order], "score": each.score} for each in ranked]
    if as_json:
        print(json.dumps(found))
        return
    print("mean similarity of neighbours, order of the stages")
    for each in found:
        print(f"  {each['score']:+.3f}  {' '.join(each['order'])}")
