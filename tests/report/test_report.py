"""The page: well formed, self-contained, escaped, and its numbers are those of the runs."""

import copy
import json
import re
import subprocess
import sys

import pytest
import synthetic
from html_page import Page

from lifelong.report import compare, formats
from lifelong.report.build import build_report, write_report


@pytest.fixture(scope="module")
def family():
    return synthetic.family()


@pytest.fixture(scope="module")
def text(family):
    return build_report(family)


def test_page_is_well_formed_and_self_contained(text, family):
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and len(set(page.ids)) == len(page.ids)
    assert {"title", "h1", "h2", "h3", "svg", "table"} <= set(page.tags)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links) and page.links
    assert 'name="viewport"' in text and "prefers-color-scheme:dark" in text and "@media print" in text
    assert len(page.svg_labels) > 40 and all(page.svg_labels)


def test_the_balance_check_sees_a_broken_page(text):
    with pytest.raises(AssertionError):
        Page(text.replace("</section>", "", 1))


def test_size_of_six_runs(family, text):
    assert len(family) == 6 and len(text.encode()) < 300_000
    long = [synthetic.run(m, s, steps=3000) for m in ("ewc", "sequential") for s in (0, 1, 2)]
    assert len(build_report(long).encode()) < 300_000


def test_headline_numbers_are_those_of_the_runs(family, text):
    table = {row[0].split("  ")[0]: row[1:] for row in Page(text).tables[0]}
    table = {next(n for n in (*synthetic.SETTINGS, "Method") if k.startswith(n)): v for k, v in table.items()}
    for name in synthetic.SETTINGS:
        runs = [r for r in family if r["config"]["method_name"] == name]
        for column, metric in enumerate(("average_accuracy", "forgetting", "backward_transfer"), start=1):
            values = [compare.metrics(r)[metric]["value"] for r in runs]
            cell = table[name][column]
            if values[0] is None:
                assert cell == formats.DASH
                continue
            assert cell.startswith(formats.number(100 * sum(values) / len(values)))
            if len(runs) > 1:
                assert cell.endswith(
                    f"{formats.number(100 * min(values))} to {formats.number(100 * max(values))}"
                )
        assert table[name][0] == str(len(runs))
        assert formats.duration(sum(c["seconds"] for c in runs[0]["costs"])) in table[name][6]


def test_interval_of_one_run_is_that_of_its_sets(family):
    group = next(g for g in compare.grouped(family) if g.label == "sequential")
    sets = [s for s in group.runs[0]["evaluations"][-1]["sets"] if not s["general"]]
    expected = sum(((s["high"] - s["low"]) / 2) ** 2 for s in sets) ** 0.5 / 5
    assert group.half_width() == pytest.approx(expected)
    assert f"\u00b1 {100 * expected:.1f}" in build_report(family)
    assert next(g for g in compare.grouped(family) if g.num_seeds == 2).half_width() is None


def test_heat_map_cells_are_the_matrix(family, text):
    run = next(r for r in family if r["config"]["method_name"] == "sequential")
    matrix = run["summary"]["matrix"]
    rows = [[formats.number(100 * a) for a in row] for row in (matrix["untrained"], *matrix["values"])]
    found = [[row[1:] for row in table[1:]] for table in Page(text).tables if table[0][0] == "after stage"]
    assert rows in found and len(found) == 6
    assert text.count('taught">') == 5 * 6  # one outlined cell for each task of each run


def test_bounds_and_story(text, family):
    assert text.count("lower bound</span>") == text.count("upper bound</span>") == 3  # chart, table, heading
    assert "<strong>reservoir</strong> ends at" in text and "No naive" not in text and "No joint" not in text
    lone = build_report([family[0]])
    assert "No naive sequential run" in lone and "No joint run" in lone


def test_hostile_names_are_escaped():
    evil = '<script>alert("x")</script>'
    run = synthetic.run("ewc", tasks=(evil, "b & c", "'\"><img src=x>", "d", "e"))
    run["config"]["name"] = run["config"]["method_name"] = run["folder"] = evil
    run["config"]["model"]["name"] = run["summary"]["visible"] = evil
    run["environment"] = {evil: "</pre>" + evil}
    run["log"][-1]["penalties"] = {evil: 1.0}
    run["summary"]["metrics"][0] |= {"title": evil, "formula": evil}
    text = build_report([run])
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags
    assert text.count("&lt;script&gt;") > 10 and "b &amp; c" in text


@pytest.mark.parametrize("method", ["sequential", "joint"])
def test_one_task(method):
    page = Page(build_report([synthetic.run(method, num_tasks=1)]))
    assert formats.DASH in page.tables[0][1]


@pytest.mark.parametrize("done", [0, 1, 3])
def test_unfinished_runs(done):
    text = build_report([synthetic.run("ewc", done=done), synthetic.run("ewc"), synthetic.run("joint")])
    Page(text)
    assert f"unfinished: {done} of 5 stages" in text and "averaged over the tasks taught so far" in text
    assert len(Page(text).tables[0]) == 4  # the unfinished run is no seed of the finished one


def test_one_model_per_task_is_a_yardstick_with_one_row():
    apart = synthetic.run("joint")
    apart["config"] |= {"stream": "per_task", "method_name": "per_task"}
    apart["config"]["stages"] = synthetic.run("ewc")["config"]["stages"]
    apart["evaluations"][1]["stage"] = "per_task"
    text = build_report([apart, synthetic.run("ewc")])
    assert "1 per_task" in Page(text).tables[1][2] or "1 per_task" in Page(text).tables[3][2]
    assert text.count("a model per task</span>") == 3 and "<strong>ewc</strong> ends at" in text
    assert "unfinished" not in text.partition('id="definitions"')[0].replace("Runs marked unfinished", "")


def test_run_that_has_only_begun():
    run = synthetic.run("ewc")
    run |= {"evaluations": [], "costs": [], "log": [], "summary": {}, "environment": {}}
    text = build_report([run])
    Page(text)
    assert "No run has ended yet" in text and "unfinished: 0 of 5 stages" in text


def test_holes_and_broken_losses_are_dashes_not_zeros():
    run = synthetic.run("ewc")
    run["summary"]["matrix"]["values"] = [
        [a if i <= k else None for i, a in enumerate(row)]
        for k, row in enumerate(run["summary"]["matrix"]["values"])
    ]
    run["log"][5]["loss"] = float("nan")
    run["log"][6]["loss"] = None
    for each in run["costs"]:
        del each["peak_memory_bytes"]  # unknown on some devices
    text = build_report([run])
    Page(text)
    assert text.count('class="hole') == 10 and not re.search("[MLd ]nan|>nan", text)


def test_likelihood_tasks_show_no_percent():
    run = synthetic.run("ewc")
    for row in run["evaluations"]:
        for each in row["sets"]:
            each |= {
                "unit": "",
                "metric": "Perplexity",
                "value": 5.0,
                "benefit": -1.609,
                "low": 4.0,
                "high": 6.0,
            }
    text = build_report([run])
    Page(text)
    assert (
        "Average accuracy<" in text and "mean log-likelihood per token" in text and "less is better" in text
    )


def test_runs_are_grouped_by_all_but_seed_and_order():
    runs = [
        synthetic.run("ewc", 0),
        synthetic.run("ewc", 1),
        synthetic.run("ewc", 2, settings={"strength": 2.0}),
    ]
    runs[1]["config"]["stages"].reverse()
    groups = compare.grouped(runs)
    assert sorted((g.label, g.num_seeds) for g in groups) == [
        ("ewc (strength 10.0)", 2),
        ("ewc (strength 2.0)", 1),
    ]
    other = copy.deepcopy(runs[0])
    other["config"]["model"]["fingerprint"] = "beef"
    text = build_report([runs[0], other])
    assert "did not start from the same model" in text and "did not start" not in build_report(runs)
    fewer = synthetic.run("ewc", num_tasks=3)
    assert "not judged on the same tasks" in build_report([runs[0], fewer])


def test_write_report_reads_folders(tmp_path, family):
    folders = [_write(tmp_path / str(i), run) for i, run in enumerate(family[:2])]
    output = write_report(folders, tmp_path / "new" / "report.html")
    assert output.read_text(encoding="utf-8") == build_report(
        [
            run | {"folder": str(f), "config": run["config"] | {"fingerprint": "f00d"}}
            for run, f in zip(family[:2], folders, strict=True)
        ]
    )


def _write(folder, run):
    folder.mkdir()
    for name in ("config", "environment", "summary"):
        mark = {"fingerprint": "f00d"} if name == "config" else {}
        (folder / f"{name}.json").write_text(json.dumps(run[name] | mark))
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in run["log"]))
    for k, evaluation in enumerate(run["evaluations"]):
        stage = folder / "stages" / f"{k:03d}-x"
        stage.mkdir(parents=True)
        (stage / "evaluation.json").write_text(json.dumps(evaluation))
        if k:
            (stage / "cost.json").write_text(json.dumps(run["costs"][k - 1]))
    return folder


def test_no_torch():
    code = "import sys, lifelong.report.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_erased_cells_are_marked_and_count_in_no_interval(family):
    run = copy.deepcopy(next(r for r in family if r["config"]["method_name"] == "sequential"))
    assert "Struck through" not in build_report([run]) and 'erased"' not in build_report([run])
    whole = compare.grouped([run])[0].half_width()
    run["summary"]["matrix"]["erased"] = [2, None, None, None, None]  # by the third stage
    marked = build_report([run])
    assert marked.count('erased"><s>') == 3 and "Struck through" in marked
    assert compare.grouped([run])[0].half_width() != whole
