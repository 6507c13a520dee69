"""Every discovered method passes the same checks, on every architecture that it serves.

Resumes bit for bit, zero strength changes nothing, states serialise, results export, each method
documents itself. A method that cannot take part in a check is named beside it with the reason.
"""

import json
import math
from pathlib import Path

import pytest
import tiny
import tiny_stream
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from lifelong import launch
from lifelong.core import discover
from lifelong.core.composition import compose
from lifelong.core.engine import Settings
from lifelong.errors import UserError
from lifelong.models import pretrained, restore
from lifelong.models.export import export_run
from lifelong.tuners.lora import Lora
from lifelong.tuners.o_lora import OLora

TUNERS, PENALTIES, MEMORIES = (discover.names(axis) for axis in ("tuners", "penalties", "replay"))
OPTIONS = {"lora": {"rank": 2}, "o_lora": {"rank": 2}, "ewc": {"num_examples": 6, "batch_size": 4},
           "reservoir": {"size": 5}, "a_gem": {"size": 5}, "der": {"size": 5},
           "zscl": {"reference": "random", "num_rows": 6, "length": 8, "average_every": 2},
           "gere": {"reference": "random", "num_rows": 6, "length": 8}}  # fmt: skip
OPTIONS |= {"mora": {"rank": 2, "budget": 3, "prune": 0.05}, "loramoe": {"experts": 2, "rank": 2},
            "conpet": {"rank": 2, "sample_size": 20},
            "sema": {"width": 4, "descriptor_width": 4, "descriptor_epochs": 2, "threshold": 0.0},
            "tame": {"width": 4, "window": 2, "warm_up": 2, "recent": 1, "threshold": 0.0, "least_steps": 3,
                     "sample_size": 9}}  # fmt: skip
OPTIONS |= {"eva": {"rank": 4, "batch_size": 4, "passes": 2}, "i_lora": {"rank": 2, "keep": 0.9},
            "lcia": {"rank": 2, "alpha": 4.0}, "migu_lora": {"rank": 4}, "maestro": {"interval": 2},
            "triadaptlora": {"rank": 3, "growth": 1, "interval": 1, "warmup": 0.0}}  # fmt: skip
OPTIONS |= {"lift": {"share": 0.1, "filter_rank": 4, "interval": 2}, "osft": {"num_examples": 6}}
OPTIONS |= {"ama": {"num_examples": 4, "batch_size": 2, "steps": 2}, "dmt": {"share": 0.25},
            "adamerging": {"num_examples": 4, "batch_size": 2, "iterations": 2},
            "skill_it": {"round_steps": 1, "held_out": 0.25},
            "aioli": {"round_steps": 4, "repeats": 1, "probe_steps": 1, "held_out": 0.25}}  # fmt: skip
OWN_TERM = {"der", "loramoe", "maestro", "triadaptlora"}  # others with a term of their own in the loss
# setting that switches a method off, if not `strength`:
STRENGTHS = {"reservoir": {"fraction": 0.0}, "a_gem": {"fraction": 0.0}, "der": {"fraction": 0.0}}
LOADERS = {"decoder": AutoModelForCausalLM, "encoder_decoder": AutoModelForSeq2SeqLM}


def served(name, architecture):
    """Frozen trains a head only, and generative models have none here."""
    return name != "frozen" or architecture in ("bert", "vit")


def made(name, **settings):
    return discover.load(name)(**OPTIONS.get(name, {}) | settings)


def methods_with(name, **settings):
    """The method in a composition that it needs: penalties on subspaces get a tuner that has some."""
    method = made(name, **settings)
    needs = name in PENALTIES and method.needs_subspaces
    return compose([method], OLora(rank=2) if needs else Lora(rank=2))


class Killed(Exception):
    pass


def train(folder, methods, architecture="llama", kill_at=None, model=None, pace=None, **how):
    """Run the small stream; `kill_at` (stage, step) stops the process there, before it can save."""

    def listen(event):
        if event.kind == "step" and (event.stage, event.step) == kill_at:
            raise Killed

    general = architecture in ("llama", "gpt2")
    stream = tiny_stream.stream(vision=architecture == "vit", general=general, **pace or {})
    settings = Settings(checkpoint_seconds=0.0, **how)
    model = model or saved_base(folder.parent, architecture)
    return launch.run(model, stream, methods, output=folder, settings=settings, listen=listen)


def saved_base(folder, architecture):
    """A tiny model as a user has it: a folder on disk."""
    path = folder / f"base-{architecture}"
    if not path.exists():
        model = tiny.model(architecture)
        model.network.save_pretrained(path)
        model.processor.save_pretrained(path)
    return restore.load(path)


def record(folder):
    """Everything of a run that must repeat to the last bit."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in ("state.safetensors", "answers.jsonl"):
            found[name] = path.read_bytes()
        if path.name == "evaluation.json":
            found[name] = json.loads(path.read_text())["sets"]
        if path.name == "summary.json":
            found[name] = json.loads(path.read_text())["metrics"]
        if path.name == "state.json":
            content = json.loads(path.read_text())
            found[name] = {k: v for k, v in content.items() if k != "spent"}
        if path.name == "log.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [
                {k: v for k, v in line.items() if k not in ("seconds", "checksum")} for line in lines
            ]
    return found


def same_after_a_kill(whole, place, name, kill_at, **how):
    """A run of the method that is killed there and called again leaves what `whole` has."""
    folder = place / f"killed-{kill_at[0]}-{kill_at[1]}"
    with pytest.raises(Killed):
        train(folder, methods_with(name), kill_at=kill_at, **how)
    train(folder, methods_with(name), **how)
    again = record(folder)
    assert again.keys() == whole.keys()
    for part in whole:
        assert again[part] == whole[part], f"{part} differs after a kill at {kill_at}"


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("name", [*TUNERS, *PENALTIES, *MEMORIES])
def test_resumes_bit_for_bit(name, architecture, tmp_path):
    if not served(name, architecture):
        with pytest.raises(UserError, match="nothing can be trained"):
            train(tmp_path / "run", methods_with(name), architecture)
        return
    whole = record(train(tmp_path / "whole", methods_with(name), architecture).folder)
    assert any(entry["penalties"] for entry in whole["log.jsonl"]) == (name in PENALTIES or name in OWN_TERM)
    for kill_at in [(1, 1), (1, 2), (2, 2), (2, 3)]:
        same_after_a_kill(whole, tmp_path, name, kill_at, architecture=architecture)


@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("name", [*PENALTIES, *sorted(OWN_TERM)])
def test_terms_in_bfloat16_are_near_those_in_float32(name, tuner, tmp_path):
    """A teacher that answered with the student's weights, as casts that are kept let it, would say 0."""
    method = made(name)
    if name in PENALTIES and method.needs_subspaces:
        tuner = "o_lora"
    parts = [method] if name in TUNERS else [method, made(tuner)]
    found = []
    for precision in ("bfloat16", "float32"):
        base = tiny.model("llama")
        run = train(tmp_path / precision, compose(parts, Lora()), model=base, precision=precision)
        log = record(run.folder)["log.jsonl"]
        found.append([sum(each["penalties"].values()) for each in log if each["penalties"]])
    half, whole = (sum(map(abs, each)) / len(each) for each in found)
    assert whole > 0 and half == pytest.approx(whole, rel=0.25)


@pytest.mark.parametrize("name", [name for name in TUNERS if served(name, "llama")])
def test_learns_and_resumes_under_sgd_with_momentum(name, tmp_path):
    pace = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.05}
    if "sgd" not in discover.load(name).optimizers:
        with pytest.raises(UserError, match=f"optimizer must be adamw under {name}.*got 'sgd'"):
            train(tmp_path / "run", methods_with(name), pace=pace)
        assert not (tmp_path / "run").exists()
        return
    whole = record(train(tmp_path / "whole", methods_with(name), pace=pace).folder)
    for kill_at in [(1, 1), (2, 2)]:
        same_after_a_kill(whole, tmp_path, name, kill_at, pace=pace)


@pytest.mark.parametrize("name", [*PENALTIES, *MEMORIES])
def test_zero_strength_changes_no_bit(name, tmp_path):
    methods = methods_with(name, **STRENGTHS.get(name, {"strength": 0.0}))
    off = train(tmp_path / "off", methods)
    on = train(tmp_path / "on", methods_with(name))
    plain = train(tmp_path / "plain", compose([methods.tuner], methods.tuner))

    def values(run):
        restored = restore.open_run(run.folder)
        return {n: p.clone() for n, p in restored.model.network.named_parameters()}

    assert all(torch.equal(a, b) for a, b in zip(values(off).values(), values(plain).values(), strict=True))
    assert not all(
        torch.equal(a, b) for a, b in zip(values(on).values(), values(plain).values(), strict=True)
    )


def batch_of(architecture):
    torch.manual_seed(0)
    if architecture == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    batch = {"input_ids": torch.randint(3, 250, (2, 8))}
    return batch | ({"decoder_input_ids": torch.randint(3, 250, (2, 4))} if architecture == "t5" else {})


def exports_beside_a_plain_base(folder, architecture, tmp_path):
    """What cannot be folded: plain transformers reads the base, `lifelong.load` the bits of the run."""
    written = export_run(folder, tmp_path / "exported")
    assert written["kind"] == "routed" and "lifelong.load" in written["note"]
    model, batch = restore.load(folder), batch_of(architecture)
    again = restore.load(tmp_path / "exported")
    plain = LOADERS.get(model.kind, AutoModel).from_pretrained(tmp_path / "exported").eval()
    base = restore.load(tmp_path / f"base-{architecture}").network
    ours = model.network(**batch)[0]
    assert torch.equal(again.network(**batch)[0], ours)
    assert torch.equal(plain(**batch)[0], base(**batch)[0])
    assert not torch.allclose(ours, base(**batch)[0], atol=1e-4)
    if architecture in ("bert", "vit"):
        head = again.network.lifelong_head
        assert torch.equal(head.weight, model.network.lifelong_head.weight)
        assert head.labels == model.network.lifelong_head.labels
    with pytest.raises(UserError, match="not of low rank"):
        export_run(folder, tmp_path / "adapter", adapter=True)
    with pytest.raises(UserError, match="lifelong.load"):
        pretrained.load(str(tmp_path / "exported"))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("name", TUNERS)
def test_exports_to_plain_transformers(name, architecture, tmp_path):
    if not served(name, architecture):
        return
    run = train(tmp_path / "run", methods_with(name), architecture)
    if not made(name).folds:
        exports_beside_a_plain_base(run.folder, architecture, tmp_path)
        return
    written = export_run(run.folder, tmp_path / "exported")
    restored = restore.open_run(run.folder)
    model = restored.model
    plain = LOADERS.get(model.kind, AutoModel).from_pretrained(tmp_path / "exported").eval()
    torch.manual_seed(0)
    batch = {"pixel_values": torch.randn(2, 3, 16, 16)}
    if architecture != "vit":
        batch = {"input_ids": torch.randint(3, 250, (2, 8))}
    if architecture == "t5":
        batch["decoder_input_ids"] = torch.randint(3, 250, (2, 4))
    with restored.tuner.serving(model, restored.tuner_state):
        ours, theirs = model.network(**batch), plain(**batch)
    torch.testing.assert_close(ours[0], theirs[0], atol=2e-5, rtol=2e-5)
    base = restore.load(tmp_path / f"base-{architecture}").network(**batch)
    assert torch.allclose(base[0], theirs[0], atol=1e-4) == (name == "frozen")
    assert written["kind"] == "checkpoint"
    if architecture in ("bert", "vit"):
        assert "lifelong.load" in written["note"]
        again = restore.load(tmp_path / "exported").network.lifelong_head
        assert torch.equal(again.weight, model.network.lifelong_head.weight)
        assert again.labels == model.network.lifelong_head.labels


@pytest.mark.parametrize("name", TUNERS)
def test_base_weights_stand_still_where_a_tuner_says_so(name, tmp_path):
    """Then the pretrained network that diagnostics compare with is a second tree over the same memory. And
    where it says that the body is what was loaded, features of the body may be kept.
    """
    model, batch = tiny.model("bert"), batch_of("bert")
    features = model.network(**batch)[0]
    seen = {n: p.detach() for n, p in model.network.named_parameters()}
    before = {n: p.clone() for n, p in seen.items()}
    train(tmp_path / "run", methods_with(name), "bert", model=model)
    moved = not all(torch.equal(seen[n], before[n]) for n in seen)
    assert moved == (made(name).trains_base or made(name).rewrites_base)
    assert torch.equal(model.network.eval()(**batch)[0], features) == made(name).keeps_body


OPTIONS |= {"skill_localization": {"passes": 1, "num_examples": 4}, "linear_probe": {"num_examples": 6},
            "conjugate_prompting": {"num_examples": 2}, "tuco": {"num_examples": 2}}  # fmt: skip
LOOKED_AT = [
    *((name, "llama", "float32") for name in TUNERS if name != "frozen"),
    *(("lora", other, "float32") for other in tiny.ARCHITECTURES if other != "llama"),
    ("frozen", "bert", "float32"),
    ("full", "t5", "bfloat16"),
    ("lora", "llama", "bfloat16"),
]


@pytest.mark.parametrize(("name", "architecture", "precision"), LOOKED_AT)
def test_diagnostics_change_no_bit(name, architecture, precision, tmp_path):
    plain = train(tmp_path / "plain", methods_with(name), architecture, precision=precision)
    how = {"precision": precision, "diagnostics": tuple(map(made, discover.names("diagnostics")))}
    looked = train(tmp_path / "looked", methods_with(name), architecture, **how)
    assert record(looked.folder) == record(plain.folder)
    told = json.loads((looked.folder / "stages" / "002-farm" / "diagnostics.json").read_text())["diagnostics"]
    assert [each["id"] for each in told] == list(discover.names("diagnostics"))
    figures = {each["id"]: each["figures"] for each in told}
    assert all(math.isfinite(value) for each in figures.values() for value in each.values())
    assert (figures["drift"]["weights all"] > 0) == (name != "frozen" and made(name).folds)
    assert (figures["tuco"]["sky"] > 0) == (name != "frozen")


LOW_RANK = ("lora", "o_lora", "eva", "i_lora", "lcia", "migu_lora", "triadaptlora")


@pytest.mark.parametrize("name", LOW_RANK)
@pytest.mark.parametrize("architecture", tiny.TEXT)
def test_exports_to_plain_peft(name, architecture, tmp_path):
    from peft import PeftModel

    run = train(tmp_path / "run", methods_with(name), architecture)
    export_run(run.folder, tmp_path / "adapter", adapter=True)
    restored = restore.open_run(run.folder)
    model = restored.model
    base = LOADERS[model.kind].from_pretrained(tmp_path / f"base-{architecture}")
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(3, 250, (2, 8))}
    if architecture == "t5":
        batch["decoder_input_ids"] = torch.randint(3, 250, (2, 4))
    with restored.tuner.serving(model, restored.tuner_state):
        ours = model.network(**batch).logits
    torch.testing.assert_close(ours, theirs(**batch).logits, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("each", discover.describe_all(), ids=lambda each: f"{each.axis}-{each.id}")
def test_documents_itself(each):
    assert each.summary.endswith(".") and len(each.summary) < 110
    assert len(each.document) > 40
    if each.axis in ("tuners", "penalties", "replay", "recipes"):
        assert each.cost and (each.paper or each.axis == "recipes")
    assert each.verified
    for field in each.fields:
        assert field.note, f"{each.id}.{field.name} has no comment with unit and meaning"
        assert field.default is not None, f"{each.id}.{field.name} has no default"


@pytest.mark.parametrize("each", discover.describe_all(), ids=lambda each: f"{each.axis}-{each.id}")
def test_file_class_and_id_are_one_word(each):
    if each.axis == "recipes":
        return
    cls = discover.load(each.id, each.axis)
    assert cls.__name__ == discover.camel(each.id)
    assert cls.__dataclass_params__.frozen and not cls.__subclasses__()
    cls()
