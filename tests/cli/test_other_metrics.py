"""Tables of streams that are not judged by accuracy say what their figures are."""

import json
import math

import pytest
import tiny_stream
import yaml


@pytest.fixture
def bench(project):
    """Writes bench.yaml on two stages of texts, or of prompts and completions, or one of each."""
    for name in ("one", "two"):
        for part, count in (("train", 8), ("test", 5)):
            texts = [{"text": f"{name} {'and ' * (i + 1)}so on"} for i in range(count)]
            tiny_stream.write_rows(project / f"{name}-text.{part}.jsonl", texts)
            pairs = [{"prompt": f"{name} {i}", "completion": f"the {name} of {i}"} for i in range(count)]
            tiny_stream.write_rows(project / f"{name}-pair.{part}.jsonl", pairs)
    model = yaml.safe_load((project / "stream.yaml").read_text())["model"]

    def stage(name, kind):
        judged = {"path": f"{name}-{kind}.test.jsonl"} | ({"metric": "rouge_l"} if kind == "pair" else {})
        return {"name": name, "train": f"{name}-{kind}.train.jsonl", "eval": judged}

    def stream(*kinds):
        return {
            "model": model, "defaults": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3},
            "stages": [stage(name, kind) for name, kind in zip(("one", "two"), kinds, strict=True)],
        }  # fmt: skip

    def write(*kinds, **changes):
        content = {
            "name": "other", "output": "out", "seeds": [0, 1], "workers": 1, "bounds": False,
            "methods": {"sequential": "sequential", "l2": ["lora", {"l2": {"strength": 1.0}}]},
        } | ({"stream": stream(*kinds)} if kinds else {}) | changes  # fmt: skip
        (project / "bench.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return project / "bench.yaml"

    write.stream = stream
    return write


def test_perplexity_is_a_log_likelihood_with_an_interval(lifelong, bench, project):
    said = lifelong("bench", bench("text", "text"), "--json")
    assert said.status == 0
    found = json.loads(said.out)
    assert (found["word"], found["unit"], found["percent"]) == ("log-likelihood", "nats per token", False)
    assert found["visible"] == [
        "No row had candidates to choose from: answers are free text, and the task's identity was visible as "
        "far as the prompts tell it."
    ]
    rows = {row["label"]: row for row in found["rows"]}
    last = [
        json.loads((project / f"out/l2/order0-seed{seed}/stages/002-two/evaluation.json").read_text())
        for seed in (0, 1)
    ]
    logs = [-math.log(each["value"]) for evaluation in last for each in evaluation["sets"]]
    assert rows["l2"]["average_accuracy"] == pytest.approx(sum(logs) / 4)
    low, high = rows["l2"]["interval"]
    assert low < rows["l2"]["average_accuracy"] < high and high - low < 0.5
    assert rows["l2"]["tied"]
    text = (project / "out" / "bench.md").read_text()
    assert "| average log-likelihood, nats per token |" in text and "%" not in text.splitlines()[0].replace(
        "general ability kept, %", ""
    )
    assert f"{-low:.3f}" in text and "minus the logarithm of the perplexity" in text
    page = (project / "out" / "bench.html").read_text()
    assert "Average log-likelihood (nats per token) against" in page
    assert "Log-likelihood over the stream, nats per token" in page and "ccuracy (%)" not in page


def test_a_run_on_texts_prints_nats(lifelong, bench, project):
    stream = bench.stream("text", "text") | {"name": "texts", "method": "sequential", "output": "run"}
    (project / "texts.yaml").write_text(yaml.safe_dump(stream))
    said = lifelong("run", "texts.yaml")
    assert said.status == 0
    head, row = said.out.splitlines()[:2]
    assert head.split()[:3] == ["method", "seed", "log-likelihood"]
    summary = json.loads((project / "run" / "summary.json").read_text())
    average = next(m["value"] for m in summary["metrics"] if m["id"] == "average_accuracy")
    assert row.split()[2] == f"{average:.3f}"
    assert "mean over the tasks after the last stage, in nats per token" in said.out


def test_rouge_is_called_so(lifelong, bench, project):
    said = lifelong("bench", bench("pair", "pair"))
    assert said.status == 0 and "| average ROUGE-L, % |" in said.out and "accuracy" not in said.out


def test_unlike_metrics_make_a_score(lifelong, bench, project):
    said = lifelong("bench", bench("text", "pair"))
    assert "| average score |" in said.out and "a perplexity counts as minus its logarithm" in said.out


def test_streams_in_unlike_units_have_ranks_in_common_and_no_mean(lifelong, bench):
    streams = {"texts": bench.stream("text", "text"), "pairs": bench.stream("pair", "pair")}
    said = lifelong("bench", bench(streams=streams), "--json")
    (l2,) = (row for row in json.loads(said.out)["rows"] if row["label"] == "l2")
    assert l2["average_accuracy"] is None and l2["interval"] is None and not l2["tied"]
    assert l2["rank"] == 1.0 and l2["on texts"] < 0 <= l2["on pairs"] <= 1 and l2["time"] > 0
