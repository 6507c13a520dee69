"""`lifelong eval`: on a node of a history, and on public benchmarks that lie here."""

import importlib.util
import json
from functools import partial

import pytest
import tiny_stream
import yaml

from lifelong.store import lineage
from lifelong.store.files import read_json

with_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: pip install 'lifelong[harness]'"
)


@pytest.fixture
def tasks(tmp_path):
    """A folder with one task."""
    rows = [{key: row[key] for key in ("text", "label")} for row in tiny_stream.rows("farm", 8, 1)]
    (tmp_path / "tasks").mkdir()
    tiny_stream.write_rows(tmp_path / "tasks" / "rows.jsonl", rows)
    task = {
        "task": "near_choice", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "doc_to_text": "{{text}}\nAnswer:", "doc_to_choice": ["farm0", "farm1"],
        "doc_to_target": "{{['farm0', 'farm1'].index(label)}}", "metric_list": [{"metric": "acc"}],
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "tasks" / "rows.jsonl")},
                           "cache_dir": str(tmp_path / "cache")},
    }  # fmt: skip
    (tmp_path / "tasks" / "near.yaml").write_text(yaml.safe_dump(task))
    return tmp_path / "tasks"


def test_a_node_is_judged_on_a_stream(lifelong, project, finished):
    """By place, by id, by tag; the untrained model too. What the run wrote comes out again."""
    rows = {row: read_json(finished / "stages" / row / "evaluation.json")["sets"][-1]["value"]
            for row in ("000-untrained", "001-sky", "002-farm")}  # fmt: skip
    assert len(set(rows.values())) == 3  # so that a wrong node is noticed
    sky = lineage.find(f"{finished}:sky")
    names = {f"{finished}:untrained": "000-untrained", f"{finished}:sky": "001-sky", sky.id: "001-sky",
             f"{finished}:farm": "002-farm"}  # fmt: skip
    for name, row in names.items():
        said = lifelong("eval", name, "stream.yaml", "--in", finished, "--json")
        assert said.status == 0, said.err
        assert json.loads(said.out)[-1]["value"] == pytest.approx(rows[row], rel=1e-5), name
    said = lifelong("eval", f"{finished}:sly", "stream.yaml")
    assert said.status == 2 and "`sky`" in said.err


@with_harness
def test_a_node_is_judged_by_lm_eval(lifelong, project, finished, tasks, monkeypatch):
    import lm_eval.tasks

    own = partial(lm_eval.tasks.TaskManager, include_defaults=False)  # reading the others takes eight seconds
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own)
    words = ("--harness", "lm-eval", "--tasks", "near_*", "--include-path", tasks)
    assert lifelong("export", finished, "whole").status == 0
    found = {}
    for name in (finished, f"{finished}:farm", "whole", f"{finished}:untrained"):
        said = lifelong("eval", name, *words, "--json")
        assert said.status == 0, said.err
        told = json.loads(said.out)
        assert told["lm_eval"] and [each["rows"] for each in told["figures"]] == [8]
        found[str(name)] = told["figures"]
    assert found[str(finished)] == found[f"{finished}:farm"] == found["whole"]
    said = lifelong("eval", finished, *words, "--limit", 4)
    head, line = (text.split() for text in said.out.splitlines())
    assert head == ["task", "metric", "value", "stderr", "rows", "shots"]
    assert line[:2] == ["near_choice", "acc"] and line[4:] == ["4", "0"]


MISTAKES = {
    "nothing": ([], ["name a stream file", "--harness lm-eval"]),
    "harness": (["--harness", "lm-evel", "--tasks", "arc_easy"], ["`lm-evel`", "`lm-eval`"]),
    "no task": (["--harness", "lm-eval"], ["--tasks", "arc_easy"]),
    "stream": (
        ["stream.yaml", "--harness", "lm-eval", "--tasks", "arc_easy"],
        ["no stream file", "stream.yaml"],
    ),
}


@with_harness
@pytest.mark.slow
def test_tasks_of_lm_eval_are_known(lifelong, project, finished):
    said = lifelong("eval", finished, "--harness", "lm-eval", "--tasks", "arc_esy")
    assert said.status == 2 and "Did you mean `arc_easy`?" in said.err


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told(lifelong, project, finished, words, told):
    said = lifelong("eval", finished, *words)
    assert said.status == 2 and "Traceback" not in said.err
    assert all(each in said.err for each in told), said.err
