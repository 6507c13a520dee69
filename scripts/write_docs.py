"""Write the pages of the methods, and the tables in other pages that repeat the source.

    python scripts/write_docs.py            # write docs/methods/*.md and the generated regions
    python scripts/write_docs.py --check    # write nothing; exit 1 if a file is out of date

Sources are read as syntax trees, so that torch is not needed. A generated region of a page stands
between `<!-- generated: name -->` and `<!-- end of name -->`; the text around it is written by hand.
"""

import argparse
import ast
import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

from method_examples import constants, fits, in_yaml, python_example, recipe, stream_example
from plain_words import hint_of, plain_range, plain_type, plain_value

from lifelong.core import discover
from lifelong.core.discover import Description

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
METHODS = DOCS / "methods"
COSTS = DOCS / "results" / "costs.json"  # by `python -m bench methods --json docs/results/costs.json`
AXES = {  # axis: (what one of it is called, the question that it answers)
    "objectives": ("objective", "What does a step minimise?"),
    "tuners": ("tuner", "Where does the update live?"),
    "penalties": ("penalty", "What holds the past?"),
    "replay": ("replay memory", "What is seen again?"),
    "mixing": ("mixing", "In which proportions are new and old rows drawn?"),
    "mergers": ("merger", "What happens between stages?"),
    "analytic": ("analytic learner", "What is learned in closed form?"),
    "unlearning": ("way to unlearn", "How are rows forgotten?"),
    "schedules": ("schedule", "How fast?"),
    "diagnostics": ("diagnostic", "What changed inside?"),
    "metrics": ("metric", "What is true now?"),
    "recipes": ("recipe", "Which methods go together?"),
}
CONTRACTS = (
    "Objective",
    "Tuner",
    "Penalty",
    "Replay",
    "Unlearning",
    "Schedule",
    "AnswerMetric",
    "MatrixMetric",
)
COMPUTED = "Nothing to write: it is computed for every run and stands in the report and in `summary.json`."
LINKS = (
    (r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)"),
    (r"doi:(10\.[^\s,;)]+)", r"[doi:\1](https://doi.org/\1)"),
    (r"aclanthology\.org/([\w-]+)", r"[aclanthology.org/\1](https://aclanthology.org/\1)"),
)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def linked(text: str) -> str:
    for pattern, link in LINKS:
        text = re.sub(pattern, link, text)
    return text


def partners(each: Description) -> str:
    if each.axis == "penalties":
        names = [name for name in discover.names("tuners") if fits(name, each.id)]
        return f"Tuners that it works with: {_links(names)}.\n"
    if each.axis == "tuners":
        names = [name for name in discover.names("penalties") if fits(each.id, name)]
        return f"Penalties that work with it: {_links(names)}.\n"
    return ""


def measured_cost(each: Description) -> str:
    """What `python -m bench methods` found: ratios, which hold on other machines too, about."""
    about = costs().get(each.id)
    if about is None:
        return ""
    beside = about["beside"] if " " in about["beside"] else f"`{about['beside']}`"
    kept = f"{about['kept']:.2g} times the bytes of the weights trained there"
    grown = f", {about['grown']:.2g} times more with every further one" if about["grown"] > 0.005 else ""
    return (
        "\nMeasured on a small Llama in the second stage, with one thread: "
        f"{about['measured']:.2f} times the time of a step of {beside}, where the arithmetic asks for "
        f"{about['least']:.2f} ({about['why']}); "
        f"{about['peak']:.2f} times its peak memory. Kept after two stages: {kept}{grown}.\n"
    )


@cache
def costs() -> dict[str, dict[str, Any]]:
    """Details of the measured figures, by method; none before they have been measured."""
    if not COSTS.exists():
        return {}
    figures = json.loads(COSTS.read_text(encoding="utf-8"))["figures"]
    return {each["details"]["method"]: each["details"] for each in figures}


def _links(names: list[str]) -> str:
    return ", ".join(f"[{name}]({name}.md)" for name in names) or "none"


# pages ------------------------------------------------------------------------------------


def prose(document: str) -> str:
    """A docstring as Markdown: indented lines and paragraphs of equations become code."""
    parts = []
    for paragraph in document.split("\n\n"):
        lines = paragraph.split("\n")
        equations = all(re.match(r"[\w()]+ (=|<-) ", line) for line in lines)
        for code, group in groupby(lines, lambda line, all_=equations: all_ or line.startswith("    ")):
            text = textwrap.dedent("\n".join(group))
            parts.append(f"```text\n{text}\n```" if code else re.sub(r"([*<])", r"\\\1", text))
    return "\n\n".join(parts)


def settings_table(each: Description) -> str:
    if each.axis == "recipes":
        order, parts = recipe(each.id)
        listed = ", ".join(f"[{name}]({name}.md) (`{in_yaml(name, own)}`)" for name, own in parts)
        return (
            f"Order of the stages: `{order}`. Methods: {listed}. "
            "A setting of a part is changed under the recipe's name; a tuner named there takes the place of "
            "its own."
        )
    if not each.fields:
        return "None."
    rows = ["| setting | type | default | range | meaning |", "|---|---|---|---|---|"]
    for field in each.fields:
        hint = hint_of(field)
        words = (f"`{field.name}`", plain_type(hint), plain_value(ast.literal_eval(field.default)),
                 plain_range(hint), field.note)  # fmt: skip
        rows.append("| " + " | ".join(map(cell, words)) + " |")
    return "\n".join(rows)


def page(each: Description) -> str:
    kind, question = AXES[each.axis]
    source = f"lifelong/{each.axis}/{each.id}.{'yaml' if each.axis == 'recipes' else 'py'}"
    verified = "\n".join(f"- {fact}" for fact in each.verified)
    matrix = each.axis == "metrics" and constants(each.axis, each.id)["base"] == "MatrixMetric"
    stream = COMPUTED if matrix else f"```yaml\n{stream_example(each)}```"
    about = "" if each.axis == "recipes" else f"## What it does\n\n{prose(each.document)}\n\n"
    extra = partners(each)
    return f"""<!-- Written by scripts/write_docs.py from {source}: do not edit. -->
# {each.id}

{each.summary}

Axis: {kind} ({question[0].lower() + question[1:]}) - [all methods](README.md)

{about}## Settings

{settings_table(each)}

## Cost

{each.cost or "none"}
{measured_cost(each)}{chr(10) + extra if extra else ""}
## Verified by its tests

{verified}

## Paper

{linked(each.paper) or "None: common practice."}

## In a stream file

{stream}

## In Python

```python
{python_example(each).strip()}
```
"""


def index() -> str:
    lines = ["<!-- Written by scripts/write_docs.py: do not edit. -->", "# Methods", "",
             "One page per method, by the question that it answers. `lifelong methods` prints the same list; "
             "how a stream file names methods is in [the stream file](../stream.md)."]  # fmt: skip
    for axis, (_, question) in AXES.items():
        lines += ["", f"## {question}", "", f"Axis `{axis}`.", "", "| method | what it does | paper |",
                  "|---|---|---|"]  # fmt: skip
        for name in discover.names(axis):
            each = discover.describe(axis, name)
            lines.append(
                f"| [{name}]({name}.md) | {cell(each.summary)} | {cell(linked(each.paper)) or '-'} |"
            )
    return "\n".join(lines) + "\n"


def contracts() -> str:
    """Signatures of the axes: constants with their comments, methods without bodies."""
    text = (discover.PACKAGE / "core" / "axes.py").read_text(encoding="utf-8")
    lines, found = text.splitlines(), []
    for cls in ast.parse(text).body:
        if not isinstance(cls, ast.ClassDef) or cls.name not in CONTRACTS:
            continue
        found += ["", f"class {cls.name}({ast.unparse(cls.bases[0])}):"]
        fields = [node for node in cls.body if isinstance(node, ast.AnnAssign)]
        for node in fields:
            rest = takewhile(lambda line: line.strip().startswith("#"), lines[node.end_lineno :])
            found += [*lines[node.lineno - 1 : node.end_lineno], *rest]
        found += [""] if fields else []
        for node in cls.body:
            if isinstance(node, ast.FunctionDef):
                found += [f"    @{ast.unparse(each)}" for each in node.decorator_list]
                returned = f" -> {ast.unparse(node.returns)}"
                found.append(f"    def {node.name}({ast.unparse(node.args)}){returned}: ...")
    return "```python\n" + "\n".join(found).strip() + "\n```"


def formulas(base: str) -> str:
    """Table of metrics of one kind with their formulas, from the classes."""
    rows = ["| metric | formula | better |", "|---|---|---|"]
    for name in discover.names("metrics"):
        about = constants("metrics", name)
        if about["base"] == base:
            fallback = "lower" if "less is better" in about["formula"] else "higher"
            better = about.get("better", fallback)
            rows.append(f"| [`{name}`](methods/{name}.md) | {cell(about['formula'])} | {better} |")
    return "\n".join(rows)


def run_folder() -> str:
    """The files of a run, from the docstring of the module that writes them."""
    tree = ast.parse((discover.PACKAGE / "store" / "run.py").read_text(encoding="utf-8"))
    lines = [line for line in ast.get_docstring(tree).splitlines() if line.startswith("    ")]
    return "```text\n" + textwrap.dedent("\n".join(lines)) + "\n```"


def layers() -> str:
    """Who may import whom, from the contract that the linter checks."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in content["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return "```text\n" + "\n".join(each.replace("lifelong.", "") for each in contract["layers"]) + "\n```"


REGIONS: dict[str, dict[str, Callable[[], str]]] = {
    "design.md": {"layers": layers, "contracts": contracts, "run folder": run_folder},
    "metrics.md": {
        "answer metrics": lambda: formulas("AnswerMetric"),
        "matrix metrics": lambda: formulas("MatrixMetric"),
    },
}


def with_regions(text: str, regions: Mapping[str, Callable[[], str]]) -> str:
    for name, make in regions.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        assert found and end in rest, f"the page lacks the markers of region `{name}`"
        text = f"{before}{begin}\n{make()}\n{end}{rest.partition(end)[2]}"
    return text


def wanted() -> dict[Path, str]:
    """Every generated file with its content."""
    every = discover.describe_all()
    assert len({each.id for each in every}) == len(every), "two methods of one name"
    found = {METHODS / f"{each.id}.md": page(each) for each in every} | {METHODS / "README.md": index()}
    for name, regions in REGIONS.items():
        found[DOCS / name] = with_regions((DOCS / name).read_text(encoding="utf-8"), regions)
    return found


def stale(files: Mapping[Path, str]) -> list[str]:
    """What differs on disk: pages to write, and pages of methods that are gone."""
    old = [path for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    gone = sorted(set(METHODS.glob("*.md")) - set(files))
    return [str(path.relative_to(ROOT)) for path in (*old, *gone)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write docs/methods and the generated regions of docs.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    given = parser.parse_args(arguments)
    files = wanted()
    changed = stale(files)
    if not given.check:
        METHODS.mkdir(parents=True, exist_ok=True)
        for name in changed:
            path = ROOT / name
            if path in files:
                path.write_text(files[path], encoding="utf-8")
            else:
                path.unlink()
    verb = "out of date" if given.check else "written"
    print("\n".join(f"{verb}: {name}" for name in changed) or "docs are up to date")
    return 1 if given.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
