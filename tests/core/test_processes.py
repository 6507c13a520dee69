"""Several processes train what one does: rows are divided, gradients are summed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

TRAIN = """
import sys
from pathlib import Path
import tiny, tiny_stream
from lifelong import launch
from lifelong.core.engine import Settings
from lifelong.penalties.l2 import L2
from lifelong.replay.reservoir import Reservoir
from lifelong.tuners.lora import Lora
methods = [Lora(rank=2), L2(strength=1.0), Reservoir(size=6, fraction=0.5)]
launch.run(tiny.model("llama"), tiny_stream.stream(), methods, output=Path(sys.argv[1]), settings=Settings())
"""


def train(path, number):
    """Run the stream in `number` processes that talk over gloo; returns what they ended with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
              "PYTHONPATH": str(Path(__file__).parents[1])}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(path)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(number)
    ]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    assert [code for _, code in ended] == [0] * number, ended[0][0][-2000:]
    return load_file(next(path.glob("stages/002-*/checkpoint/state.safetensors")))


@pytest.mark.slow  # half a minute: three fresh processes
def test_two_processes_train_what_one_does(tmp_path):
    one, two = train(tmp_path / "one", 1), train(tmp_path / "two", 2)
    assert set(one) == set(two)
    moved = 0
    for name, value in one.items():
        if "lora_" in name and name.startswith("params"):
            assert value.dtype == two[name].dtype
            assert (value - two[name]).abs().max() < 1e-5
            moved += int(value.abs().sum() > 0)
    assert moved > 4
