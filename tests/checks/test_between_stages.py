"""What the conformance tests ask of tuners and penalties, asked of mergers, mixings and closed forms.

Resumes bit for bit wherever it is killed, neutral settings equal plain training, results export, and
every pair of methods works or is refused before training.
"""

import pytest
import tiny
import tiny_stream
import torch
from test_conformance import LOADERS, Killed, made, record, saved_base
from transformers import AutoModel

from lifelong import launch
from lifelong.core import discover
from lifelong.core.composition import compose
from lifelong.core.engine import Settings
from lifelong.errors import UserError
from lifelong.models import restore
from lifelong.models.export import export_run
from lifelong.tuners.frozen import Frozen
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora
from lifelong.tuners.o_lora import OLora

MERGERS, MIXINGS, LEARNERS = (discover.names(axis) for axis in ("mergers", "mixing", "analytic"))
NEUTRAL = {  # settings under which a method is plain training
    "lines": {"alpha": 1.0, "beta": 0.0}, "ama": {"alpha": 1.0},
    "adamerging": {"init_ratio": 1.0, "iterations": 0}, "dmt": {"share": 0.0},
    "power_law_replay": {"alpha": 4000.0, "scale": 1e-9},
}  # fmt: skip
NEVER_PLAIN = {  # why a method is in no setting plain training; its own tests hold eta = 0 to uniform
    "skill_it": "eta 0 is uniform over all stages so far, and some rows are held out",
    "aioli": "eta 0 is uniform over all stages so far, and some rows are held out",
}
TUNERS = {"full": Full(), "o_lora": OLora(rank=2), "lora": Lora(rank=2), "frozen": Frozen()}
KILLS = [("step", 1, 2), ("step", 2, 1), ("step", 2, 3), ("evaluation", 1, 1), ("evaluation", 2, 1)]


def partners(name):
    """Tuners that a method is run with here."""
    if name in MERGERS:
        return ["full", "o_lora", "lora"]  # those that can keep a share of an update
    return ["frozen", "full"] if name in LEARNERS else ["lora"]


CASES = [(name, tuner) for name in (*MERGERS, *MIXINGS, *LEARNERS) for tuner in partners(name)]


def train(folder, parts, architecture="llama", kill_at=None, stages=("sky", "farm")):
    def listen(event):
        if (event.kind, event.stage, event.step) == kill_at:
            raise Killed

    stream = tiny_stream.stream(vision=architecture == "vit", stages=stages, general=False)
    model, settings = saved_base(folder.parent, architecture), Settings(checkpoint_seconds=0.0)
    return launch.run(model, stream, compose(parts, Lora()), output=folder, settings=settings, listen=listen)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize(("name", "tuner"), CASES)
def test_resumes_bit_for_bit(name, tuner, architecture, tmp_path):
    parts = [TUNERS[tuner], made(name)]
    if name in LEARNERS and architecture in tiny.TEXT:
        with pytest.raises(UserError, match="computes a linear head.*head: linear"):
            train(tmp_path / "refused", parts, architecture)
        assert not (tmp_path / "refused").exists()
        return
    whole = record(train(tmp_path / "whole", parts, architecture).folder)
    steps = len(whole["log.jsonl"]) if "log.jsonl" in whole else 0
    for kill_at in KILLS:
        if kill_at[0] == "step" and steps <= 3 * (kill_at[1] - 1):
            continue  # a stage that makes no step
        folder = tmp_path / "-".join(map(str, kill_at))
        with pytest.raises(Killed):
            train(folder, parts, architecture, kill_at)
        train(folder, parts, architecture)
        again = record(folder)
        assert again.keys() == whole.keys()
        for part in whole:
            assert again[part] == whole[part], f"{part} differs after a kill at {kill_at}"


def values(run):
    return {n: p.clone() for n, p in restore.open_run(run.folder).model.network.named_parameters()}


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(values(left).values(), values(right).values(), strict=True))


@pytest.mark.parametrize("name", [*MERGERS, *MIXINGS])
def test_neutral_settings_are_plain_training(name, tmp_path):
    if name in NEVER_PLAIN:
        return
    for tuner in partners(name):
        plain = train(tmp_path / f"plain-{tuner}", [TUNERS[tuner]])
        off = train(tmp_path / f"off-{tuner}", [TUNERS[tuner], made(name, **NEUTRAL[name])])
        on = train(tmp_path / f"on-{tuner}", [TUNERS[tuner], made(name)])
        assert same(plain, off) and not same(plain, on)


def test_every_method_has_a_neutral_setting_or_a_reason():
    assert {*MERGERS, *MIXINGS} == {*NEUTRAL, *NEVER_PLAIN}


@pytest.mark.parametrize(("name", "tuner"), CASES)
@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_exports_what_was_trained(name, tuner, architecture, tmp_path):
    if name in LEARNERS and architecture == "gpt2":
        return  # no linear head there
    run = train(tmp_path / "run", [TUNERS[tuner], made(name)], architecture)
    export_run(run.folder, tmp_path / "exported")
    model = restore.open_run(run.folder).model
    plain = LOADERS.get(model.kind, AutoModel).from_pretrained(tmp_path / "exported").eval()
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(3, 250, (2, 8))}
    torch.testing.assert_close(model.network(**batch)[0], plain(**batch)[0], atol=2e-5, rtol=2e-5)
    if architecture == "bert":
        again = restore.load(tmp_path / "exported").network.lifelong_head
        assert torch.equal(again.weight, model.network.lifelong_head.weight)
        assert torch.equal(again.bias, model.network.lifelong_head.bias)


@pytest.mark.parametrize("name", [*MERGERS, *MIXINGS, *LEARNERS])
def test_every_tuner_goes_with_it_or_is_refused(name):
    for tuner in discover.names("tuners"):
        cls = discover.load(tuner)
        if name in MERGERS and not cls.interpolates:
            with pytest.raises(UserError, match=f"{name} changes how much"):
                compose([made(name), cls()], Lora())
        else:
            assert compose([made(name), cls()], Lora()).tuner == cls()


@pytest.mark.parametrize(
    ("left", "right"),
    [("lines", "nmc"), ("dmt", "reservoir"), ("skill_it", "acu"), ("lines", "zscl"), ("dmt", "aioli")],
)
def test_methods_that_undo_each_other_are_refused(left, right):
    with pytest.raises(UserError, match="exclude each other"):
        compose([Full(), made(left), made(right)], Lora())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lines", "ama", "dmt", "aioli"])
@pytest.mark.parametrize("tuner", [name for name in discover.names("tuners") if name != "frozen"])
def test_every_tuner_trains_with_it(name, tuner, tmp_path):
    if name in MERGERS and not discover.load(tuner).interpolates:
        return
    run = train(tmp_path / "run", [made(tuner), made(name)], "llama", stages=("sky", "farm", "city"))
    assert run.summary["finished"]
