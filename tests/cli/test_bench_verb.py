"""`lifelong bench`: runs, bounds, resume, failures, and what its table says."""

import csv
import json

import pytest
import yaml
from torch import nn

from lifelong import bench as runs
from lifelong import standings
from lifelong.errors import UserError
from lifelong.report import formats
from lifelong.report.standings import as_markdown, write_standings
from lifelong.store.files import write_json
from lifelong.streams import bench_file


@pytest.fixture
def bench(project, saved_model):
    """Writes bench.yaml beside the data of `project`; a call changes its keys."""
    stream = yaml.safe_load((project / "stream.yaml").read_text())

    def write(**changes):
        content = {
            "name": "small", "stream": stream, "output": "out", "seeds": [0, 1], "workers": 1,
            "methods": {"l2": ["lora", {"l2": {"strength": 1.0}}]},
        } | changes  # fmt: skip
        (project / "bench.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return project / "bench.yaml"

    return write


def test_runs_bounds_failures_and_resume(lifelong, bench, project):
    methods = {"l2": ["lora", {"l2": {"strength": 1.0}}], "lost": {"lora": {"targets": ["nowhere"]}}}
    said = lifelong("bench", bench(methods=methods), "--json")
    assert said.status == 0
    rows = {row["label"]: row for row in json.loads(said.out)["rows"]}
    assert set(rows) == {"sequential", "joint", "per_task", "l2", "lost"}
    assert rows["lost"]["runs"] == 0 and "nowhere" in rows["lost"]["problem"]
    assert all(rows[name]["runs"] == 2 and not rows[name]["problem"] for name in set(rows) - {"lost"})
    assert rows["sequential"]["time"] == 1.0 and rows["joint"]["time"] > 0
    assert rows["l2"]["tied"] and not rows["joint"]["tied"]  # the only method is the best; bounds are none
    low, high = rows["l2"]["interval"]
    assert low <= rows["l2"]["average_accuracy"] <= high
    apart = rows["l2"]["difference"]
    plain = rows["sequential"]["average_accuracy"]
    assert apart["value"] == pytest.approx(rows["l2"]["average_accuracy"] - plain)
    assert apart["low"] <= apart["value"] <= apart["high"]

    first = project / "out" / "l2" / "order0-seed1"
    kept = (first / "summary.json").stat().st_mtime_ns
    untrained = (first / "stages" / "000-untrained" / "evaluation.json").read_text()
    other = project / "out" / "sequential" / "order0-seed0" / "stages" / "000-untrained" / "evaluation.json"
    assert untrained == other.read_text()  # measured once
    (first / "report.html").unlink()  # as if the process had been killed before it
    again = lifelong("bench", bench(methods={"l2": methods["l2"]}))
    assert again.status == 0 and (first / "summary.json").stat().st_mtime_ns == kept
    table = (project / "out" / "bench.md").read_text()
    assert "l2" in table and "lost" not in table
    with (project / "out" / "bench.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["label"] for line in lines} == {"sequential", "joint", "per_task", "l2"}
    page = (project / "out" / "bench.html").read_text()
    assert "l2/order0-seed1/report.html" in page and (first / "report.html").exists()
    _check_curves(project / "out", rows)


def _check_curves(folder, rows):
    """Every cell of the matrices from the stage that taught it on, and their averages."""
    with (folder / "bench.curves.csv").open() as file:
        lines = list(csv.DictReader(file))
    for label in ("sequential", "l2", "joint", "per_task"):
        ends = []
        for seed in (0, 1):
            summary = json.loads((folder / label / f"order0-seed{seed}" / "summary.json").read_text())
            mine = [line for line in lines if line["label"] == label and line["seed"] == str(seed)]
            cells = {(line["stage"], line["task"]): float(line["value"]) for line in mine}
            matrix = summary["matrix"]["values"]
            first, second = ([row[i] for row in matrix] for i in (0, 1))
            told = {
                ("2", "sky"): first[-1],
                ("2", "farm"): second[-1],
                ("2", ""): (first[-1] + second[-1]) / 2,
            }
            if len(matrix) == 2:  # bounds are judged once, at the end
                told |= {("1", "sky"): first[0], ("1", ""): first[0]}
            assert cells == pytest.approx(told)
            assert {line["place"] for line in mine if line["task"] == "farm"} == {"2"}
            ends.append(cells["2", ""])
        assert sum(ends) / 2 == pytest.approx(rows[label]["average_accuracy"])


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"methods": {"l2": ["lora", {"l2": {"strength": 2.0}}]}}, "methods"),
        ({"methods": {"l2": {"method": ["lora", "l2"], "changes": ["defaults.epochs=2"]}}}, "stages"),
        ({}, "stages"),
    ],
    ids=["method", "budget", "rows"],
)
def test_a_finished_run_of_other_settings_or_rows_is_not_shown(lifelong, bench, project, changes, differs):
    small = {"bounds": False, "seeds": [0], "methods": {"l2": ["lora", "l2"]}}
    assert lifelong("bench", bench(**small)).status == 0
    assert lifelong("bench", bench(**small)).status == 0
    if not changes:
        rows = (project / "sky.train.jsonl").read_text().splitlines()
        (project / "sky.train.jsonl").write_text("\n".join(rows[1:]) + "\n")
    said = lifelong("bench", bench(**small | changes))
    assert said.status == 2 and "out/l2/order0-seed0 is finished, with other settings or rows" in said.err
    assert f"differs in {differs}" in said.err


def test_the_untrained_model_is_judged_once_for_all_paces_and_anew_for_other_rows(bench):
    def rows(*changes):
        methods = {"a": "lora", "b": {"method": "lora", "changes": list(changes)}}
        found = bench_file.read(bench(methods=methods, bounds=False, seeds=[0])).cells
        return found[0].rows == found[1].rows

    assert rows("defaults.learning_rate=1", "defaults.epochs=3", "stages.sky.weight_decay=1")
    assert not rows("stages.sky.eval.limit=2") and not rows("candidates=all")
    assert not rows("stages.sky.objective={classification: {template: 'x {text}'}}")


def test_a_worker_computes_features_of_evaluation_rows_once_for_all_methods_and_seeds(bench, project):
    """Rows to be learned pass through the body in every run: their time is compared."""
    stream = yaml.safe_load((project / "stream.yaml").read_text()) | {"general": [], "candidates": "seen"}
    stream["defaults"]["objective"] = {"classification": {"head": "linear"}}
    methods = {"nmc": ["frozen", "nmc"], "acu": ["frozen", "acu"], "lora": ["lora", "nmc"]}
    worker, passes, seen = {}, [], []

    def count(module, *_):
        seen.extend([module] * (type(module).__name__ == "LlamaModel"))

    hook = nn.modules.module.register_module_forward_hook(count)
    try:
        for cell in bench_file.read(bench(stream=stream, methods=methods, bounds=False)).cells:
            runs.make(cell, None, worker)
            passes.append(len(seen))
            seen.clear()
    finally:
        hook.remove()
    learned, judged = 2, 2  # stages; evaluation sets, each judged after both stages
    frozen = [learned + judged, learned, learned, learned]  # nmc and acu with two seeds each
    assert passes == frozen + 2 * [learned + 2 * judged]


MISTAKES = {
    "unknown key": ({"methodz": {}}, ["unknown key `methodz`", "`methods`"]),
    "no method": ({"methods": {}}, ["methods: name at least one"]),
    "misspelt method": ({"methods": {"a": "reservor"}}, ["reservor", "`reservoir`"]),
    "conflict": ({"methods": {"a": ["o_lora", "ewc"]}}, ["a, order 0", "fresh weights"]),
    "seed twice": ({"seeds": [1, 1]}, ["none twice"]),
    "order": ({"orders": [["sky", "fram"]]}, ["orders[0]", "sky, farm"]),
    "pairs": ({"orders": 3, "paired": True}, ["as many orders as seeds", "3 and 2"]),
    "folder": ({"methods": {"a/b": "lora"}}, ["`a/b`", "no `/`"]),
    "one folder": ({"methods": {"a b": "lora", "a-b": "full"}}, ["`a-b` and `a b` would share the folder"]),
    "change": ({"methods": {"a": {"method": "lora", "changes": ["defalts.epochs=2"]}}},
               ["methods.a", "defalts"]),
    "missing data": ({"stream": {"model": "m", "stages": [], "defaults": {"epochs": 1}}}, ["stages"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_before_anything_starts(lifelong, bench, project, changes, words):
    said = lifelong("bench", bench(**changes))
    assert said.status == 2 and "Traceback" not in said.err
    for word in words:
        assert word in said.err
    assert not (project / "out").exists()


def test_orders_are_drawn_once_and_paired_with_seeds(bench):
    found = bench_file.read(bench(orders=[["sky", "farm"], ["farm", "sky"]], paired=True, bounds=False))
    assert [(c.order, c.seed, [s.name for s in c.chosen.stages]) for c in found.cells] == [
        (0, 0, ["sky", "farm"]), (1, 1, ["farm", "sky"])
    ]  # fmt: skip
    drawn = [[c.chosen.stages[0].name for c in bench_file.read(bench(orders=4)).cells] for _ in range(2)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 4 * 4 * 2
    with pytest.raises(UserError, match="no bench file"):
        bench_file.read("nothing.yaml")


def test_a_bench_without_runs_shows_that(bench, tmp_path):
    found = standings.of(bench_file.read(bench()))
    assert all(row["runs"] == 0 and row["average_accuracy"] is None for row in found["rows"])
    assert write_standings(found, tmp_path / "page").exists()


def test_what_was_erased_stands_in_the_table_of_a_stream_that_erases(bench):
    found = standings.of(bench_file.read(bench()))
    assert "erase" not in as_markdown(found)
    found["rows"][0] |= {"erased_accuracy": 0.25, "erasure_gap": -0.05}
    head, _, first, second, *_ = as_markdown(found).splitlines()
    told = [dict(zip(head.split(" | "), row.split(" | "), strict=True)) for row in (first, second)]
    assert [row["accuracy on what was erased, %"] for row in told] == ["25.0", formats.DASH]
    assert [row["erasure gap, points"] for row in told] == [f"{formats.MINUS}5.0", formats.DASH]


def test_what_was_erased_counts_in_no_interval(lifelong, bench, project):
    stream = yaml.safe_load((project / "stream.yaml").read_text())
    stream["stages"].append({"name": "gone", "erase": "sky"})
    methods = {"gs_lora": ["o_lora", {"gs_lora": {"bound": 5.0}}]}
    said = lifelong("bench", bench(stream=stream, methods=methods, bounds=False, seeds=[0]), "--json")
    (row,) = json.loads(said.out)["rows"]
    answers = (project / "out" / "gs_lora" / "order0-seed0" / "stages" / "003-gone" / "answers.jsonl").open()
    lines = [json.loads(line) for line in answers]
    left = [line["score"] for line in lines if line["set"] == "farm"]
    assert row["average_accuracy"] == pytest.approx(sum(left) / len(left))
    assert row["erased_accuracy"] is not None and any(line["set"] == "sky" for line in lines)
    cells = bench_file.read(project / "bench.yaml").cells
    runs = [standings.read_run(cell.folder) for cell in cells]
    assert [table.tolist() for table in standings._tables(cells, runs).scores] == [[left]]


def test_diagnostics_stand_beside_accuracy(lifelong, bench, project):
    stream = yaml.safe_load((project / "stream.yaml").read_text())
    stream["diagnostics"] = ["linear_probe", "rankme"]
    said = lifelong("bench", bench(stream=stream, bounds=False), "--json")
    assert said.status == 0
    told, ranks, probes = {}, [], []
    for seed in (0, 1):
        last = sorted((project / "out" / "l2" / f"order0-seed{seed}" / "stages").iterdir())[-1]
        for each in json.loads((last / "diagnostics.json").read_text())["diagnostics"]:
            told |= {(str(seed), each["id"], name): value for name, value in each["figures"].items()}
        ranks.append(told[str(seed), "rankme", "effective_rank"])
        probes += [told[str(seed), "linear_probe", f"{name} probe"] for name in ("sky", "farm")]
    with (project / "out" / "bench.diagnostics.csv").open() as file:
        lines = {(r["seed"], r["diagnostic"], r["figure"]): float(r["value"]) for r in csv.DictReader(file)}
    assert lines == pytest.approx(told)
    head, _, row = (
        (project / "out" / "bench.md").read_text().rpartition("diagnostics saw")[2].splitlines()[2:5]
    )
    shown = dict(zip(*(line.strip("| ").split(" | ") for line in (head, row)), strict=True))
    assert shown["rankme: effective rank, more is better"] == formats.number(sum(ranks) / 2, 3)
    assert shown["linear_probe: probe, more is better"] == formats.number(sum(probes) / 4, 3)
    assert "Inside the models" in (project / "out" / "bench.html").read_text()


def test_runs_from_before_there_were_brief_figures_show_all(lifelong, bench, project):
    stream = yaml.safe_load((project / "stream.yaml").read_text())
    stream["diagnostics"] = ["rankme"]
    assert lifelong("bench", bench(stream=stream, bounds=False)).status == 0
    for file in (project / "out").rglob("diagnostics.json"):
        content = json.loads(file.read_text())
        content.pop("checksum", None)
        for each in content["diagnostics"]:
            del each["brief"]
        write_json(file, content)
    assert lifelong("bench", bench(stream=stream, bounds=False)).status == 0
    assert "rankme: rows, more is better" in (project / "out" / "bench.md").read_text()
