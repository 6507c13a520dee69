"""Stopped at any moment, by any signal, a run goes on to the numbers of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import process
import pytest
import tiny_stream

COMMAND = (
    "run", "stream.yaml", "method=[o_lora, orthogonal, reservoir]", "checkpoint_seconds=0.05",
    "stages.farm.steps=200",
)  # fmt: skip


def learned(folder):
    """Everything that must not depend on interruptions: weights to the bit, figures, losses."""
    weights = {p.parent.parent.name: p.read_bytes() for p in folder.glob("stages/*/checkpoint/*.safetensors")}
    figures = {
        p.parent.name: json.loads(p.read_text())["sets"] for p in folder.glob("stages/*/evaluation.json")
    }
    answers = {p.parent.name: p.read_text() for p in folder.glob("stages/*/answers.jsonl")}
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [(each["stage"], each["step"], each["loss"]) for each in log]
    matrix = json.loads((folder / "summary.json").read_text())["matrix"]
    return {"weights": weights, "figures": figures, "answers": answers, "losses": losses, "matrix": matrix}


@pytest.fixture(scope="module")
def place(tmp_path_factory, saved_model):
    return tiny_stream.project(tmp_path_factory.mktemp("interruption"), saved_model)


@pytest.fixture(scope="module")
def uninterrupted(place):
    made = process.start(place, *COMMAND, "output=whole")
    made.join()
    assert made.exitcode == 0, (place / "said").read_text()
    found = learned(place / "whole")
    assert len(found["losses"]) == 3 + 200 and len(found["weights"]) == 2
    return found


def in_second_stage(folder):
    return any((folder / "checkpoints").glob("002-*"))


def test_ctrl_c_at_the_real_command(place, uninterrupted):
    command = [sys.executable, "-m", "lifelong", *COMMAND, "output=ctrl-c"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    made = subprocess.Popen(command, cwd=place, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    while not in_second_stage(place / "ctrl-c"):
        assert made.poll() is None, made.communicate()
        time.sleep(0.005)
    made.send_signal(signal.SIGINT)
    out, err = made.communicate(timeout=60)
    assert made.returncode == 2 and out == "" and "Traceback" not in err
    assert err.rstrip().endswith("saved in ctrl-c. The same command goes on from here.")
    assert not (place / "ctrl-c/stages/002-farm").exists()
    (saved,) = sorted((place / "ctrl-c/checkpoints").iterdir())[-1:]
    assert 0 < int(saved.name.rpartition("-")[2]) < 200

    done = subprocess.run(command, cwd=place, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "judged after sky" not in done.stderr  # nothing was done twice
    assert learned(place / "ctrl-c") == uninterrupted


def test_sigterm(place, uninterrupted):
    made = process.start(place, *COMMAND, "output=term")
    process.wait_for(lambda: in_second_stage(place / "term"), made)
    os.kill(made.pid, signal.SIGTERM)
    made.join(60)
    assert made.exitcode == 2
    assert "The same command goes on from here." in (place / "said").read_text()
    made = process.start(place, *COMMAND, "output=term")
    made.join()
    assert made.exitcode == 0
    assert learned(place / "term") == uninterrupted


def test_a_signal_before_the_first_step_is_polite(place):
    made = process.start(place, *COMMAND, "output=early")
    process.wait_for(lambda: (place / "early").exists(), made)
    os.kill(made.pid, signal.SIGTERM)
    made.join(60)
    assert made.exitcode == 2
    assert "The same command goes on" in (place / "said").read_text()


def test_killed_five_times(place, uninterrupted):
    draw, kills = random.Random(0), 0
    output = place / "killed"
    while kills < 5:
        made = process.start(place, *COMMAND, "output=killed")
        process.wait_for(lambda: (output / "stages/000-untrained/evaluation.json").exists(), made)
        time.sleep(draw.uniform(0, 0.4))
        if not made.is_alive():  # it was faster: once is enough to see that nothing is left to do
            break
        os.kill(made.pid, signal.SIGKILL)
        made.join()
        assert made.exitcode == -signal.SIGKILL
        kills += 1
    assert kills >= 3
    made = process.start(place, *COMMAND, "output=killed")
    made.join()
    assert made.exitcode == 0, (place / "said").read_text()
    assert learned(output) == uninterrupted


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_damaged_checkpoint_of_a_stage(lifelong, project):
    assert lifelong("run", "stream.yaml").status == 0
    before = learned(Path("out"))
    flip_a_byte(Path("out/stages/002-farm/checkpoint/state.safetensors"))
    said = lifelong("run", "stream.yaml")
    assert said.status == 0
    assert "002-farm/checkpoint is damaged (state.safetensors has another checksum)" in said.err
    assert "using the one before it" in said.err
    assert learned(Path("out")) == before


def test_damaged_checkpoint_inside_a_stage(place, uninterrupted):
    made = process.start(place, *COMMAND, "output=damaged")
    process.wait_for(lambda: len(list((place / "damaged/checkpoints").glob("002-*"))) > 1, made)
    os.kill(made.pid, signal.SIGKILL)
    made.join()
    newest = sorted((place / "damaged/checkpoints").glob("002-*"))[-1]
    flip_a_byte(newest / "state.safetensors")
    made = process.start(place, *COMMAND, "output=damaged")
    made.join()
    said = (place / "said").read_text()
    assert made.exitcode == 0, said
    assert f"{newest.name} is damaged" in said
    assert learned(place / "damaged") == uninterrupted
