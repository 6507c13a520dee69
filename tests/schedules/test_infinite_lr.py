"""The infinite schedule: closed form, joints, no horizon, and stages that go on where others ended."""

import json
import math
from itertools import pairwise

import pytest
import tiny
import tiny_stream

from lifelong import launch
from lifelong.core.axes import Progress
from lifelong.core.engine import Settings
from lifelong.schedules.infinite_lr import InfiniteLr
from lifelong.tuners.lora import Lora


def curve(schedule, num_steps, before=0):
    return [schedule.scale(Progress(t, num_steps, before)) for t in range(num_steps)]


def test_values_at_the_joints():
    made = InfiniteLr(warmup_steps=4, cooldown_steps=8, constant_fraction=0.5, anneal_fraction=0.25)
    values = curve(made, 40)
    assert values[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert values[4] == 1 and values[8] == pytest.approx(0.75) and values[12:31] == [0.5] * 19
    assert values[31:] == pytest.approx([0.5 * (0.1 / 0.5) ** (k / 10) for k in range(1, 10)])
    assert made.scale(Progress(40, 40)) == pytest.approx(0.1)


def test_inverse_root_runs_from_peak_to_constant():
    made = InfiniteLr(warmup_steps=0, cooldown_steps=100, cooldown="inverse_sqrt", constant_fraction=0.4)
    values = curve(made, 120)
    end = 1 / math.sqrt(11)
    assert values[0] == 1 and values[100:] == [0.4] * 20
    assert values[50] == pytest.approx(0.4 + 0.6 * (1 / math.sqrt(6) - end) / (1 - end))
    assert all(a > b for a, b in pairwise(values[:101]))


@pytest.mark.parametrize("shape", ["cosine", "inverse_sqrt"])
def test_continuous_at_every_joint(shape):
    made = InfiniteLr(warmup_steps=300, cooldown_steps=1000, cooldown=shape, anneal_fraction=0.25)
    steps = [abs(b - a) for a, b in pairwise(curve(made, 4000))]
    assert max(steps) < 1 / 290  # the slope of the warm-up; a jump would be 0.1 and more
    assert min(curve(made, 4000)) > 0


def test_no_step_depends_on_the_horizon_until_a_branch_is_annealed():
    made = InfiniteLr(warmup_steps=5, cooldown_steps=20)
    assert curve(made, 30) == curve(made, 1000)[:30]
    branch = InfiniteLr(warmup_steps=5, cooldown_steps=20, anneal_fraction=0.5)
    assert curve(branch, 30) != curve(branch, 1000)[:30]
    assert curve(branch, 30)[:16] == curve(made, 30)[:16]


def test_stages_are_one_curve():
    made = InfiniteLr(warmup_steps=5, cooldown_steps=20)
    assert curve(made, 12) + curve(made, 40, before=12) == curve(made, 52)
    assert curve(made, 12)[:5] != curve(made, 12, before=30)[:5] == [0.55] * 5


def test_a_run_counts_the_steps_of_earlier_stages_also_after_a_resume(tmp_path):
    made = InfiniteLr(warmup_steps=2, cooldown_steps=3, anneal_fraction=0.0)
    stream = tiny_stream.stream(schedule=made, general=False)

    def train(folder, kill_at=None):
        def listen(event):
            if event.kind == "step" and (event.stage, event.step) == kill_at:
                raise KeyboardInterrupt

        launch.run(tiny.model("llama"), stream, [Lora(rank=2)], output=folder, listen=listen,
                   settings=Settings(checkpoint_seconds=0.0))  # fmt: skip

    train(tmp_path / "whole")
    for kill_at in ((1, 2), (2, 1), (2, 2)):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / f"{kill_at}", kill_at)
        train(tmp_path / f"{kill_at}")
    expected = [3e-3 * each for each in curve(made, 6)]
    for folder in tmp_path.iterdir():
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [line["learning_rate"] for line in log] == pytest.approx(expected, rel=1e-12), folder
