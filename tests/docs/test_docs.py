"""The documentation says what the code does: pages are up to date, examples run, tables agree."""

import ast
import dataclasses
import doctest
import importlib.util
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import tiny
import tiny_stream
import torch
from pydantic_core import PydanticUndefined

import lifelong as ll
from lifelong import bench, launch
from lifelong.core import composition, discover, evaluation
from lifelong.core.axes import MatrixMetric
from lifelong.numerics import intervals
from lifelong.store.run import read_run
from lifelong.streams import bench_file, build, builtin, config, mistakes, plain_yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
METHOD_PAGES = sorted((DOCS / "methods").glob("*.md"))
PAGES = [*WRITTEN, *METHOD_PAGES]
METHOD_AXES = set(discover.AXES) - {"recipes"}
LONGER = {  # functions that may be longer than 40 lines, and how long
    "lifelong/core/engine.py:train_stage": 60,  # the loop is read from top to bottom in one place
}


def script(name):
    """A module of scripts/, which is no package."""
    path = ROOT / "scripts"
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    spec = importlib.util.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


write_docs, plain_words = script("write_docs"), script("plain_words")


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    """Code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def with_blocks(pages, language):
    return [
        pytest.param(text, id=f"{path.stem}-{i}")
        for path in pages
        for i, text in enumerate(blocks(path, language))
    ]


# generated pages


def test_generated_pages_are_up_to_date():
    stale = write_docs.stale(write_docs.wanted())
    assert not stale, f"run python scripts/write_docs.py; out of date: {', '.join(stale)}"


def test_a_changed_and_a_left_over_page_are_stale():
    files = write_docs.wanted()
    some = next(path for path in files if path.stem == "ewc")
    assert "docs/methods/ewc.md" in write_docs.stale({**files, some: files[some] + "x"})
    assert "docs/methods/ewc.md" in write_docs.stale({k: v for k, v in files.items() if k != some})


def test_check_writes_nothing_and_fails_on_a_stale_page(monkeypatch, capsys):
    page = DOCS / "methods" / "ewc.md"
    before = page.read_bytes()
    wrong = {**write_docs.wanted(), page: "changed"}
    monkeypatch.setattr(write_docs, "wanted", lambda: wrong)
    assert write_docs.main(["--check"]) == 1
    assert page.read_bytes() == before and "out of date: docs/methods/ewc.md" in capsys.readouterr().out


def test_writing_docs_needs_no_torch():
    tree = [*ast.walk(ast.parse((ROOT / "scripts/write_docs.py").read_text()))]
    tree += ast.walk(ast.parse((ROOT / "scripts/method_examples.py").read_text()))
    found = {node.module for node in tree if isinstance(node, ast.ImportFrom)}
    assert {each for each in found if each.startswith("lifelong")} == {
        "lifelong.core", "lifelong.core.discover"}  # fmt: skip


@pytest.mark.parametrize("each", discover.describe_all(), ids=lambda each: each.id)
def test_every_method_has_a_page_with_its_settings(each):
    text = (DOCS / "methods" / f"{each.id}.md").read_text("utf-8")
    assert each.summary in text and f"[{each.id}]({each.id}.md)" in (DOCS / "methods/README.md").read_text()
    for field in each.fields:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{field.name}` |"))
        assert field.note.replace("|", "\\|") in row
    assert "## Cost" in text and "## Verified by its tests" in text and "## In Python" in text


def test_partners_are_those_that_the_composition_accepts():
    for tuner in discover.names("tuners"):
        for penalty in discover.names("penalties"):
            parts = [discover.load(name)() for name in (tuner, penalty)]
            try:
                composition.check_composition(parts)
                works = True
            except ll.UserError:
                works = False
            assert write_docs.fits(tuner, penalty) == works, (tuner, penalty)


def test_better_of_an_answer_metric_is_its_direction():
    table = (DOCS / "metrics.md").read_text("utf-8")
    for name in discover.names("metrics"):
        cls = discover.load(name, "metrics")
        better = cls.better if issubclass(cls, MatrixMetric) else evaluation.direction(cls())
        row = next(line for line in table.splitlines() if line.startswith(f"| [`{name}`]"))
        assert cls.formula in row and row.endswith(f"| {better} |")


# examples


@pytest.fixture
def data(tmp_path):
    """Files for every source of an example, with every column that an objective could ask for."""

    def write(chosen):
        asked = [s.erase for s in chosen.stages if s.erase is not None and s.erase.path is not None]
        trained = [s.train for s in chosen.stages if s.train is not None]
        sources = [*trained, *asked, *(s for stage in chosen.stages for s in stage.eval.values())]
        for source in (*sources, *(each.data for each in chosen.general)):
            if source.path.startswith(builtin.PREFIX):
                continue
            file = tmp_path / source.path
            file.parent.mkdir(parents=True, exist_ok=True)
            row = {"text": "t", "label": "negative"} | {theirs: "t" for theirs in source.columns.values()}
            if not source.columns and "reviews" not in source.path:
                row |= {"prompt": "p", "completion": "c"}
            if file.suffix == ".csv":
                file.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
            else:
                file.write_text(json.dumps(row) + "\n")
        return tmp_path

    return write


@pytest.mark.parametrize("text", with_blocks(PAGES, "yaml"))
def test_every_stream_file_parses_and_builds(text, data, monkeypatch, tmp_path):
    make_outsiders(tmp_path, monkeypatch)
    if "methods" in plain_yaml.parse(text, "example"):
        (tmp_path / "bench.yaml").write_text(text)
        bench.check(bench_file.read(tmp_path / "bench.yaml", freeze=False))
        return
    chosen = config.parse(plain_yaml.parse(text, "example"), "example")
    methods = build.methods(chosen.method)
    built = build.stream(chosen, data(chosen))
    assert methods.name and len(built.stages) == len(chosen.stages)


@pytest.mark.parametrize("text", with_blocks(METHOD_PAGES, "python"))
def test_every_python_example_of_a_method_runs(text, monkeypatch):
    """`ll.run` is bound and its methods are put together, but nothing is trained."""
    calls = []
    signature = inspect.signature(launch.run)

    def run(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        methods = given["methods"]
        made = (
            build.methods([{methods: {}}])
            if isinstance(methods, str)
            else composition.compose(methods, build.default_tuner())
        )
        calls.append(made)
        matrix = ll.AccuracyMatrix(columns=("a",), values=((0.5,),), taught=(0,), sizes=(1,))
        return launch.Run(Path(), {"matrix": matrix.to_dict()})

    monkeypatch.setattr(launch, "run", run)
    exec(compile(text, "example", "exec"), {})
    assert len(calls) == text.count("ll.run(")


def test_worked_matrix_gives_the_numbers_of_the_library():
    (text,) = [each for each in blocks(DOCS / "metrics.md", "python") if ">>>" in each]
    names = {}
    test = doctest.DocTestParser().get_doctest(text, names, "metrics.md", "metrics.md", 0)
    report = []
    result = doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
    assert result.failed == 0, "".join(report)
    shown = set(re.findall(r"(?:matrix|after)\.(\w+)", text))
    matrix = {n for n in discover.names("metrics") if issubclass(discover.load(n, "metrics"), MatrixMetric)}
    assert shown == matrix, "every matrix metric has its worked number"
    check_other_definitions(test.globs["matrix"])


def check_other_definitions(m):
    """The table of other definitions, computed here."""
    rows, zero, old = m.values, m.untrained, (0, 1)
    last, earlier = rows[-1], rows[:-1]
    lower = [[a if i <= k else 0.0 for i, a in enumerate(row)] for k, row in enumerate(rows)]
    drops = [max(row[i] for row in earlier) - last[i] for i in old]
    numbers = [
        (sum(max(row[i] for row in rows) - last[i] for i in old) / 2, m.forgetting),
        (sum(max(0.0, drop) for drop in drops) / 2, m.forgetting),
        (sum(rows[i][i] - last[i] for i in old) / 2, m.forgetting),
        (sum(drops) / 3, m.forgetting),
        (sum(last[i] - rows[i][i] for i in old) / 3, m.backward_transfer),
        (sum(rows[i - 1][i] for i in (1, 2)) / 2, m.forward_transfer),
        (sum(lower[i - 1][i] - zero[i] for i in (1, 2)) / 2, m.forward_transfer),
        (sum(sum(row) / 3 for row in lower) / 3, m.average_incremental_accuracy),
    ]
    text = (DOCS / "metrics.md").read_text("utf-8").partition("## Other definitions")[2]
    table = re.findall(r"^\| .* \| (-?[\d.]+) \| (-?[\d.]+) \|$", text, re.MULTILINE)
    assert table == [(f"{other:.4f}", f"{ours:.4f}") for other, ours in numbers]
    assert all(abs(other - ours) > 0.005 for other, ours in numbers)


def test_facts_that_pages_repeat():
    text = (DOCS / "metrics.md").read_text("utf-8")
    assert f"{intervals.RESAMPLES} resamples" in text
    padded = ll.AccuracyMatrix(
        columns=("a", "b"), values=((-3.0, -5.0), (-1.0, -2.0)), taught=(0, 1), sizes=(1, 1)
    )
    assert padded.forgetting == -2 and max(0.0, -3.0) - -1.0 == 1


# the stream file


NAMES = [
    (config.Objective, "one objective"), (config.Schedule, "one schedule"), (config.Metric, "one metric"),
    (config.Diagnostic, "one diagnostic"),
    (config.MethodList, "one method or a list"), (config.StageChoice, "stage"),
    (config.GeneralSet, "general set"), (config.Training, "stage settings"), (config.ModelChoice, "model"),
    (config.Source, "source"), (config.GuardChoice, "guard"), (config.Erase, "erase request"),
]  # fmt: skip
INHERITED = {config.StageChoice: config.Training, config.EvalSource: config.Source,
             config.Erase: config.Source}  # fmt: skip


def default(field):
    if field.is_required():
        return "required"
    assert field.default is not PydanticUndefined
    return "-" if field.default in (None, config.Training()) else plain_words.plain_value(field.default)


@pytest.mark.parametrize("cls", [config.RunConfig, config.ModelChoice, config.StageChoice, config.Training,
                                 config.Source, config.EvalSource, config.Erase, config.GeneralSet,
                                 config.GuardChoice])  # fmt: skip
def test_every_key_is_described_with_type_default_and_range(cls):
    text = (DOCS / "stream.md").read_text("utf-8").partition(f"<!-- keys: {cls.__name__} -->\n")[2]
    rows = text.partition("\n\n")[0].splitlines()[2:]
    told = [[part.strip() for part in row.strip("|").split(" | ")] for row in rows]
    parent = INHERITED.get(cls)
    keys = [key for key in cls.model_fields if parent is None or key not in parent.model_fields]
    expected = [
        [f"`{key}`", plain_words.plain_type(mistakes.hints(cls)[key], NAMES), default(cls.model_fields[key]),
         plain_words.plain_range(mistakes.hints(cls)[key])] for key in keys
    ]  # fmt: skip
    assert [row[:4] for row in told] == expected
    assert all(len(row) == 5 and row[4] for row in told), "every key has a meaning"


def test_columns_and_objectives_are_those_of_the_builder():
    text = (DOCS / "stream.md").read_text("utf-8").partition("## Rows")[2]
    rows = re.findall(r"^\| (`.*?`) \| `(\w+)` \|", text, re.MULTILINE)
    assert [(tuple(re.findall(r"`(\w+)`", columns)), name) for columns, name in rows] == list(
        build.BY_COLUMNS
    )
    assert f"without a tuner takes `{build.DEFAULT_TUNER}`" in (DOCS / "stream.md").read_text("utf-8")


def test_candidates_are_those_of_the_table():
    made = tiny_stream.stream(general=False)  # sky, then farm, with two labels each
    sky, farm = (stage.evals[0] for stage in made.stages)
    both = {*sky.labels, *farm.labels}

    def among(kind, each, row):
        return set(evaluation.candidates(dataclasses.replace(made, candidates=kind), each, row))

    assert among("task", sky, 2) == set(sky.labels)
    assert among("seen", sky, 1) == set(sky.labels) and among("seen", sky, 2) == both
    assert among("seen", farm, 1) == both  # still to come: its own labels compete with the old ones
    assert among("all", sky, 1) == both


def test_overrides_of_the_page_read():
    chosen = plain_yaml.parse(blocks(DOCS / "stream.md", "yaml")[0], "first")
    lines = re.findall(r"lifelong run stream\.yaml (\S+=.*)$", (DOCS / "stream.md").read_text(), re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        config.parse(chosen, "first", line.split())


# a new method


def files_of(page):
    """Code blocks that begin with the name of a file."""
    return {m[1]: text for text in blocks(page, "python") if (m := re.match(r"# (\w+\.py)\n", text))}


def make_outsiders(folder, monkeypatch):
    for name, text in files_of(DOCS / "new_method.md").items():
        (folder / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def outsiders(tmp_path, monkeypatch):
    make_outsiders(tmp_path, monkeypatch)
    yield tmp_path
    for name in files_of(DOCS / "new_method.md"):
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_new_method_passes_its_own_tests(outsiders):
    module = importlib.import_module("test_l1")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 4
    for each in tests:
        each()


def test_the_new_method_trains_as_an_outsiders(outsiders):
    base = tiny.model("llama")
    base.network.save_pretrained(outsiders / "base")
    base.processor.save_pretrained(outsiders / "base")
    (text,) = blocks(DOCS / "new_method.md", "yaml")
    (outsiders / "stream.yaml").write_text(text)
    limits = [f"stages.{i}.{part}.limit=16" for i in range(5) for part in ("train", "eval")]
    changes = [f"model={outsiders / 'base'}", f"output={outsiders / 'run'}", "precision=float32", *limits,
               "general.0.data.limit=2", "general.1.data.limit=2", "defaults.batch_size=8"]  # fmt: skip
    chosen = config.read(outsiders / "stream.yaml", changes)
    (run,) = launch.run_config(chosen, outsiders)
    log = read_run(run.folder)["log"]
    first = [line for line in log if line["stage"] == 0]
    later = [line for line in log if line["stage"] > 0]
    assert len(log) == 10 and all("l1" not in line["penalties"] for line in first)
    assert all("l1" in line["penalties"] for line in later)
    assert sum(line["penalties"]["l1"] for line in later) > 0
    assert run.summary["finished"]
    kept = read_run(run.folder)["config"]["methods"]
    assert {"axis": "penalties", "name": "l1:L1", "settings": {"strength": 0.001}} in kept


def test_the_new_method_works_in_a_loop_of_ones_own(outsiders):
    (text,) = [each for each in blocks(DOCS / "new_method.md", "python") if "range(2)" in each]
    names = {}
    exec(compile(text, "example", "exec"), names)
    assert torch.is_tensor(names["held"]) and names["held"] > 0  # the second stage was held


def test_the_new_method_follows_the_rules_of_the_house(outsiders):
    cls = discover.load("l1:L1")
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    text = files_of(DOCS / "new_method.md")["l1.py"]
    assert len(text.splitlines()) <= 150 and cls.paper and cls.cost and len(cls.verified) == 3


# all pages


def anchors(path):
    """Headings as the anchors that a Markdown viewer makes of them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.S | re.M), re.M
    )
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=name_of)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        assert goal.is_file(), f"{name_of(path)} links to {target}"
        assert not anchor or anchor in anchors(goal), f"{name_of(path)} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_pages_are_ascii_and_blocks_are_closed(path):
    text = path.read_text("utf-8")
    assert text.isascii() and text.endswith("\n") and not text.endswith("\n\n")
    assert len(re.findall(r"^```", text, re.MULTILINE)) % 2 == 0
    for language in re.findall(r"^```(\S+)$", text, re.MULTILINE):
        assert language in ("python", "yaml", "text")
    for block in blocks(path, "python"):
        if ">>>" not in block:
            ast.parse(block)


def test_every_page_is_reached_from_another():
    linked = set()
    for path in PAGES:
        for target in re.findall(r"\]\(([^)\s#]+\.md)", path.read_text("utf-8")):
            linked.add((path.parent / target).resolve())
    assert set(PAGES) - linked <= {ROOT / "CONTRIBUTING.md"}


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_commands_exist(path):
    from lifelong.cli.main import app

    verbs = {each.name or each.callback.__name__ for each in app.registered_commands}
    goals = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = path.read_text("utf-8")
    assert set(re.findall(r"(?:^ +|`|\. )lifelong ([a-z]+)", text, re.MULTILINE)) <= verbs
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= set(goals)


def test_commands_test_finds_commands():
    found = re.findall(r"(?:^ +|`|\. )lifelong ([a-z]+)", (DOCS / "stream.md").read_text(), re.MULTILINE)
    assert {"init", "run"} <= set(found)


def test_changelog_names_every_method_and_verb():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## [Unreleased]" in text
    absent = [each.id for each in discover.describe_all() if f"`{each.id}`" not in text]
    assert not absent, f"CHANGELOG.md does not name {', '.join(absent)}"


# sizes


def sources():
    return sorted((ROOT / "lifelong").rglob("*.py"))


def limit(path):
    if path.parent.name in METHOD_AXES and path.stem != "__init__":
        return 150
    return 300 if path == ROOT / "lifelong/core/engine.py" else 400


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text("utf-8")
    length = len(text.splitlines())
    assert length <= limit(path), f"{name_of(path)} has {length} lines; at most {limit(path)}"
    for name, lines in functions(text):
        most = LONGER.get(f"{name_of(path)}:{name}", 40)
        assert lines <= most, f"{name_of(path)}: {name} has {lines} lines; at most {most}"


def functions(text):
    """(name, lines) of every function, from `def` to its end."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.end_lineno - node.lineno + 1


def test_sizes_are_measured_and_exceptions_are_needed():
    text = "def f():\n" + textwrap.indent("x = 1\n" * 40, "    ")
    assert list(functions(text)) == [("f", 41)]
    for place in LONGER:
        file, _, name = place.partition(":")
        assert dict(functions((ROOT / file).read_text()))[name] > 40, f"{place} is short now: drop it here"
