"""The straight line between two models, against torch, and how much memory it takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from made_runs import contents
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from lifelong.errors import UserError
from lifelong.models.merging import merge_models


def save(folder, seed, dtype=torch.float32, **how):
    logging.disable_progress_bar()
    model = tiny.model("llama", seed=seed)
    model.network.to(dtype).save_pretrained(folder, **how)
    model.processor.save_pretrained(folder)
    return folder


def weights(folder):
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_weights_lie_on_the_line(tmp_path, dtype, share):
    left, right = save(tmp_path / "a", 0, dtype), save(tmp_path / "b", 1, dtype)
    merge_models(left, right, tmp_path / "out", share)
    mine, theirs, found = (weights(tmp_path / name) for name in ("a", "b", "out"))
    for name, value in found.items():
        assert value.dtype == dtype
        expected = (mine[name].double() + share * (theirs[name].double() - mine[name].double())).to(dtype)
        if share in (0, 1):
            assert torch.equal(value, (mine, theirs)[int(share)][name])
        else:
            torch.testing.assert_close(
                value, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-7
            )
    if share == 0:
        assert contents(left).keys() == contents(tmp_path / "out").keys()


def test_shards_may_be_cut_elsewhere(tmp_path):
    left, right = save(tmp_path / "a", 0, max_shard_size="40KB"), save(tmp_path / "b", 1)
    assert len(list(left.glob("*.safetensors"))) > 1
    merge_models(left, right, tmp_path / "out", 0.5)
    whole = merge_models(right, left, tmp_path / "other", 0.5)
    found, other = weights(tmp_path / "out"), weights(whole)
    assert all(torch.allclose(found[name], other[name], rtol=1e-6) for name in found)
    assert {f.name for f in left.iterdir()} == {f.name for f in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("case", ["another size", "no model", "taken", "share", "damaged"])
def test_what_cannot_be_merged(tmp_path, case):
    left, right, output, share = save(tmp_path / "a", 0), save(tmp_path / "b", 1), tmp_path / "out", 0.5
    words = {
        "another size": "not two states of one model", "no model": "no model folder", "damaged": "is damaged",
        "share": r"\[0, 1\]", "taken": "no empty folder",
    }[case]  # fmt: skip
    if case == "another size":
        tiny.model("gpt2").network.save_pretrained(right)
    if case == "no model":
        (right / "config.json").unlink()
    if case == "taken":
        output = left
    if case == "share":
        share = 1.5
    if case == "damaged":
        (right / "model.safetensors").write_bytes(b"\xff" * 64)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=words):
        merge_models(left, right, output, share)
    assert contents(tmp_path) == before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux tells of a process")
def test_memory_is_that_of_a_few_tensors(tmp_path):
    """Two models of 192 MB in 48 tensors of 4 MB: the process grows by a few tensors beyond what it maps.

    The bound, half of one model, leaves room for what a first call takes: 10 to 50 MB, by machine.
    """
    tensors = {f"w{i}": torch.full((1024, 1024), float(i)) for i in range(48)}
    from safetensors.torch import save_file

    for name, change in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        save_file({k: v + change for k, v in tensors.items()}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    code = (
        "import sys, re; from pathlib import Path; from lifelong.models.merging import merge_models\n"
        "def own(): return int(re.search(r'RssAnon:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "import lifelong.models.merging as m\n"
        "before, real, most = own(), m._lerp, [0]\n"
        "def watched(*words):\n"
        "    made = real(*words); most[0] = max(most[0], own()); return made\n"
        "m._lerp = watched\n"
        "merge_models('a', 'b', 'out', 0.25); print(most[0] - before)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": root, "PATH": "", "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 96 * 1024  # KB; one model has 196608, two 393216
    found = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(found[f"w{i}"], torch.full((1024, 1024), i + 0.25)) for i in range(48))
