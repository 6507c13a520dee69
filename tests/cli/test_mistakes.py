"""Bad input ends with one message that says what, where and what to do; status 2; no traceback."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
import tiny_stream
import torch
import yaml
from safetensors.torch import save_file

from lifelong.store import files


def refused(said, *words):
    """One message, nothing else on stdout, and these words in it."""
    assert said.status == 2, said
    assert said.out == ""
    assert "Traceback" not in said.err
    message = said.err[said.err.index("error: ") :]
    assert message.count("error: ") == 1
    for word in words:
        assert word in message, message
    return message


# the stream file ------------------------------------------------------------------------------

SETTINGS = {
    "misspelt key": (["presicion=float32"], ["unknown key `presicion`", "`precision`"]),
    "misspelt key of a stage": (["stages.sky.epoch=2"], ["stages[0]", "unknown key `epoch`", "`epochs`"]),
    "misspelt setting of a method": (["method={lora: {rnak: 8}}"], ["`rnak`", "lora", "`rank`"]),
    "method out of range": (["method={lora: {rank: 0}}"], ["rank", "[1, inf)", "got 0"]),
    "value out of range": (["defaults.learning_rate=-1"], ["learning_rate", "(0, inf)", "got -1"]),
    "wrong kind of value": (["defaults.batch_size=many"], ["batch_size", "a whole number", '"many"']),
    "unknown method": (["method=sequental"], ["unknown method `sequental`", "`sequential`"]),
    "override of nothing": (["seed"], ["override `seed`", "key=value"]),
    "unknown stage": (["stages.ski.epochs=1"], ["no item named `ski`", "`sky`"]),
    "composition": (["method=[o_lora, ewc]"], ["ewc", "o_lora", "fresh weights", "leave the penalty out"]),
    "method of others": (["method=their.module:Method"], ["cannot import", "their.module:Method"]),
    "no method": (["method=json:JSONDecoder"], ["json:JSONDecoder", "is no method", "lifelong.core.axes"]),
    "two tuners": (["method=[o_lora, full]"], ["o_lora and full exclude each other", "one tuner"]),
}


@pytest.mark.parametrize(("changes", "words"), SETTINGS.values(), ids=SETTINGS)
def test_setting(lifelong, project, changes, words):
    refused(lifelong("run", "stream.yaml", *changes), *words)
    assert not Path("out").exists()


def test_conflict_is_told_before_weights_are_read(lifelong, project, monkeypatch):
    from lifelong.models import pretrained

    monkeypatch.setattr(pretrained, "load", lambda *a, **k: pytest.fail("the model was loaded"))
    refused(lifelong("run", "stream.yaml", "method=[o_lora, ewc]"), "fresh weights")
    Path("farm.train.jsonl").unlink()
    refused(lifelong("run", "stream.yaml"), "farm.train.jsonl")


def test_missing_stream_file(lifelong, project):
    refused(lifelong("run", "steam.yaml"), "no stream file steam.yaml", "`stream.yaml`", "lifelong init")


def test_invalid_yaml(lifelong, project):
    Path("stream.yaml").write_text("name: small\nstages: [\n")
    refused(lifelong("run", "stream.yaml"), "stream.yaml:", "not valid YAML")


# data -----------------------------------------------------------------------------------------

GOOD = '{"text": "sun", "label": "sky0"}\n'
DATA = {
    "missing file": (None, ["stage sky", "no file sky.train.jsonl", "`farm.train.jsonl`"]),
    "truncated row": (GOOD + '{"text": "sun", "lab', ["sky.train.jsonl:2", "not valid JSON", "cut off"]),
    "not UTF-8": (GOOD.encode() + b'{"text": "\xff"}\n', ["sky.train.jsonl:2", "not UTF-8"]),
    "no object": (GOOD + "[1, 2]\n", ["sky.train.jsonl:2", "a row must be an object"]),
    "missing column": ('{"text": "sun", "labl": "sky0"}\n', ["stage sky", "`label`", "columns"]),
    "empty column": (GOOD + '{"text": "sun", "label": null}\n', ["sky.train.jsonl:2", "label"]),
    "empty file": ("", ["stage sky", "sky.train.jsonl has no rows"]),
}


@pytest.mark.parametrize(("content", "words"), DATA.values(), ids=DATA)
def test_data(lifelong, project, content, words):
    file = project / "sky.train.jsonl"
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lifelong("run", "stream.yaml", "stages.sky.objective=classification"), *words)
    assert not Path("out").exists()


def test_unseen_label(lifelong, project):
    with open("sky.test.jsonl", "a") as file:
        file.write('{"text": "sun", "label": "sky_0"}\n')
    refused(lifelong("run", "stream.yaml"), "sky.test.jsonl:7", "label `sky_0`", "`sky0`")


def test_long_text_is_cut_counted_and_told(lifelong, project):
    made = tiny_stream.rows("sky", 12, 0)
    for row in made[:3]:
        row["text"] *= 30  # the window holds 128 bytes
    tiny_stream.write_rows(project / "sky.train.jsonl", made)
    said = lifelong("run", "stream.yaml")
    assert said.status == 0
    assert "stage sky: 3 of 12 training rows are longer than the model's window and were cut" in said.out
    assert "stage farm" not in said.out
    assert json.loads(Path("out/stages/001-sky/cost.json").read_text())["truncated_rows"] == 3
    assert json.loads(Path("out/stages/002-farm/cost.json").read_text())["truncated_rows"] == 0


def test_long_completion_is_refused(lifelong, project):
    rows = [{"prompt": "sun?", "completion": "yes"}, {"prompt": "sea?", "completion": "no " * 60}]
    tiny_stream.write_rows(project / "sky.train.jsonl", rows)
    tiny_stream.write_rows(project / "sky.test.jsonl", rows[:1])
    said = lifelong("run", "stream.yaml")
    refused(said, "sky.train.jsonl:2", "completion has 181 tokens", "window 128", "never cut")


# models ---------------------------------------------------------------------------------------


def test_folder_without_weights(lifelong, project, saved_model):
    shutil.copytree(saved_model, "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    refused(lifelong("run", "stream.yaml", "model=./bare"), "bare", "has no weights", "safetensors")


def test_objective_that_the_model_cannot_do(lifelong, project, tmp_path):
    tiny.save(tiny.model("bert"), tmp_path / "bert")
    words = ("general set prose", "causal_lm", "decoder", "is of the kind encoder.", "another objective")
    refused(lifelong("run", "stream.yaml", "model=./bert"), *words)
    refused(lifelong("eval", "bert", "stream.yaml"), *words)
    assert not Path("out").exists()
    said = lifelong("run", "stream.yaml", "model=./bert", "general=[]", "stages.farm.objective=causal_lm")
    refused(said, "stage farm", "causal_lm")


def test_missing_folder(lifelong, project):
    refused(lifelong("run", "stream.yaml", "model=./nowhere"), "no folder ./nowhere")


def test_pickles_are_refused_unless_allowed(lifelong, project, saved_model):
    shutil.copytree(saved_model, "old", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(tiny.model("llama").network.state_dict(), "old/pytorch_model.bin")
    said = lifelong("run", "stream.yaml", "model=./old")
    refused(said, "pytorch_model.bin", "a pickle can run code", "allow_pickle: true")
    assert lifelong("run", "stream.yaml", "model={name: ./old, allow_pickle: true}").status == 0


def test_adapter_of_another_architecture(lifelong, project, finished, tmp_path):
    tiny.save(tiny.model("gpt2"), tmp_path / "gpt2")
    assert lifelong("export", finished, "adapter", "--adapter").status == 0
    anonymous(Path("adapter"))
    said = lifelong("run", "stream.yaml", "model={name: ./gpt2, adapter: ./adapter}")
    refused(said, "adapter", "another architecture", "no module `model.layers.0")


def test_adapter_of_other_weights(lifelong, project, finished, tmp_path):
    tiny.save(tiny.model("llama", seed=1), tmp_path / "other")
    assert lifelong("export", finished, "adapter", "--adapter").status == 0
    said = lifelong("run", "stream.yaml", "model={name: ./other, adapter: ./adapter}")
    refused(said, "adapter", "other base weights", "fingerprint")


def anonymous(adapter):
    """As other tools write it: without the fingerprint of its base."""
    from safetensors.torch import load_file

    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file), file)


def test_export_of_changed_base(lifelong, project, saved_model):
    shutil.copytree(saved_model, "base")
    assert lifelong("run", "stream.yaml", "model=./base").status == 0
    shutil.rmtree("base")
    tiny.save(tiny.model("llama", seed=1), Path("base"))
    refused(lifelong("export", "out", "exported"), "not the model", "another fingerprint")
    assert not Path("exported").exists()


# run folders ----------------------------------------------------------------------------------


def test_folder_of_another_configuration(lifelong, project):
    assert lifelong("run", "stream.yaml").status == 0
    before = contents(Path("out"))
    said = lifelong("run", "stream.yaml", "seed=1", "defaults.learning_rate=1e-3")
    refused(said, "another configuration", "seed", "learning_rate", "Choose another `output`")
    assert contents(Path("out")) == before


def test_folder_that_is_no_run(lifelong, project):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("years of work")
    refused(lifelong("run", "stream.yaml"), "out is not empty and is no run folder", "thesis.tex")
    assert Path("out/thesis.tex").read_text() == "years of work"


def test_folder_of_a_model(lifelong, project, saved_model):
    shutil.copytree(saved_model, "model")
    before = contents(Path("model"))
    refused(lifelong("run", "stream.yaml", "output=model"), "model is no run folder", "something else")
    refused(lifelong("report", "model"), "model is no run folder")
    refused(lifelong("export", "model", "exported"), "model is no run folder")
    assert contents(Path("model")) == before


@pytest.mark.parametrize("name", ["config.json", "stages/001-sky/evaluation.json"])
def test_damaged_record(lifelong, project, name):
    """A file that is not JSON any more is named; the advice given leads to a finished run. Whole
    checkpoints would mend both.
    """
    assert lifelong("run", "stream.yaml").status == 0
    good = contents(Path("out/stages"))
    Path("out", name).write_text("{")
    for manifest in Path("out/stages").rglob("manifest.json"):
        if name == "config.json" or "sky" in str(manifest):
            manifest.write_text("{")
    message = refused(lifelong("run", "stream.yaml"), f"out/{name} is damaged", "remove the folder")
    assert "remove the folder " + str(Path("out", name).parent) in message
    refused(lifelong("report", "out"), f"out/{name} is damaged")
    shutil.rmtree(Path("out", name).parent)
    if Path("out").exists():
        refused(lifelong("run", "stream.yaml"), "001-sky has lost its evaluation", "all later stages")
        shutil.rmtree("out/stages/002-farm")
    assert lifelong("run", "stream.yaml").status == 0
    for path in good:
        if path.name in ("answers.jsonl", "state.safetensors"):
            assert path.read_bytes() == good[path]


def _hold(folder, ready, leave):
    with_lock = files.Lock(folder)
    ready.set()
    leave.wait(60)
    with_lock.release()


def test_folder_in_use(lifelong, project):
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(Path("out"), ready, leave))
    other.start()
    assert ready.wait(30)
    try:
        refused(lifelong("run", "stream.yaml"), "in use by process", str(other.pid), "Wait for it")
    finally:
        leave.set()
        other.join()
    assert lifelong("run", "stream.yaml").status == 0


def test_part_of_the_output_is_a_file(lifelong, project):
    refused(lifelong("run", "stream.yaml", "output=stream.yaml/out"), "cannot write", "is a file")


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in ("lock",)}


# while it runs --------------------------------------------------------------------------------


def test_loss_that_is_not_finite(lifelong, project):
    words = ("run", "stream.yaml", "stages.farm.learning_rate=1e30")
    first = refused(lifelong(*words), "stage farm, step 2", "not finite", "farm.train.jsonl:", "Lower the")
    before = contents(Path("out/stages"))
    assert Path("out/stages/001-sky/checkpoint/manifest.json") in before
    assert refused(lifelong(*words), "not finite") == first
    assert contents(Path("out/stages")) == before
    assert lifelong("export", "out", "exported").status == 0  # what the first stage taught is there


def test_divergence_at_the_last_step(lifelong, project):
    said = lifelong("run", "stream.yaml", "stages.farm.learning_rate=1e30", "stages.farm.steps=1")
    refused(said, "sky.test.jsonl:1", "has diverged", "Lower the learning rate")
    assert lifelong("export", "out", "exported", "--stage", "sky").status == 0


@pytest.mark.parametrize("moment", [3, 8, 14, 19])
def test_full_disk(lifelong, project, monkeypatch, moment):
    """The disk is full from the given write on; afterwards the same command finishes."""
    calls, real = [], os.fsync

    def fsync(handle):
        calls.append(handle)
        if len(calls) > moment:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    refused(lifelong("run", "stream.yaml"), "no space is left on the disk", "run the same command again")
    assert not list(Path("out").rglob(".*"))  # no torn parts stay behind
    monkeypatch.setattr(files.os, "fsync", real)
    assert lifelong("run", "stream.yaml").status == 0
    assert json.loads(Path("out/summary.json").read_text())["finished"]


def test_full_file_system(lifelong, project, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", place], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs the right to mount a small file system")
    try:
        said = lifelong("run", "stream.yaml", "output=small/out", "method={sequential: {lora: {rank: 16}}}")
        refused(said, "cannot write", "no space is left on the disk")
        subprocess.run(["mount", "-o", "remount,size=50m", place], check=True)
        said = lifelong("run", "stream.yaml", "output=small/out", "method={sequential: {lora: {rank: 16}}}")
        assert said.status == 0
    finally:
        subprocess.run(["umount", place], check=True)


def test_out_of_memory(lifelong, project, monkeypatch):
    from lifelong.core import engine

    def gradients(*rest):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr(engine, "gradients", gradients)
    refused(lifelong("run", "stream.yaml"), "out of memory", "micro_batch_size")


# other verbs ----------------------------------------------------------------------------------


def test_export(lifelong, project, finished):
    refused(lifelong("export", "nowhere", "here"), "nowhere is no run folder")
    refused(lifelong("export", finished, "here", "--stage", "ski"), "no finished stage `ski`", "`sky`")
    refused(lifelong("export", finished, "stream.yaml"), "stream.yaml exists")
    Path("here").mkdir()
    Path("here/thesis.tex").write_text("years of work")
    refused(lifelong("export", finished, "here"), "here exists")


def test_export_of_an_update_that_is_no_adapter(lifelong, project):
    assert lifelong("run", "stream.yaml", "method=full").status == 0
    refused(lifelong("export", "out", "here", "--adapter"), "not of low rank", "leave --adapter out")


def test_methods(lifelong):
    refused(lifelong("methods", "ewcc"), "unknown method `ewcc`", "`ewc`")
    refused(lifelong("methods", "--axis", "tuner"), "unknown axis `tuner`", "`tuners`")


def test_report_and_eval(lifelong, project, finished):
    refused(lifelong("report", "nowhere"), "nowhere does not exist")
    Path("empty").mkdir()
    refused(lifelong("report", "empty"), "no run folder at or below empty")
    refused(lifelong("eval", finished, "stream.yaml", "--stage", "ski"), "no finished stage `ski`", "`sky`")
    content = yaml.safe_load(Path("stream.yaml").read_text())
    Path("stream.yaml").write_text(yaml.safe_dump(content | {"stages": []}))
    refused(lifelong("eval", finished, "stream.yaml"), "stages: give at least one")


def test_init_never_overwrites(lifelong, project):
    before = Path("stream.yaml").read_text()
    refused(lifelong("init"), "stream.yaml exists", "name another file")
    assert Path("stream.yaml").read_text() == before


def test_usage(lifelong):
    said = lifelong("rum")
    assert said.status == 2 and "run" in said.err and "Traceback" not in said.err
