"""Several processes train what one does: rows are divided, gradients are summed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tiny_stream
from safetensors.torch import load_file


def train(project, path, number):
    """Run the stream in `number` processes that talk over gloo; returns what they ended with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
              "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "lifelong", "run", "stream.yaml", f"output={path}"],
            cwd=project,
            stdout=subprocess.PIPE,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(number)
    ]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in started]
    assert [code for _, _, code in ended] == [0] * number, "\n".join(said for _, said, _ in ended)[-3000:]
    assert [bool(said) for said, _, _ in ended] == [True] + [False] * (number - 1)  # the first one reports
    return load_file(next(path.glob("stages/002-*/checkpoint/state.safetensors")))


@pytest.mark.slow  # half a minute: six fresh processes
@pytest.mark.parametrize("memory", [{"reservoir": {"size": 6, "fraction": 0.5}}, {"der": {"size": 6}}])
def test_two_processes_train_what_one_does(memory, tmp_path):
    model = tiny.model("llama")
    model.network.save_pretrained(tmp_path / "model")
    model.processor.save_pretrained(tmp_path / "model")
    method = [{"lora": {"rank": 2}}, {"l2": {"strength": 1.0}}, memory]
    project = tiny_stream.project(tmp_path, tmp_path / "model", count=13, method=method)
    one, two = train(project, tmp_path / "one", 1), train(project, tmp_path / "two", 2)
    assert set(one) == set(two)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == 8  # batches of 4, 4, 4, 1 rows: one process has none of the last
    for alone, shared in zip(*logs, strict=True):
        assert alone["tokens"] == shared["tokens"]
        assert alone["loss"] == pytest.approx(shared["loss"], rel=1e-5)
        assert alone["penalties"] == pytest.approx(shared["penalties"], rel=1e-4, abs=1e-6)
    moved = [name for name in one if "lora_" in name and one[name].abs().sum() > 0]
    assert len(moved) > 4
    for name in moved:  # Adam may turn rounding of a tiny gradient into a step, here and there
        assert (one[name] - two[name]).abs().mean() < 1e-5
