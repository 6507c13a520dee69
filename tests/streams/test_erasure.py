"""Erase requests in a stream file: which rows they mean, what judges them, and mistakes told plainly."""

import json

import pytest
import tiny_stream

from lifelong.errors import UserError
from lifelong.streams import build, config


@pytest.fixture
def data(tmp_path):
    """Two stages of labelled rows, and one of plain text."""
    mood = [{"text": f"t{i}", "label": "abc"[i % 3], "owner": i // 3} for i in range(9)]
    files = {
        "mood.jsonl": [*mood, mood[0]],  # the first row twice
        "mood.test.jsonl": [{"text": f"e{i}", "label": "abc"[i % 3]} for i in range(6)],
        "more.jsonl": [{"text": "m", "label": "a"}, {"text": "n", "label": "d"}],
        "prose.jsonl": [{"body": "once"}, {"body": "twice"}],
    }
    for name, rows in files.items():
        tiny_stream.write_rows(tmp_path / name, rows)
    return tmp_path


MOOD = {"name": "mood", "train": "mood.jsonl", "eval": "mood.test.jsonl"}
MORE = {"name": "more", "train": "more.jsonl", "eval": "more.jsonl"}
PROSE = {"name": "prose", "train": {"path": "prose.jsonl", "columns": {"text": "body"}},
         "eval": {"path": "prose.jsonl", "columns": {"text": "body"}}}  # fmt: skip


def erase(name="gone", **request):
    keys = {k: request.pop(k) for k in ("eval", "objective", "labels_of_stage", "train") if k in request}
    if "labels_of_stage" in keys:
        keys["labels"] = keys.pop("labels_of_stage")
    return {"name": name, "erase": request, **keys}


def stream(folder, *stages, **keys):
    run = {"name": "x", "model": "m", "method": "lora", "defaults": {"epochs": 1}, "stages": list(stages)}
    return build.stream(config.parse({**run, **keys}, "s.yaml"), folder)


def write(folder, *rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def columns(made):
    return [(task, each.name, len(each.rows), each.erased_by) for task, each in made.columns()]


def test_labels_of_a_stage(data):
    made = stream(data, MOOD, MORE, erase(stage="mood", labels=["c", "a"]))
    gone = made.stages[2]
    assert gone.erases.stage == "mood" and gone.erases.places == (0, 2, 3, 5, 6, 8, 9)
    assert [row["label"] for row in gone.rows] == list("acacaca") and gone.labels == () and gone.evals == ()
    assert gone.objective == made.stages[0].objective
    assert columns(made) == [(0, "mood", 2, ""), (0, "mood.gone", 4, "gone"), (1, "more", 2, "")]
    assert [made.erased_from(each) for _, each in made.columns()] == [None, 2, None]
    assert {row["label"] for row in made.stages[0].evals[0].rows} == {"b"}
    assert made.stages[0].evals[0].labels == ("a", "b", "c")


def test_a_whole_stage_and_what_is_left_of_it(data):
    made = stream(data, MOOD, erase(stage="mood"))
    assert made.stages[1].erases.places == tuple(range(10))
    assert columns(made) == [(0, "mood", 6, "gone")]
    made = stream(data, MOOD, {"name": "gone", "erase": "mood"})
    assert len(made.stages[1].rows) == 10
    made = stream(data, MOOD, erase("first", stage="mood", labels=["a"]), MORE, erase("rest", stage="mood"))
    assert made.stages[3].erases.places == (1, 2, 4, 5, 7, 8)
    assert columns(made)[:2] == [(0, "mood.first", 2, "first"), (0, "mood.rest", 4, "rest")]
    assert columns(stream(data, PROSE, erase(stage="prose"))) == [(0, "prose", 2, "gone")]


def test_rows_of_a_file_mean_every_row_that_is_like_them_in_its_columns(data):
    write(data, {"text": "t0", "label": "a"}, {"text": "t4"})
    made = stream(data, MOOD, erase(stage="mood", path="rows.jsonl"))
    assert made.stages[1].erases.places == (0, 4, 9)
    assert columns(made) == [(0, "mood", 6, "")]  # every label has rows left
    write(data, {"owner": 1}, {"owner": 2})
    made = stream(data, MOOD, erase(stage="mood", path="rows.jsonl"))
    assert made.stages[1].erases.places == (3, 4, 5, 6, 7, 8)
    write(data, *({"text": f"t{i}"} for i in (1, 4, 7)))
    made = stream(data, MOOD, erase(stage="mood", path="rows.jsonl"))
    assert columns(made) == [(0, "mood", 4, ""), (0, "mood.gone", 2, "gone")]  # no row of b is left


def test_rows_like_none_of_the_stage_are_forgotten_as_they_are(data):
    write(data, {"text": "t1"}, {"text": "like t1", "label": "b"})
    made = stream(data, MOOD, erase(stage="mood", path="rows.jsonl"))
    assert made.stages[1].erases.places == (1,)
    assert [row["text"] for row in made.stages[1].rows] == ["t1", "like t1"]
    write(data, {"text": "like t1"})
    with pytest.raises(UserError, match="stage gone, erase: .*column `label` is missing"):
        stream(data, MOOD, erase(stage="mood", path="rows.jsonl"))
    write(data, {"text": "x", "label": "z"})
    with pytest.raises(UserError, match="stage gone, erase: .*label `z`"):
        stream(data, MOOD, erase(stage="mood", path="rows.jsonl"))


def test_columns_of_the_file_are_called_as_those_of_the_stage(data):
    write(data, {"body": "once"})
    assert stream(data, PROSE, erase(stage="prose", path="rows.jsonl")).stages[1].erases.places == (0,)
    write(data, {"said": "twice"})
    made = stream(data, PROSE, erase(stage="prose", path="rows.jsonl", columns={"text": "said"}))
    assert made.stages[1].erases.places == (1,)


def test_sets_of_its_own_judge_what_is_to_be_gone(data):
    write(data, {"body": "once"})
    judge = {"path": "rows.jsonl", "columns": {"text": "body"}}
    made = stream(data, PROSE, MORE, erase(stage="prose", path="rows.jsonl", eval=judge))
    assert columns(made) == [(0, "prose", 2, ""), (0, "gone", 1, "gone"), (1, "more", 2, "")]
    made = stream(data, PROSE, erase(stage="prose", path="rows.jsonl", eval={"asked": judge}))
    assert columns(made)[1] == (0, "gone.asked", 1, "gone")


def test_the_record_reads_back_and_takes_no_objective_from_the_defaults(data):
    run = {"name": "x", "model": "m", "method": "lora",
           "defaults": {"epochs": 1, "objective": {"classification": {"end_token": False}}},
           "stages": [MOOD, erase(stage="mood", labels=["a"])]}  # fmt: skip
    chosen = config.parse(run, "s.yaml")
    again = config.parse(chosen.resolved(), "s.yaml")
    assert again.resolved() == chosen.resolved() and again.fingerprint == chosen.fingerprint
    made = build.stream(again, data)
    assert made.stages[1].objective == made.stages[0].objective
    assert not made.stages[1].objective.end_token


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([MOOD, erase(stage="mod")], r"\[1\].erase.stage: no stage is called `mod`. Did you mean `mood`"),
        ([erase(stage="mood"), MOOD], r"stages\[0\].erase.stage: `mood` comes later"),
        ([MOOD, erase(stage="gone")], "`gone` comes later"),
        ([MOOD, erase(stage="mood", labels=["a"]), erase("x", stage="gone")], "`gone` erases rows itself"),
        ([MOOD, erase(stage="mood", labels=["aa"])], "erase: `aa` is no label of mood. Did you mean `a`"),
        ([PROSE, erase(stage="prose", labels=["a"])], "`a` is no label of prose"),
        ([MOOD, erase(stage="mood", labels=["a"]), erase("x", stage="mood", labels=["b", "a"])],
         "stage x, erase: label `a` of mood was erased by stage gone already"),
        ([MOOD, erase(stage="mood"), erase("x", stage="mood")], "stage x, erase: no row of mood is left"),
        ([MOOD, erase(stage="mood", labels=["a"], path="r")], "give `labels` or `path`, not both"),
        ([MOOD, erase(stage="mood", limit=3)], "`limit` says how a file of rows is read; give its `path`"),
        ([MOOD, erase(stage="mood", train="mood.jsonl")], "give `train`, rows to learn, or `erase`"),
        ([MOOD, {"name": "x", "eval": "mood.test.jsonl"}], "give `train`, rows to learn, or `erase`"),
        ([MOOD, erase(stage="mood", objective="sft")], "objective: a stage that erases has the objective of"),
        ([MOOD, erase(stage="mood", labels_of_stage=["a"])], "labels: a stage that erases has the labels of"),
        ([MOOD, erase(labels=["a"])], r"stages\[1\].erase: `stage` is missing"),
        ([MOOD, erase(stage="mood", lables=["a"])], "unknown key `lables`. Did you mean `labels`"),
    ],
)  # fmt: skip
def test_mistakes(stages, message, data):
    with pytest.raises(UserError, match=message):
        stream(data, *stages)


def test_a_row_that_was_erased_is_named_with_its_line(data):
    write(data, {"text": "t4"})
    stages = MOOD, erase(stage="mood", labels=["b"]), erase("x", stage="mood", path="rows.jsonl")
    with pytest.raises(UserError, match="x, erase: mood.jsonl:5 of mood was erased by stage gone already"):
        stream(data, *stages)
