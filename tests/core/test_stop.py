"""Ctrl-C and SIGTERM: asked once, the run leaves at the next good place; asked twice, at once."""

import os
import signal

import pytest
import tiny
import tiny_stream

from lifelong import launch
from lifelong.core.composition import Methods
from lifelong.core.engine import Settings
from lifelong.core.stop import interruptible
from lifelong.errors import UserError
from lifelong.objectives.classification import Classification
from lifelong.tuners.lora import Lora

CASES = {
    "labels of a decoder": ("llama", Classification()),
    "labels of an encoder-decoder": ("t5", Classification()),
    "a linear head": ("bert", Classification()),
    "images": ("vit", Classification()),
}


def run(folder, architecture, objective, at_pass=None):
    """Evaluation passes that were begun; at one of them the process gets a signal."""
    model, begun = tiny.model(architecture), []

    def look(*_):
        if not model.network.training:
            begun.append(len(begun) + 1)
            if len(begun) == at_pass:
                os.kill(os.getpid(), signal.SIGTERM)

    for each in (model.network, *model.network.children()):
        each.register_forward_pre_hook(look)
    stream = tiny_stream.stream(architecture == "vit", objective=objective, general=False)
    try:
        made = launch.run(model, stream, Methods(tuner=Lora(rank=2)), output=folder, settings=Settings())
    except UserError as error:
        assert "The same command goes on from here" in str(error)
        return len(begun), None
    return len(begun), made.summary["matrix"]


@pytest.mark.parametrize("case", CASES)
def test_an_evaluation_is_left_at_the_next_pass_and_made_again(case, tmp_path):
    passes, matrix = run(tmp_path / "whole", *CASES[case])
    assert passes >= 6  # two sets in three rows
    for at_pass in (1, passes // 2, passes - 1):
        folder = tmp_path / str(at_pass)
        begun, nothing = run(folder, *CASES[case], at_pass=at_pass)
        assert begun == at_pass and nothing is None
        assert len(list(folder.glob("stages/*/evaluation.json"))) < 3
        _, found = run(folder, *CASES[case])
        assert found == matrix


def test_hooks_are_gone_afterwards_and_a_second_signal_acts_at_once(tmp_path):
    model, before = tiny.model("llama"), signal.getsignal(signal.SIGTERM)
    with interruptible() as stop:
        with stop.at_next_pass(model.network, tmp_path):
            assert model.network._forward_pre_hooks
        assert not model.network._forward_pre_hooks
        assert signal.getsignal(signal.SIGTERM) != before
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked and signal.getsignal(signal.SIGTERM) == before
