"""Every way to unlearn: an erase stage resumes bit for bit wherever it is killed, and its result exports."""

import pytest
import tiny
import tiny_erasure
import torch
from test_conformance import LOADERS, Killed, made, record, saved_base
from transformers import AutoModel

from lifelong import launch
from lifelong.core import discover
from lifelong.core.composition import compose
from lifelong.core.engine import Settings
from lifelong.core.stream import Budget
from lifelong.models import restore
from lifelong.models.export import export_run
from lifelong.tuners.o_lora import OLora

KILLS = [*(("step", 2, step) for step in range(1, 5)), ("evaluation", 2, 1)]
MEMORIES = discover.names("replay")
CASES = [(name, memory) for name in discover.names("unlearning") for memory in MEMORIES]


def train(folder, name, memory, architecture, kill_at=None):
    """sky, two epochs of erasing half of it, farm."""

    def listen(event):
        if (event.kind, event.stage, event.step) == kill_at:
            raise Killed

    stream = tiny_erasure.stream(at=1, erase_budget=Budget(epochs=2), vision=architecture == "vit")
    methods = compose([OLora(rank=2), made(name), made(memory)], OLora())
    settings = Settings(checkpoint_seconds=0.0)
    model = saved_base(folder.parent, architecture)
    return launch.run(model, stream, methods, output=folder, settings=settings, listen=listen)


@pytest.mark.parametrize(("name", "memory"), CASES)
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_resumes_bit_for_bit_at_every_step_of_an_erase_stage(name, memory, architecture, tmp_path):
    whole = record(train(tmp_path / "whole", name, memory, architecture).folder)
    erased = [line for line in whole["log.jsonl"] if line["stage"] == 1]
    assert len(erased) == 4 and all(name in line["penalties"] for line in erased)
    assert all(name not in line["penalties"] for line in whole["log.jsonl"] if line["stage"] != 1)
    for kill_at in KILLS:
        folder = tmp_path / "-".join(map(str, kill_at))
        with pytest.raises(Killed):
            train(folder, name, memory, architecture, kill_at)
        train(folder, name, memory, architecture)
        again = record(folder)
        assert again.keys() == whole.keys()
        for part in whole:
            assert again[part] == whole[part], f"{part} differs after a kill at {kill_at}"


@pytest.mark.parametrize("name", discover.names("unlearning"))
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_exports_what_was_unlearned(name, architecture, tmp_path):
    run = train(tmp_path / "run", name, "reservoir", architecture)
    assert run.summary["finished"] and run.matrix.erased == (None, 1, None)
    export_run(run.folder, tmp_path / "exported")
    model = restore.open_run(run.folder).model
    plain = LOADERS.get(model.kind, AutoModel).from_pretrained(tmp_path / "exported").eval()
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(3, 250, (2, 8))}
    batch = {"pixel_values": torch.randn(2, 3, 16, 16)} if architecture == "vit" else batch
    batch |= {"decoder_input_ids": torch.randint(3, 250, (2, 4))} if architecture == "t5" else {}
    torch.testing.assert_close(model.network(**batch)[0], plain(**batch)[0], atol=2e-5, rtol=2e-5)
