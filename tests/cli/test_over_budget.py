"""A stream that breaks its budget, at the command line: status 3 and a table, or a repair."""

import json
from pathlib import Path

import pytest
import tiny_stream
import yaml


@pytest.fixture
def guarded(tmp_path, saved_model, monkeypatch):
    """The current folder: two stages, 200 rows to judge each, and a guard of 10 points."""
    monkeypatch.chdir(tmp_path)
    training = {"epochs": 3, "batch_size": 4, "learning_rate": 3e-3, "schedule": "constant"}
    tiny_stream.project(
        tmp_path, saved_model, count=60, method="full", defaults=training, general=[],
        guard={"allowed_drop_fraction": 0.1},
    )  # fmt: skip
    for name in ("sky", "farm"):
        tiny_stream.write_rows(tmp_path / f"{name}.test.jsonl", tiny_stream.rows(name, 200, 1))
    return tmp_path


def test_stop_ends_with_status_3_and_a_table_and_says_so_again(lifelong, guarded):
    first = lifelong("run", "stream.yaml")
    assert first.status == 3 and "Traceback" not in first.err
    assert "budget for forgetting, stage farm: NOT PROMOTED" in first.out
    (line,) = [line for line in first.out.splitlines() if line.startswith("sky ")]
    assert "001-sky" in line and "100.0 %" in line and line.rstrip().endswith("lost")
    message = first.err[first.err.index("error: ") :]
    assert message.count("error: ") == 1 and "sky lost" in message and "(allowed: 10.0)" in message
    kept = {p: p.stat().st_mtime_ns for p in Path("out/stages").rglob("*") if p.is_file()}
    again = lifelong("run", "stream.yaml")
    assert (again.status, again.out, again.err) == (3, first.out, message)  # nothing was trained or judged
    assert {p: p.stat().st_mtime_ns for p in Path("out/stages").rglob("*") if p.is_file()} == kept
    page = Path("out/report.html").read_text()
    assert "Budget for forgetting" in page and "not promoted" in page


def test_what_was_not_promoted_is_not_served(lifelong, guarded):
    assert lifelong("run", "stream.yaml").status == 3
    with pytest.warns(UserWarning, match="out: over budget and not promoted: farm; this is stage sky"):
        said = lifelong("export", "out", "served")
    assert said.status == 0 and "stage sky" in said.out
    said = lifelong("export", "out", "new", "--stage", "farm")
    assert said.status == 0 and "stage farm" in said.out and said.err == ""


def test_as_json(lifelong, guarded):
    said = lifelong("run", "stream.yaml", "--json")
    assert said.status == 3
    (run,) = json.loads(said.out)["runs"]
    assert [each["promoted"] for each in run["guards"]] == [True, False]
    assert run["guards"][1]["sets"][0]["verdict"] == "lost"


def test_keep_goes_on_and_then_stop_is_another_choice(lifelong, guarded):
    said = lifelong("run", "stream.yaml", "guard.otherwise=keep")
    assert said.status == 0 and "NOT PROMOTED" in said.out and "The run goes on" in said.err
    assert lifelong("run", "stream.yaml").status == 3
    assert lifelong("run", "stream.yaml", "guard.allowed_drop_fraction=0.9").status == 0
    assert lifelong("run", "stream.yaml", "guard=null").status == 0


def test_repair(lifelong, guarded):
    said = lifelong("run", "stream.yaml", "guard.otherwise=repair")
    assert said.status == 0, said.err
    assert "stage farm: promoted" in said.out and "Repaired: " in said.out
    assert "farm 99" in said.out and "with this share" in said.out
    guard = json.loads(Path("out/stages/002-farm/guard.json").read_text())
    assert 0 < guard["repair"]["shares"][0] < 1
    assert "Repaired: " in Path("out/report.html").read_text()
    again = lifelong("run", "stream.yaml", "guard.otherwise=repair")
    assert (again.status, again.out, again.err) == (0, said.out, "")


def test_five_rows_are_too_few(lifelong, guarded):
    few = "stages.sky.eval={path: sky.test.jsonl, limit: 5}"
    said = lifelong("run", "stream.yaml", few)
    assert said.status == 2 and "sky has 5 rows" in said.err and "guard.undecided to promote" in said.err
    assert not Path("out").exists()
    said = lifelong("run", "stream.yaml", few, "stages.farm.steps=1", "guard.undecided=promote",
                    "guard.allowed_drop_fraction=0.02")  # fmt: skip
    (line,) = [line for line in said.out.splitlines() if line.startswith("sky ")]
    assert said.status == 0 and line.split()[-3:] == ["5", "189", "undecided"]


WRONG = {
    "misspelt key": (
        ["guard.alowed_drop_fraction=0.1"],
        ["unknown key `alowed_drop_fraction`", "`allowed_drop"],
    ),
    "unknown set": (["guard.sets.ski=0.1"], ["guard.sets", "`ski`", "Did you mean `sky`?"]),
    "out of range": (["guard.allowed_drop_fraction=2"], ["allowed_drop_fraction", "(0, 1]", "got 2"]),
    "set out of range": (["guard.sets.sky=0"], ["budget of `sky`", "(0, 1]", "got 0"]),
    "unknown choice": (["guard.otherwise=panic"], ["otherwise", "'stop', 'repair', 'keep'", '"panic"']),
    "tuner": (["guard.otherwise=repair", "method=mora"], ["repair", "mora cannot express", "full, lora"]),
    "merger": (["guard.otherwise=repair", "method=[full, lines]"], ["and so does lines"]),
}


@pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG)
def test_bad_settings(lifelong, guarded, changes, words):
    said = lifelong("run", "stream.yaml", *changes)
    assert said.status == 2 and said.out == "" and "Traceback" not in said.err
    for word in words:
        assert word in said.err, said.err
    assert not Path("out").exists()


def test_the_record_of_a_guard_reads_back(guarded):
    from lifelong.streams import config

    chosen = config.read("stream.yaml", ["guard.general_drop_fraction=null", "guard.sets={sky: null}"])
    record = chosen.resolved()
    assert record["guard"]["general_drop_fraction"] is None and record["guard"]["sets"] == {"sky": None}
    assert config.RunConfig.model_validate(record).resolved() == record
    assert yaml.safe_load(yaml.safe_dump(record)) == record
