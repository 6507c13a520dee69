"""What each verb of the command does, on tiny models."""

import json
from pathlib import Path

import pytest
import tiny
import torch
import yaml

from lifelong.core import discover
from lifelong.models import pretrained
from lifelong.models.restore import load
from lifelong.streams import config

TEXT = torch.tensor([[3, 50, 60, 70, 80]])


def logits(model):
    with torch.no_grad():
        return model.network.eval()(input_ids=TEXT).logits


def figures(folder, row):
    return json.loads((folder / f"stages/{row}/evaluation.json").read_text())["sets"]


# init, run ------------------------------------------------------------------------------------


def test_init_writes_a_file_that_runs_but_for_the_model(lifelong, project, saved_model):
    said = lifelong("init", "mine.yaml")
    assert said.status == 0 and "lifelong run mine.yaml" in said.out
    said = lifelong(
        "run", "mine.yaml", f"model={saved_model}", "output=mine", "precision=float32", "defaults.steps=1",
        *(f"stages.{i}.train.limit=60" for i in range(5)), *(f"stages.{i}.eval.limit=4" for i in range(5)),
        "general.0.data.limit=4", "general.1.data.limit=4",
    )  # fmt: skip
    assert said.status == 0, said.err
    assert "o_lora_replay" in said.out
    names = [stage["name"] for stage in json.loads(Path("mine/config.json").read_text())["stages"]]
    assert names == ["reviews", "mail", "author", "century", "origin"]


@pytest.mark.slow
def test_init_runs_as_printed(lifelong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lifelong("init").status == 0
    fewer = [f"stages.{i}.eval.limit=10" for i in range(5)] + [f"general.{i}.data.limit=5" for i in (0, 1)]
    said = lifelong("run", "stream.yaml", "defaults.steps=2", *fewer)
    assert said.status == 0, said.err


def test_run_and_the_same_run_again(lifelong, project):
    first = lifelong("run", "stream.yaml")
    assert first.status == 0 and "sequential" in first.out and "report: out/report.html" in first.out
    assert "stage 2/2 farm  step 3/3" in first.err
    kept = {p: p.stat().st_mtime_ns for p in Path("out/stages").rglob("*")}
    again = lifelong("run", "stream.yaml")
    assert again.out == first.out and again.err == ""
    assert {p: p.stat().st_mtime_ns for p in Path("out/stages").rglob("*")} == kept


def test_overrides_reach_the_run(lifelong, project):
    said = lifelong("run", "stream.yaml", "method=[o_lora: {rank: 2}, reservoir]", "stages.farm.epochs=2",
                    "seed=5", "output=other")  # fmt: skip
    assert said.status == 0, said.err
    config = json.loads(Path("other/config.json").read_text())
    assert config["seed"] == 5 and config["method_name"] == "o_lora+reservoir"
    assert config["methods"][0]["settings"]["rank"] == 2
    assert [stage["budget"]["epochs"] for stage in config["stages"]] == [1.0, 2.0]
    assert json.loads(Path("other/stages/002-farm/cost.json").read_text())["steps"] == 6


def test_budget_in_seconds(lifelong, project):
    assert lifelong("run", "stream.yaml", "stages.farm.seconds=0.2").status == 0
    cost = json.loads(Path("out/stages/002-farm/cost.json").read_text())
    assert 0.2 <= cost["seconds"] < 5 and cost["steps"] >= 1


def test_several_seeds(lifelong, project):
    said = lifelong("run", "stream.yaml", "seeds=[0, 1]", "--json")
    runs = json.loads(said.out)["runs"]
    assert [run["config"]["seed"] for run in runs] == [0, 1]
    assert [run["folder"] for run in runs] == ["out/seed-0", "out/seed-1"]
    losses = [(Path(run["folder"]) / "log.jsonl").read_text() for run in runs]
    assert losses[0] != losses[1]


def test_joint(lifelong, project):
    assert lifelong("run", "stream.yaml", "method=joint").status == 0
    config = json.loads(Path("out/config.json").read_text())
    assert [(stage["name"], stage["num_rows"]) for stage in config["stages"]] == [("joint", 24)]
    assert json.loads(Path("out/stages/001-joint/cost.json").read_text())["steps"] == 6
    assert lifelong("export", "out", "exported").status == 0


def test_per_task(lifelong, project):
    said = lifelong("run", "stream.yaml", "method=per_task")
    assert said.status == 0 and "stage 2/2 farm" in said.err
    assert lifelong("run", "stream.yaml", "output=alone", "method=sequential").status == 0
    # the first stage equals that of a sequence; the second began from the untrained model as well
    assert figures(Path("out/per_task/sky"), "001-sky")[0] == figures(Path("alone"), "001-sky")[0]
    said = lifelong("export", "out", "exported")
    assert said.status == 2 and "sky, farm" in said.err
    assert lifelong("export", "out", "exported", "--stage", "farm").status == 0
    part, exported = load("out/per_task/farm"), load("exported")
    torch.testing.assert_close(logits(part), logits(exported), rtol=0, atol=0)


# report, eval, export -------------------------------------------------------------------------


def test_report(lifelong, finished, tmp_path):
    page = tmp_path / "page.html"
    said = lifelong("report", finished, "--output", page)
    assert said.status == 0 and "sequential" in said.out and f"report: {page}" in said.out
    assert page.read_text().startswith("<!DOCTYPE html>")
    said = lifelong("report", finished, "--output", page, "--json")
    (run,) = json.loads(said.out)["runs"]
    matrix = run["summary"]["matrix"]
    assert matrix == json.loads((finished / "summary.json").read_text())["matrix"]


def test_report_of_a_run_that_was_stopped(lifelong, project):
    said = lifelong("run", "stream.yaml", "stages.farm.learning_rate=1e30")
    assert said.status == 2
    said = lifelong("report", "out")
    assert said.status == 0, said.err
    assert "sequential, seed 0 is not finished" in said.out


def test_eval_equals_the_run(lifelong, project, finished):
    """A run folder, its exported checkpoint and its exported adapter give the figures of the run."""
    assert lifelong("export", finished, "whole").status == 0
    assert lifelong("export", finished, "adapter", "--adapter").status == 0
    expected = figures(finished, "002-farm")
    for model in (finished, "whole", "adapter"):
        said = lifelong("eval", model, "stream.yaml", "--json")
        assert said.status == 0, said.err
        found = json.loads(said.out)
        assert [each["name"] for each in found] == ["sky", "farm", "prose"]
        for mine, theirs in zip(found, expected, strict=True):
            assert mine["value"] == pytest.approx(theirs["value"], rel=1e-5), (model, mine["name"])


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "t5"])
@pytest.mark.parametrize("method", ["full", "o_lora"])
def test_any_architecture_leaves_by_the_same_door(lifelong, project, architecture, method):
    """run, export, eval: the exported folder answers as the run did, for every kind of text model."""
    tiny.save(tiny.model(architecture), Path("model"))
    words = ["model=./model", f"method={method}"]
    if architecture != "gpt2":
        words += ["general=[]"]  # only a decoder writes prose
    assert lifelong("run", "stream.yaml", *words).status == 0
    assert lifelong("export", "out", "whole").status == 0
    said = lifelong("eval", "whole", "stream.yaml", "--json", *words)
    assert said.status == 0, said.err
    for mine, theirs in zip(json.loads(said.out), figures(Path("out"), "002-farm"), strict=True):
        assert mine["name"] == theirs["name"]
        assert mine["value"] == pytest.approx(theirs["value"], rel=1e-5)


def test_eval_of_an_earlier_stage_and_of_a_plain_folder(lifelong, project, finished, saved_model):
    for words, row in (((finished, "--stage", "sky"), "001-sky"), ((saved_model,), "000-untrained")):
        said = lifelong("eval", words[0], "stream.yaml", "--json", *words[1:])
        perplexity = json.loads(said.out)[-1]["value"]
        assert perplexity == pytest.approx(figures(finished, row)[-1]["value"], rel=1e-5)
    values = {figures(finished, row)[-1]["value"] for row in ("000-untrained", "001-sky", "002-farm")}
    assert len(values) == 3  # so that the comparison above can fail


def test_eval_table(lifelong, project, finished):
    said = lifelong("eval", finished, "stream.yaml")
    lines = said.out.splitlines()
    assert lines[0].split()[:2] == ["sky", "accuracy"] and lines[0].endswith("6 rows")
    assert lines[2].split()[:2] == ["prose", "perplexity"]


def test_exported_checkpoint_is_plain(lifelong, finished, tmp_path):
    from transformers import AutoModelForCausalLM

    said = lifelong("export", finished, tmp_path / "whole", "--json")
    written = json.loads(said.out)
    assert written["kind"] == "checkpoint" and written["stage"] == "farm"
    assert said.err == ""
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        torch.testing.assert_close(plain(TEXT).logits, logits(load(finished)), rtol=0, atol=0)
    assert not list((tmp_path / "whole").glob("*.bin"))


def test_exported_adapter_is_plain(lifelong, finished, saved_model, tmp_path):
    from peft import PeftModel

    said = lifelong("export", finished, tmp_path / "adapter", "--adapter", "--stage", "sky")
    assert said.status == 0 and "stage sky, rank 8" in said.out
    network = PeftModel.from_pretrained(pretrained.load(str(saved_model)).network, tmp_path / "adapter")
    with torch.no_grad():
        found = network.eval()(input_ids=TEXT).logits
    torch.testing.assert_close(found, logits(load(finished, "sky")), rtol=0, atol=2e-6)
    assert (found - logits(load(finished))).abs().max() > 1e-4  # the last stage says something else


# methods, doctor ------------------------------------------------------------------------------


def test_methods_lists_every_method(lifelong):
    said = lifelong("methods")
    listed = [line.split()[0] for line in said.out.splitlines() if line.startswith("  ")]
    assert listed == [each.id for each in discover.describe_all()]
    said = lifelong("methods", "--axis", "penalties")
    assert said.out.startswith("penalties: what holds the past\n  ewc ") and "tuners" not in said.out


def test_methods_as_json(lifelong):
    found = json.loads(lifelong("methods", "--json").out)
    assert {(each["id"], each["axis"]) for each in found} == {
        (each.id, each.axis) for each in discover.describe_all()
    }
    (ewc,) = [each for each in found if each["id"] == "ewc"]
    assert "arXiv:1612.00796" in ewc["paper"] and "strength" in [each["name"] for each in ewc["settings"]]
    assert [each["id"] for each in json.loads(lifelong("methods", "ewc", "--json").out)] == ["ewc"]


def test_page_of_a_method(lifelong):
    page = lifelong("methods", "ewc").out
    for words in ("ewc (penalties)", "arXiv:1612.00796", "decay = 1.0", "in [0, 1]", "factor on the old",
                  "one of 'empirical', 'true'", "verified"):  # fmt: skip
        assert words in page
    assert "> 0 " in lifelong("methods", "lora").out


def test_page_of_a_recipe_can_be_followed(lifelong, project):
    page = lifelong("methods", "o_lora_replay").out
    assert "made of\n  o_lora: {rank: 8, alpha: 32}\n  orthogonal: {strength: " in page
    change = page.partition("to change a part: ")[2].splitlines()[0]
    said = lifelong("run", "stream.yaml", change.replace("setting: value", "rank: 2"))
    assert said.status == 0, said.err
    assert json.loads(Path("out/config.json").read_text())["methods"][0]["settings"]["rank"] == 2


@pytest.mark.parametrize("each", discover.describe_all(), ids=lambda each: each.id)
def test_every_page_is_whole(lifelong, each):
    said = lifelong("methods", each.id)
    assert said.status == 0 and each.document in said.out
    for field in each.fields:
        assert f"{field.name} = " in said.out


def test_doctor(lifelong):
    found = json.loads(lifelong("doctor", "--json").out)
    assert found["packages"]["torch"] == torch.__version__
    assert set(found["embedded_models"]) == {"smollm2", "minilm"}
    said = lifelong("doctor")
    assert "torch" in said.out and str(Path.home()) not in said.out


def test_the_record_of_a_run_reads_back(lifelong, project):
    """A resolved configuration is itself a stream file with the same meaning."""
    from lifelong.streams import config

    chosen = config.read("stream.yaml")
    Path("again.yaml").write_text(yaml.safe_dump(chosen.resolved()))
    assert lifelong("run", "stream.yaml").status == 0
    again = lifelong("run", "again.yaml")
    assert again.status == 0 and again.err == ""  # the same run: nothing to do


# named streams --------------------------------------------------------------------------------


def test_streams_are_listed_and_explained(lifelong):
    said = lifelong("streams")
    assert all(f"  {name} " in said.out for name in ("clinc150", "text15", "mnist"))
    page = lifelong("streams", "text15").out
    assert "dataset_name" in page and "name the data set in the prompt" in page and "Local folder:" in page
    told = json.loads(lifelong("streams", "mnist", "--json").out)[0]
    assert told["hub"] == "ylecun/mnist" and {"name", "default", "meaning"} == set(told["settings"][0])
    assert lifelong("streams", "text16").status == 2


def test_init_writes_out_the_settings_of_a_named_stream(lifelong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lifelong("init", "text.yaml", "--stream", "text15").status == 0
    content = yaml.safe_load(Path("text.yaml").read_text())
    assert content["stages"]["text15"]["order"] == 1 and content["general"] == "embedded"
    said = lifelong("run", "text.yaml")
    assert said.status == 2 and "text15: give `path`" in said.err
    assert lifelong("init", "mnist.yaml", "--stream", "mnist").status == 0
    chosen = config.read("mnist.yaml")
    assert chosen.model.name == "perceptron" and chosen.candidates == "seen" and not chosen.general


@pytest.mark.parametrize("by", [[], ["--model"]])
def test_orders_are_ranked(lifelong, project, saved_model, by):
    by = [*by, saved_model] if by else []
    found = json.loads(lifelong("order", "stream.yaml", "--json", *by).out)
    assert [sorted(each["order"]) for each in found] == [["farm", "sky"]] * 2
    assert found[0]["score"] == pytest.approx(-1.0, abs=1e-6), "two centred means point away from each other"
    assert "farm" in lifelong("order", "stream.yaml", "--prefer", "dissimilar").out
    assert lifelong("order", "stream.yaml", "--prefer", "alike").status == 2
