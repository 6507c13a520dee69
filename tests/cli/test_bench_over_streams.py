"""`lifelong bench` on several streams: a table for each, as if it were alone, and one over all."""

import csv
import json
import shutil

import pytest
import tiny_stream
import yaml

from lifelong import across
from lifelong.bench import FAILED
from lifelong.report.standings import as_markdown
from lifelong.store.files import write_json
from lifelong.streams import bench_file

METHODS = {"l2": ["lora", {"l2": {"strength": 1.0}}], "replay": ["lora", {"reservoir": {"size": 8}}]}
RATES = {"search": {"defaults.learning_rate": [1e-9, 3e-3]}}


@pytest.fixture
def bench(project):
    """Writes bench.yaml with two streams: that of `project`, and one of other rows in a folder of its own."""
    (project / "else").mkdir()
    for name in ("sky", "farm"):
        for part, count, seed in (("train", 16, 5), ("test", 10, 6)):
            tiny_stream.write_rows(
                project / "else" / f"{name}.{part}.jsonl", tiny_stream.rows(name, count, seed)
            )
    content = yaml.safe_load((project / "stream.yaml").read_text())
    content |= {"general": []}
    content["defaults"] |= {"epochs": 2}
    (project / "else" / "stream.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def write(file="bench.yaml", **changes):
        content = {
            "name": "both", "output": "out", "seeds": [0, 1], "workers": 1, "methods": METHODS,
            "streams": {"here": "stream.yaml", "else": "else/stream.yaml"},
        } | changes  # fmt: skip
        written = {key: value for key, value in content.items() if value is not None}
        (project / file).write_text(yaml.safe_dump(written, sort_keys=False))
        return project / file

    return write


def rows(said, *tables):
    """Lines of a table by method."""
    found = json.loads(said.out)
    for name in tables:
        found = found["tables"][name]
    return {row["label"]: row for row in found["rows"]}


def test_every_stream_has_its_own_table_and_all_of_them_one(lifelong, bench, project):
    said = lifelong("bench", bench(), "--json")
    assert said.status == 0
    whole, parts = rows(said), {name: rows(said, name) for name in ("here", "else")}
    assert set(whole) == {"sequential", "joint", "per_task", "l2", "replay"}
    for label, row in whole.items():
        ends = [parts[name][label] for name in parts]
        for key in ("average_accuracy", "time", "kept_bytes"):
            assert row[key] == pytest.approx(sum(each[key] for each in ends) / 2)
        assert [row["on here"], row["on else"]] == [each["average_accuracy"] for each in ends]
        assert row["interval"][0] <= row["average_accuracy"] <= row["interval"][1]
        assert row["runs"] == row["planned"] == 4
        assert row["peak_memory_bytes"] == max(each["peak_memory_bytes"] for each in ends)
    assert whole["l2"]["rank"] == sum(parts[name]["l2"]["rank"] for name in parts) / 2
    apart, naive = whole["replay"]["difference"], whole["sequential"]["average_accuracy"]
    assert apart["value"] == pytest.approx(whole["replay"]["average_accuracy"] - naive)
    best = max(("l2", "replay"), key=lambda label: whole[label]["average_accuracy"])
    assert whole[best]["tied"] and not whole["joint"]["tied"]

    # alone, a stream gives the same runs and the same intervals
    alone = bench("alone.yaml", streams=None, stream="else/stream.yaml", output="alone")
    single = rows(lifelong("bench", alone, "--json"))
    for label, row in parts["else"].items():
        for key in ("average_accuracy", "interval", "difference", "rank", "tied", "kept_bytes"):
            assert row[key] == single[label][key]

    page = (project / "out" / "bench.html").read_text()
    assert 'href="here/bench.html"' in page and 'href="else/bench.html"' in page
    for name in parts:
        assert (project / "out" / name / "bench.html").exists()
        assert f"| on {name}, % |" in (project / "out" / "bench.md").read_text()
        assert "l2/order0-seed1/report.html" in (project / "out" / name / "bench.html").read_text()
    with (project / "out" / "bench.csv").open() as file:
        lines = {line["label"]: line for line in csv.DictReader(file)}
    assert float(lines["l2"]["on else"]) == whole["l2"]["on else"]

    kept = (project / "out" / "else" / "l2" / "order0-seed0" / "summary.json").stat().st_mtime_ns
    assert "mean over streams, which count alike".casefold() in lifelong("bench", bench()).out.casefold()
    assert kept == (project / "out" / "else" / "l2" / "order0-seed0" / "summary.json").stat().st_mtime_ns


def test_intervals_are_narrower_over_two_streams_than_on_the_wider_one(lifelong, bench):
    said = lifelong("bench", bench(bounds=False), "--json")
    spans = [rows(said, *name)["l2"]["interval"] for name in ((), ("here",), ("else",))]
    whole, one, other = (high - low for low, high in spans)
    half = ((one**2 + other**2) ** 0.5) / 2  # of independent draws
    assert whole == pytest.approx(half, rel=0.35) and whole < max(one, other)


def test_what_fails_on_one_stream_has_no_mean(lifelong, bench, project):
    file = bench(bounds=False, seeds=[0])
    assert lifelong("bench", file).status == 0
    folder = project / "out" / "else" / "l2" / "order0-seed0"
    shutil.rmtree(folder)
    write_json(folder.with_name(f"{folder.name}.{FAILED}"), {"problem": "no room"})
    whole, parts = across.of(bench_file.read(file))
    found = {row["label"]: row for row in whole["rows"]}
    assert found["l2"]["average_accuracy"] is None and found["l2"]["interval"] is None
    assert found["l2"]["problem"] == "else: no room" and found["l2"]["runs"] == 1
    assert found["replay"]["tied"] and found["replay"]["runs"] == 2 and whole["rows"][-1] is found["l2"]
    assert parts["here"]["rows"][-1]["average_accuracy"] is not None
    assert "l2" in as_markdown(whole)


def test_a_stream_has_orders_of_its_own(lifelong, bench, project):
    two = {"stream": "else/stream.yaml", "orders": [["farm", "sky"], ["sky", "farm"]]}
    asked = bench(streams={"here": "stream.yaml", "else": two}, bounds=False, seeds=[0])
    said = lifelong("bench", asked, "--json", "methods={l2: [lora, l2]}")
    assert rows(said)["l2"]["runs"] == 3 and rows(said, "else")["l2"]["runs"] == 2
    first = json.loads((project / "out" / "else" / "l2" / "order0-seed0" / "config.json").read_text())
    assert [stage["name"] for stage in first["stages"]] == ["farm", "sky"]


def test_settings_are_tuned_once_for_all_streams(lifelong, bench, project):
    (project / "old").mkdir()
    content = yaml.safe_load((project / "stream.yaml").read_text()) | {"general": []}
    for name in ("sky", "farm"):
        for part, count, seed in (("train", 16, 15), ("test", 10, 16)):
            told = [row | {"text": f"old {row['text']}"} for row in tiny_stream.rows(name, count, seed)]
            tiny_stream.write_rows(project / "old" / f"{name}.{part}.jsonl", told)
    (project / "old" / "stream.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    methods = {"sequential": RATES, "l2": METHODS["l2"]}
    asked = {"tune": {"stream": "old/stream.yaml"}, "methods": methods, "bounds": False, "seeds": [0]}
    said = lifelong("bench", bench(**asked))
    assert said.status == 2 and "lifelong tune bench.yaml" in said.err
    assert lifelong("tune", bench(**asked)).status == 0
    said = lifelong("bench", bench(**asked), "--json")
    assert said.status == 0
    chosen = rows(said)["sequential"]["settings"]
    assert chosen.startswith("defaults.learning_rate=")
    for name in ("here", "else"):
        assert rows(said, name)["sequential"]["settings"] == chosen
    reported = bench(**asked | {"tune": {"stream": "else/stream.yaml"}})
    said = lifelong("tune", reported)
    assert said.status == 2 and "the tuning stream is the reported one" in said.err


MISTAKES = {
    "neither": ({"streams": None}, ["bench.yaml: stream: give one", "`streams`"]),
    "both": ({"stream": "stream.yaml"}, ["stream: give one", "or several"]),
    "list": ({"streams": ["stream.yaml"]}, ["streams: give them by name"]),
    "folder": ({"streams": {"a/b": "stream.yaml"}}, ["streams: `a/b`", "no `/`"]),
    "one folder": (
        {"streams": {"a b": "stream.yaml", "a-b": "else/stream.yaml"}},
        ["streams: `a-b` and `a b` would share the folder a-b"],
    ),
    "taken": ({"streams": {"tuning": "stream.yaml"}}, ["streams: `tuning`", "is taken"]),
    "no file": ({"streams": {"a": "nowhere.yaml"}}, ["streams.a: no stream file", "nowhere.yaml"]),
    "key": ({"streams": {"a": {"stream": "stream.yaml", "order": 3}}}, ["streams.a", "`order`", "`orders`"]),
    "orders": (
        {"streams": {"a": {"stream": "stream.yaml", "orders": [["sky"]]}}},
        ["streams.a", "orders[0] must hold each of sky, farm once"],
    ),
    "tune": (
        {"methods": {"l2": {"method": "lora"} | RATES}, "tune": {"changes": ["seed=1"]}},
        ["tune: with several streams name another one"],
    ),
}


@pytest.mark.parametrize(("changes", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_before_anything_starts(lifelong, bench, project, changes, words):
    said = lifelong("bench", bench(**changes))
    assert said.status == 2 and "Traceback" not in said.err
    for word in words:
        assert word in said.err
    assert not (project / "out").exists()
