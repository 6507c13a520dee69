"""From Python: a whole run, and every part alone in a plain PyTorch loop."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tiny_stream
import torch

import lifelong as ll

ROWS = tiny_stream.rows("sky", 12, 0)
TEXT = torch.tensor([[3, 50, 60, 70, 80]])


def stages(folder):
    """A stream as plain Python values."""
    tiny_stream.project(folder, "unused")
    return {
        "precision": "float32",
        "defaults": {"epochs": 1, "batch_size": 4},
        "stages": [
            {"name": name, "train": f"{name}.train.jsonl", "eval": f"{name}.test.jsonl"}
            for name in ("sky", "farm")
        ],
    }


# a whole run ----------------------------------------------------------------------------------


def test_run(tmp_path):
    run = ll.run(
        tiny.model("llama"),
        stages(tmp_path),
        methods=[ll.tuners.OLora(rank=8), ll.replay.Reservoir(size=500)],
        folder=tmp_path,
        output=tmp_path / "out",
    )
    assert run.matrix.columns == ("sky", "farm")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    figures = {each["id"]: each["value"] for each in summary["metrics"]}
    assert run.matrix.forgetting == figures["forgetting"]
    assert run.matrix.backward_transfer == figures["backward_transfer"]
    assert run.matrix.average_accuracy == figures["average_accuracy"]


def test_run_by_name_export_and_load(project, saved_model):
    run = ll.run(str(saved_model), "stream.yaml", methods=[ll.tuners.OLora(rank=4)])
    assert run.folder == Path("out")
    ll.export(run.folder, "exported")
    ll.export(run.folder, "adapter", adapter=True)
    logits = [ll.load(each).network.eval()(input_ids=TEXT).logits for each in ("out", "exported", "adapter")]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    torch.testing.assert_close(logits[0], logits[2], rtol=0, atol=2e-6)
    found = ll.judge("exported", "stream.yaml")
    assert [each["name"] for each in found] == ["sky", "farm", "prose"]


def test_run_of_a_recipe(project, saved_model):
    run = ll.run(str(saved_model), "stream.yaml", methods="joint", output="joint")
    assert [stage.name for stage in Path("joint/stages").iterdir() if "joint" in stage.name] == ["001-joint"]
    assert run.matrix.columns == ("sky", "farm")


def test_the_model_given_takes_the_place_of_the_one_in_the_file(project, saved_model, tmp_path):

    other = tiny.save(tiny.model("llama", seed=1), tmp_path / "other")
    ll.run(str(other), "stream.yaml")
    model = json.loads(Path("out/config.json").read_text())["model"]
    assert model["name"] == str(other) == model["source"]["name"]
    assert model["fingerprint"] == ll.load(other).fingerprint != ll.load(saved_model).fingerprint


def test_settings_of_the_file_hold(project, saved_model):
    text = Path("stream.yaml").read_text().replace("precision: float32", "precision: bfloat16")
    Path("stream.yaml").write_text(text)
    run = ll.run(str(saved_model), "stream.yaml", output="half")
    assert json.loads((run.folder / "config.json").read_text())["precision"] == "bfloat16"


def test_several_seeds_are_several_runs(project, saved_model):
    text = Path("stream.yaml").read_text() + "seeds: [0, 1]\n"
    Path("stream.yaml").write_text(text)
    with pytest.raises(ll.UserError, match="give `seed`"):
        ll.run(str(saved_model), "stream.yaml")
    assert ll.run(str(saved_model), "stream.yaml", seed=1).matrix.columns == ("sky", "farm")


def test_no_stream():
    with pytest.raises(ll.UserError, match="a stream file, its content or a Stream; got int"):
        ll.run("smollm2", 3)


def test_importing_is_light():
    program = "import sys, lifelong; lifelong.UserError; print({'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_public_name_exists():
    for name in ll.__all__:
        assert getattr(ll, name) is not None
    with pytest.raises(AttributeError, match="`OLoro`.*`OLora`"):
        _ = ll.tuners.OLoro


# parts alone ----------------------------------------------------------------------------------


def learn(network, params, steps=5, term=lambda: None):
    """A training loop of one's own."""
    optimizer = torch.optim.SGD(params, lr=0.1)
    for _ in range(steps):
        loss = network(input_ids=TEXT, labels=TEXT).loss
        extra = term()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def test_tuner_alone():
    network = tiny.network("llama")
    model = ll.wrap(network, tiny.tokenizer())
    before = network(input_ids=TEXT).logits

    tuner = ll.tuners.Lora(rank=4)
    state = tuner.attach(model, None, seed=0)
    torch.testing.assert_close(network(input_ids=TEXT).logits, before, rtol=0, atol=0)
    learn(network, model.params().values())
    taught = network(input_ids=TEXT).logits.detach()
    tuner.fold(model, state)

    assert (taught - before).abs().max() > 0.01
    torch.testing.assert_close(network(input_ids=TEXT).logits, taught, rtol=0, atol=1e-5)
    assert {n for n, _ in network.named_modules()} == {n for n, _ in tiny.network("llama").named_modules()}


def test_penalty_alone():
    """Any module with parameters will do."""

    def drift(strength):
        network = tiny.network("llama")
        params = dict(network.named_parameters())
        penalty = ll.penalties.L2(strength=strength)
        context = ll.Context(params=params)
        state = penalty.init(context)
        learn(network, params.values(), steps=1)
        state = penalty.end_stage(context, state)
        anchor = {name: p.detach().clone() for name, p in params.items()}
        learn(network, params.values(), term=lambda: penalty.loss(context, state))
        return sum((params[n] - anchor[n]).square().sum().item() for n in params)

    assert drift(5.0) < 0.5 * drift(0.0)


def test_penalty_that_measures_alone():
    """EWC looks at the rows of the finished stage."""
    model = ll.wrap(tiny.network("llama"), tiny.tokenizer())
    penalty = ll.penalties.Ewc(strength=10.0)
    context = ll.context(model, ll.objectives.Classification(), ROWS)
    state = penalty.init(context)
    assert penalty.loss(context, state) is None  # nothing to hold yet
    state = penalty.end_stage(context, state)
    assert penalty.loss(context, state).item() == 0.0  # at the anchor
    learn(model.network, model.params().values(), steps=1)
    assert penalty.loss(context, state).item() > 0.0


def test_memory_alone():
    memory = ll.replay.Reservoir(size=5, fraction=0.5)
    state = memory.init(seed=0)
    for stage, name in enumerate(("sky", "farm")):
        state = memory.add(state, [{"stage": stage, "row": row} for row in tiny_stream.rows(name, 12, 0)])
    assert len(state["items"]) == 5 and state["seen"] == 24
    replayed = memory.pick(state, num_rows=4, stage=1, step=0)
    assert len(replayed) == 2 and all(item["stage"] == 0 for item in replayed)  # of earlier stages


def test_objective_alone():
    model = ll.wrap(tiny.network("llama"), tiny.tokenizer())
    objective = ll.objectives.Classification()
    context = ll.context(model, objective, ROWS)
    (batch,) = context.batches(context.examples[:4])
    outputs = objective.forward(model.network, batch)
    loss = objective.loss(outputs).mean()
    loss.backward()
    assert 4.0 < loss.item() < 7.0  # near log(259), the vocabulary of an untrained model


def test_wrap_says_what_the_model_is():
    assert [ll.wrap(tiny.network(each), tiny.model(each).processor).kind for each in tiny.ARCHITECTURES] == [
        "decoder", "decoder", "encoder", "encoder_decoder", "vision",
    ]  # fmt: skip
    model = ll.wrap(tiny.network("llama"), tiny.tokenizer())
    assert model.window == 128 and re.fullmatch("[0-9a-f]{64}", model.fingerprint)
