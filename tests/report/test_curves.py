"""Accuracy over the stream, of every method of a bench: its numbers against hand-made matrices."""

import csv
import io
import json
import re
from pathlib import Path

import bench_page
import html_page
import pytest

from lifelong import standings
from lifelong.core.axes import MatrixMetric
from lifelong.core.discover import load
from lifelong.core.matrix import AccuracyMatrix
from lifelong.report import curves
from lifelong.report.standings import as_page, curves_as_markdown

AB = {"columns": ("a", "b"), "values": ((0.9, 0.1), (0.5, 0.8))}
BA = {"columns": ("b", "a"), "values": ((0.7, 0.2), (0.3, 0.6))}


def run(columns, values, taught=None, erased=(), order=0, seed=0, stream="sequence"):
    """As much of a run as its curve needs."""
    matrix = AccuracyMatrix(
        columns=columns, values=values, taught=taught or tuple(range(len(columns))), erased=erased,
        sizes=(10,) * len(columns), untrained=(0.0,) * len(columns),
    )  # fmt: skip
    summary = {"matrix": json.loads(json.dumps(matrix.to_dict()))}
    return {"order": order, "config": {"seed": seed, "stream": stream}, "summary": summary}


def curve(*args, plans=None, **settings):
    return standings.curve(run(*args, **settings), plans or {})


def tasks_of(found):
    return {task["name"]: task for task in found["tasks"]}


def test_a_curve_is_the_matrix_from_the_stage_that_taught_on():
    found = curve(**AB, seed=3)
    assert (found["order"], found["seed"], found["stages"]) == (0, 3, [1, 2])
    assert [task["values"] for task in found["tasks"]] == [[0.9, 0.5], [None, 0.8]]  # not the 0.1 before
    assert [(task["name"], task["place"], task["erased"]) for task in found["tasks"]] == [
        ("a", 1, None), ("b", 2, None),
    ]  # fmt: skip
    assert found["average"] == pytest.approx([0.9, 0.65])  # the 0.1 of what was not taught counts nowhere


def test_its_last_average_is_average_accuracy():
    values = ((0.9, 0.1, 0.2), (0.5, 0.8, 0.3), (0.4, 0.7, 0.6), (0.3, 0.1, 0.5))
    one = run(("a", "b", "c"), values, erased=(None, 3, None))
    matrix = AccuracyMatrix.from_dict(one["summary"]["matrix"])
    for name, value in (
        ("average_accuracy", lambda average: average[-1]),
        ("average_incremental_accuracy", lambda average: sum(average) / len(average)),
    ):
        cls = load(name, "metrics")
        assert issubclass(cls, MatrixMetric)
        assert cls().value(matrix) == pytest.approx(value(standings.curve(one, {})["average"]))


def test_what_is_erased_leaves_the_average_and_is_dashed():
    found = curve(("a", "b"), ((0.9, 0.1), (0.8, 0.7), (0.2, 0.6)), erased=(2, None))
    assert found["average"] == pytest.approx([0.9, 0.75, 0.6])  # not (0.2 + 0.6) / 2
    assert [task["erased"] for task in found["tasks"]] == [3, None]
    drawn = bench_page.figures([bench_page.row("x", [found])])
    lines = drawn["plots"]["x"].lines
    assert [(line.kind, line.points) for line in lines if line.kind.startswith("task")] == [
        ("task", ((1.0, 0.9), (2.0, 0.8))),
        ("task erased", ((2.0, 0.8), (3.0, 0.2))),
        ("task", ((2.0, 0.7), (3.0, 0.6))),
    ]
    assert lines[1].title == "task 1, a: 90.0 % after stage 1, 20.0 % after stage 3, erased from stage 3"
    assert drawn["erased"] and not bench_page.figures([bench_page.row("x", [curve(**AB)])])["erased"]


def test_a_bound_is_judged_at_the_end_with_the_places_of_its_order():
    plans = {1: AccuracyMatrix.from_dict(run(**BA)["summary"]["matrix"])}
    bound = {"columns": ("a", "b"), "values": ((0.9, 0.5),), "taught": (0, 0), "order": 1, "stream": "joint"}
    found = curve(**bound, plans=plans)
    assert found["stages"] == [2] and found["average"] == pytest.approx([0.7])
    assert {name: task["place"] for name, task in tasks_of(found).items()} == {"a": 2, "b": 1}
    alone = curve(**bound)  # no run of this order tells when a task comes
    assert alone["stages"] == [1] and {task["place"] for task in alone["tasks"]} == {1}
    lines = bench_page.figures([bench_page.row("joint", [found])])["plots"]["joint"].lines
    assert [(line.kind, line.points) for line in lines] == [
        ("task alone", ((2.0, 0.5),)), ("task alone", ((2.0, 0.9),)), ("main alone", ((2.0, 0.7),)),
    ]  # fmt: skip


def test_tasks_are_aligned_by_their_place_in_the_order():
    first, second = curves.tasks([curve(**AB), curve(**BA, order=1)])
    assert first.values == pytest.approx({1: (0.9 + 0.7) / 2, 2: (0.5 + 0.3) / 2})
    assert second.values[2] == pytest.approx((0.8 + 0.6) / 2) and second.values[1] is None
    assert (first.name, second.name) == ("", "")
    same = curves.tasks([curve(**AB), curve(**AB, seed=1)])
    assert [(task.name, task.place) for task in same] == [("a", 1), ("b", 2)]


def test_sets_of_one_stage_stay_apart():
    found = curves.tasks([curve(("a", "a.gone"), ((0.9, 0.4),), taught=(0, 0), erased=(None, 0))])
    assert [(task.place, task.name, task.values[1], task.erased) for task in found] == [
        (1, "a", 0.9, None), (1, "a.gone", 0.4, 1),
    ]  # fmt: skip


def test_the_average_has_its_range_over_runs():
    found = curves.averages([curve(**AB), curve(**BA)])
    assert found[1] == curves.Spread(pytest.approx(0.8), 0.7, 0.9)
    assert found[2] == curves.Spread(pytest.approx(0.55), pytest.approx(0.45), pytest.approx(0.65))
    plot = bench_page.figures([bench_page.row("x", [curve(**AB), curve(**BA)])])["plots"]["x"]
    assert plot.bands == ((1.0, 0.7, 0.9), (2.0, pytest.approx(0.45), pytest.approx(0.65)))
    assert plot.note == "55.0 %"
    assert plot.label == "x: average over the tasks seen 80.0 % after stage 1, 55.0 % after stage 2"


def test_a_hole_is_no_zero():
    holed = curve(("a",), ((0.9,), (None,), (0.7,), (0.6,)))
    assert holed["average"] == [0.9, None, 0.7, 0.6]
    (task,) = curves.tasks([holed, curve(("a",), ((0.5,), (0.5,), (0.5,), (0.4,)))])
    assert task.values == pytest.approx({1: 0.7, 2: None, 3: 0.6, 4: 0.5})
    plot = bench_page.figures([bench_page.row("x", [holed])])["plots"]["x"]
    pieces = [(line.kind, [x for x, _ in line.points]) for line in plot.lines]
    assert pieces == [
        ("task alone", [1.0]),
        ("task", [3.0, 4.0]),
        ("main alone", [1.0]),
        ("main", [3.0, 4.0]),
    ]
    assert "after stage 2" not in plot.label
    heads, rows = curves.table(bench_page.standings([bench_page.row("x", [holed])]))
    assert heads == ["method", "stage 1", "stage 2", "stage 3", "stage 4"]
    assert rows == [["x", "90.0", "\u2013", "70.0", "60.0"]]


def test_lines_lie_where_the_axes_say():
    whole = curve(("a", "b"), ((1.0, 0.0), (0.0, 0.5)))  # so that the axis goes from 0 to 1
    plot = bench_page.figures([bench_page.row("x", [whole])])["plots"]["x"]
    assert (plot.low, plot.high, plot.span, plot.ticks) == (0.0, 1.0, (1.0, 2.0), ("100", "0"))
    paths = re.findall(r'<path class="([a-z ]+)" d="([^"]+)"', plot.svg())
    assert paths == [
        ("task", "M0 0L100 100"), ("task alone", "M100 50h0"), ("main", "M0 0L100 75"),
    ]  # fmt: skip


def test_the_bounds_stand_behind_every_other_method():
    plans = {0: AccuracyMatrix.from_dict(run(**AB)["summary"]["matrix"])}
    upper = curve(("a", "b"), ((0.9, 0.7),), taught=(0, 0), stream="joint", plans=plans)
    rows = [("sequential", curve(**AB)), ("joint", upper), ("x", curve(**BA))]
    plots = bench_page.figures([bench_page.row(label, [each]) for label, each in rows])["plots"]
    behind = {
        label: {line.kind: line.points for line in plot.lines if line.kind in ("naive", "upper")}
        for label, plot in plots.items()
    }
    level, before = ((1.0, 0.8), (2.0, 0.8)), ((1.0, 0.9), (2.0, 0.65))
    assert behind == {
        "sequential": {"upper": level},
        "joint": {"naive": before},
        "x": {"naive": before, "upper": level},
    }


def test_every_number_stands_in_the_csv():
    found = curve(("a", "b"), ((0.9, 0.1), (None, 0.7), (0.2, 0.6)), erased=(2, None), order=1, seed=4)
    text = curves.as_csv(bench_page.standings([bench_page.row("x, y", [found])]))
    lines = list(csv.DictReader(io.StringIO(text)))
    assert all((line["label"], line["order"], line["seed"]) == ("x, y", "1", "4") for line in lines)
    keys = ("stage", "task", "place", "erased", "value")
    assert [tuple(line[key] for key in keys) for line in lines] == [
        ("1", "a", "1", "False", "0.9"), ("1", "", "", "", "0.9"),
        ("2", "a", "1", "False", ""), ("2", "b", "2", "False", "0.7"), ("2", "", "", "", ""),
        ("3", "a", "1", "True", "0.2"), ("3", "b", "2", "False", "0.6"), ("3", "", "", "", "0.6"),
    ]  # fmt: skip


def test_figures_that_are_no_shares_have_an_axis_of_their_own():
    found = curve(("a", "b"), ((-2.0, -4.0), (-2.5, -3.0)))
    plot = bench_page.figures([bench_page.row("x", [found])], percent=False)["plots"]["x"]
    assert plot.low < -3 and -2 < plot.high < 0 and plot.note == "\u22122.750" and "%" not in plot.label


def test_a_method_that_lacks_runs_says_so():
    row = bench_page.row("x", [curve(**AB)]) | {"planned": 3}
    assert "<small>1 of 3 runs</small>" in bench_page.page([row])
    assert "runs</small>" not in bench_page.page([bench_page.row("x", [curve(**AB)])])


def test_a_stream_of_one_stage_has_no_curves():
    rows = [bench_page.row("x", [curve(("a",), ((0.9,),))])]
    assert bench_page.figures(rows) is None
    assert 'id="curves"' not in bench_page.page(rows)
    assert 'id="curves"' in bench_page.page([bench_page.row("x", [curve(**AB)])])


def test_the_page_is_well_formed_and_leads_from_the_table_to_the_charts():
    page = html_page.Page(bench_page.page(bench_page.many(4, 5, 2)))
    assert len(set(page.ids)) == len(page.ids) and len(page.svg_labels) == 4 + 2 and all(page.svg_labels)
    inside = [link[1:] for link in page.links if link.startswith("#")]
    assert len(inside) == 4 and set(inside) <= set(page.ids)
    assert not [link for link in page.links if "//" in link]  # nothing is loaded from elsewhere
    table, averages = page.tables
    assert [len(row) for row in averages] == [6] * 5 and averages[1][1:5] == ["\u2013"] * 4  # joint
    assert averages[1][5] in page.svg_labels[2] and len(table) == 5


def test_names_are_escaped():
    evil = '<script>alert("x")</script>'
    found = curve((evil, "b & c"), AB["values"])
    text = bench_page.page([bench_page.row(evil, [found])])
    assert text.count("<script>") == 1 and evil not in text  # the page's own
    assert text.count("&lt;script&gt;") > 4 and "task 2, b &amp; c: " in text


@pytest.mark.parametrize(("num_stages", "num_lines"), [(10, 10), (80, curves.TASKS)])
def test_the_page_stays_small(num_stages, num_lines):
    text = bench_page.page(bench_page.many(45, num_stages, 3))
    assert len(text.encode()) < 1_000_000
    chart = re.search(r'<figure id="curve-40">.*?</figure>', text, re.DOTALL)[0]
    lines = re.findall(r'<path class="task[a-z ]*" d="([^"]+)"', chart)
    assert len(lines) == num_lines and max(d.count("L") + 1 for d in lines) == min(num_stages, curves.POINTS)
    assert ("tasks, 12 are drawn" in text) == (num_stages > 12) and text.count('<figure id="curve-') == 45


def test_of_many_stages_both_ends_are_drawn():
    assert curves.picked(5, 12) == [0, 1, 2, 3, 4]
    found = curves.picked(100, 12)
    assert len(set(found)) == 12 and (found[0], found[-1]) == (0, 99)
    assert {b - a for a, b in zip(found, found[1:], strict=False)} == {9}


def test_every_run_is_a_link_to_its_report():
    folders = [f"a #1 50%/order0-seed{seed}" for seed in (0, 1)]
    text = bench_page.page([bench_page.row("a #1 50%", [curve(**AB), curve(**AB, seed=1)], folders)])
    assert re.findall(r'<a href="([^"#]+report.html)">([^<]+)</a> <small>([^<]+)<', text) == [
        ("a%20%231%2050%25/order0-seed0/report.html", "65.0", "order 0, seed 0"),
        ("a%20%231%2050%25/order0-seed1/report.html", "65.0", "order 0, seed 1"),
    ]


def test_links_start_from_the_page():
    row = bench_page.row("x", [curve(**AB)], ["runs/x/order0-seed0"])
    address = '<a href="../runs/x/order0-seed0/report.html">'
    assert address in as_page(bench_page.standings([row]), Path("pages"))


def test_markdown_has_the_averages():
    rows = [bench_page.row("x|y", [curve(**AB), curve(**BA)]), bench_page.row("lost", [])]
    _, title, _, head, _, line = curves_as_markdown(bench_page.standings(rows)).splitlines()
    assert title == "Average accuracy over the tasks seen, after each stage, mean over runs, %:"
    assert (head, line) == ("| method | stage 1 | stage 2 |", "| x\\|y | 80.0 | 55.0 |")
