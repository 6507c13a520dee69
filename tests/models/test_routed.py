"""A base with what a tuner learned beside it: whole or refused."""

import json

import pytest
import tiny
import torch

from lifelong.core.axes import Context
from lifelong.errors import UserError
from lifelong.models import pretrained, restore, routed
from lifelong.tuners.mora import Mora


@pytest.fixture
def exported(tmp_path):
    """(folder, logits) of a llama with experts of one stage."""
    method, model = Mora(rank=2, budget=2, targets=("q_proj",)), tiny.model("llama")
    base = tiny.model("llama")
    fingerprint = pretrained.fingerprint(base.network)
    state = method.attach(model, None, seed=0)
    state = method.begin_stage(Context(params={}, model=model, seed=1), state)
    for name, parameter in model.params().items():
        if name.endswith(".up"):
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    params = {name: p.detach() for name, p in model.params().items()}
    settings = {"rank": 2, "budget": 2, "targets": ["q_proj"]}
    content = routed.Learned("mora", settings, state, params, fingerprint)
    folder = pretrained.export_checkpoint(base, tmp_path / "out", content)
    ids = torch.arange(3, 12)[None]
    return folder, ids, model.network(ids).logits, base.network(ids).logits


def test_loads_with_the_same_bits_also_inside_a_stage(exported):
    folder, ids, logits, base = exported
    assert torch.equal(restore.load(folder).network(ids).logits, logits)
    assert not torch.allclose(logits, base, atol=1e-3)
    assert routed.is_routed(folder) and not routed.is_routed(folder.parent)


def test_the_base_alone_is_not_taken_for_the_model(exported):
    with pytest.raises(UserError, match="plain base with what a tuner learned.*lifelong.load"):
        pretrained.load(str(exported[0]))


def test_another_base_is_refused(exported, tmp_path):
    folder = exported[0]
    other = pretrained.export_checkpoint(tiny.model("llama", seed=1), tmp_path / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="not those that mora was trained on"):
        restore.load(folder)


def test_parts_that_do_not_fit_are_refused(exported):
    folder = exported[0]
    file = folder / f"{routed.NAME}.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        restore.load(folder)
    file.write_bytes(whole)
    about = json.loads((folder / f"{routed.NAME}.json").read_text())
    about["content"]["params"]["more"] = {"__tensor__": "params/more"}
    (folder / f"{routed.NAME}.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="do not fit each other"):
        restore.load(folder)


def test_a_method_of_its_author_needs_consent(exported):
    folder = exported[0]
    about = json.loads((folder / f"{routed.NAME}.json").read_text())
    about["tuner"] = "their.module:Mora"
    (folder / f"{routed.NAME}.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="method of its author"):
        restore.load(folder)
    with pytest.raises(UserError, match="cannot import"):
        restore.load(folder, trust_remote_code=True)
