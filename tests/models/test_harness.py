"""Our scoring and lm-eval's agree item by item, on tasks that lie here."""

import importlib.util
import sys
from functools import partial

import pytest
import tiny
import tiny_stream
import torch
import yaml

from lifelong.core.encoding import pair, tokenise
from lifelong.core.labelled import log_likelihoods
from lifelong.core.scoring import generate, label_log_likelihoods
from lifelong.errors import UserError
from lifelong.metrics.accuracy import Accuracy
from lifelong.models import harness, pretrained
from lifelong.objectives.classification import Classification

with_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: pip install 'lifelong[harness]'"
)
LABELS = ["sky0", "sky1", "a much longer answer"]
NATS = 1e-3  # of a sum of log-probabilities, float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three tasks on the same twelve rows: choose a label, tell a likelihood, generate."""
    place = tmp_path_factory.mktemp("tasks")
    rows = [{key: row[key] for key in ("text", "label")} for row in tiny_stream.rows("sky", 12, 0)]
    tiny_stream.write_rows(place / "rows.jsonl", rows)
    common = {
        "dataset_path": "json", "test_split": "test", "doc_to_text": "{{text}}\nAnswer:",
        "dataset_kwargs": {"data_files": {"test": str(place / "rows.jsonl")},
                           "cache_dir": str(place / "cache")},
    }  # fmt: skip
    kinds = {
        "near_choice": {"output_type": "multiple_choice", "doc_to_choice": LABELS,
                        "doc_to_target": "{{['sky0', 'sky1'].index(label)}}",
                        "metric_list": [{"metric": "acc"}]},
        "near_likelihood": {"output_type": "loglikelihood", "doc_to_target": "{{' ' + label}}",
                            "metric_list": [{"metric": "perplexity", "aggregation": "perplexity",
                                             "higher_is_better": False}]},
        "near_words": {"output_type": "generate_until", "doc_to_target": "{{label}}",
                       "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False},
                       "metric_list": [{"metric": "exact_match"}]},
    }  # fmt: skip
    for name, kind in kinds.items():
        (place / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | common | kind))
    return place


@pytest.fixture(scope="module", autouse=True)
def local():
    """Only the tasks that lie here: lm-eval reads its own for eight seconds."""
    if importlib.util.find_spec("lm_eval") is None:
        yield
        return
    from lm_eval import tasks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
        yield


@pytest.fixture(scope="module")
def tasks(folder, local):
    return harness.tasks_of(["near_*"], [folder])


def sharp(architecture):
    """A tiny model whose answers depend on what it has read."""
    model = tiny.model(architecture)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def samples(result, name):
    return sorted(result["samples"][name], key=lambda each: each["doc_id"])


def check_agreement(model, tasks, rows):
    """Labels, likelihoods and generated words of each row, beside lm-eval's."""
    result = harness.evaluate(model, tasks)
    objective = Classification(end_token=False)
    prompts = tokenise(model.processor, [f"{row['text']}\nAnswer:" for row in rows])
    labels = tokenise(model.processor, [f" {label}" for label in LABELS])
    ours = label_log_likelihoods(model, prompts, labels)
    theirs = torch.tensor(
        [[float(resps[0][0]) for resps in each["resps"]] for each in samples(result, "near_choice")]
    )
    torch.testing.assert_close(ours, theirs, atol=NATS, rtol=1e-5)
    assert (ours.sort(dim=1).values.diff() > 2 * NATS).all()  # predictions do not hang on rounding
    answers = objective.answer(rows, model, LABELS)
    right = Accuracy().scores(answers)
    assert [LABELS[i] for i in theirs.argmax(1)] == [answer.prediction for answer in answers]
    assert right == [each["acc"] for each in samples(result, "near_choice")]
    figures = {each["task"]: each for each in harness.figures(result)}
    assert figures["near_choice"]["value"] == pytest.approx(sum(right) / len(right))
    named = [labels[LABELS.index(row["label"])] for row in rows]
    totals, _ = log_likelihoods(model, [pair(*each, model) for each in zip(prompts, named, strict=True)])
    told = [float(each["resps"][0][0][0]) for each in samples(result, "near_likelihood")]
    assert totals == pytest.approx(told, abs=NATS)
    said = [model.processor.decode(ids, skip_special_tokens=True) for ids in generate(model, prompts, 8)]
    assert [text.split("\n\n")[0] for text in said] == [
        each["resps"][0][0] for each in samples(result, "near_words")
    ]


@with_harness
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_items_agree_on_a_tiny_model(architecture, tasks):
    check_agreement(sharp(architecture), tasks, tiny_stream.rows("sky", 12, 0))


@with_harness
@pytest.mark.slow
def test_items_agree_on_smollm2(tasks):
    model = pretrained.load("smollm2", dtype=torch.float32)
    check_agreement(model, tasks, tiny_stream.rows("sky", 12, 0))


@with_harness
def test_other_tokens_or_an_end_token_are_noticed(tasks):
    """The tolerance is far below what a likelihood of other tokens differs by."""
    model, rows = tiny.model("llama"), tiny_stream.rows("sky", 12, 0)
    prompts = tokenise(model.processor, [f"{row['text']}\nAnswer:" for row in rows])
    result = harness.evaluate(model, tasks)
    theirs = [[float(resps[0][0]) for resps in each["resps"]] for each in samples(result, "near_choice")]
    end = [model.processor.eos_token_id]
    for labels in (
        tokenise(model.processor, LABELS),
        [[*ids, *end] for ids in tokenise(model.processor, [f" {label}" for label in LABELS])],
    ):
        ours = label_log_likelihoods(model, prompts, labels)
        assert (ours - torch.tensor(theirs)).abs().min() > 100 * NATS


@with_harness
def test_limit_takes_the_first_rows_and_figures_have_errors(tasks):
    result = harness.evaluate(tiny.model("llama"), tasks, limit=4)
    found = {each["task"]: each for each in harness.figures(result)}
    assert set(found) == {"near_choice", "near_likelihood", "near_words"}
    assert all(each["rows"] == 4 and each["shots"] == 0 for each in found.values())
    scores = [each["acc"] for each in samples(result, "near_choice")]
    choice = found["near_choice"]
    assert choice["metric"] == "acc" and choice["better"] == "higher" and choice["value"] == sum(scores) / 4
    assert choice["stderr"] == pytest.approx(torch.tensor(scores).std().item() / 2)
    assert found["near_likelihood"]["better"] == "lower"


@with_harness
def test_groups_have_figures_of_their_own(folder):
    group = {"group": "near_both", "task": ["near_choice", "near_words"],
             "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}  # fmt: skip
    (folder / "group.yaml").write_text(yaml.safe_dump(group))
    found = harness.figures(harness.evaluate(tiny.model("llama"), harness.tasks_of(["near_both"], [folder])))
    (folder / "group.yaml").unlink()
    values = {each["task"]: each["value"] for each in found if each["metric"] == "acc"}
    assert values["near_both"] == values["near_choice"] and "near_words" in {each["task"] for each in found}


@with_harness
def test_mistakes_name_what_there_is(folder, tmp_path):
    with pytest.raises(UserError, match="no task `near_choise`. Did you mean `near_choice`"):
        harness.tasks_of(["near_choise"], [folder])
    with pytest.raises(UserError, match="`lm-eval ls tasks`"):
        harness.tasks_of(["#*#*#*#*#"], [folder])
    with pytest.raises(UserError, match="--include-path: no folder nowhere"):
        harness.tasks_of(["near_choice"], ["nowhere"])
    lost = yaml.safe_load((folder / "near_choice.yaml").read_text()) | {"task": "far_choice"}
    lost["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "no.jsonl")}}
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(lost))
    with pytest.raises(UserError, match="the data of far_choice cannot be loaded"):
        harness.tasks_of(["far_choice"], [tmp_path])


def test_what_cannot_be_asked_is_refused(monkeypatch):
    with pytest.raises(UserError, match="of kind encoder"):
        harness.check(tiny.model("bert"))
    model = tiny.model("llama")
    harness.check(model)
    model.answering = lambda objective, rows, labels: []
    with pytest.raises(UserError, match="picks a part of itself"):
        harness.check(model)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'lifelong\[harness\]'"):
        harness.tasks_of(["arc_easy"])
