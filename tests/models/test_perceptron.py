"""The perceptron: equal to its formula, one seed one model, and served by every method like other models."""

import json

import numpy as np
import pytest
import tiny_stream
import torch

import lifelong as ll
from lifelong import launch
from lifelong.core import state as states
from lifelong.streams import build, config

METHODS = {
    "sequential": [],
    "ewc": [{"ewc": {"num_examples": 6}}],
    "si": ["si"],
    "lwf": ["lwf"],
    "reservoir": [{"reservoir": {"size": 5}}],
    "a_gem": [{"a_gem": {"size": 5}}],
    "der": [{"der": {"size": 5}}],
}


def model(seed=0):
    return ll.load("perceptron", hidden_sizes=(12, 8), num_inputs=768, seed=seed)


def run(folder, chosen, seed=0, **settings):
    methods = build.methods([{"full": {}}, *({m: {}} if isinstance(m, str) else m for m in chosen)])
    stream = tiny_stream.stream(vision=True, budget=ll.Budget(epochs=8), learning_rate=1e-2)
    return ll.run(model(seed), stream, methods=methods, output=folder, seed=seed, **settings)


def test_features_are_those_of_the_formula():
    made = model(3)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixels = made.processor(images=[image])["pixel_values"]
    assert pixels.dtype == torch.uint8 and pixels.shape == (1, 768)
    hidden = image.reshape(-1) / 255.0
    for layer in made.network.layers:
        weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
        hidden = np.maximum(weight @ hidden + bias, 0)
    found = made.network(pixel_values=pixels).last_hidden_state
    assert found.shape == (1, 1, 8) and np.abs(found[0, 0].detach().numpy() - hidden).max() < 1e-6


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = model(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert first.fingerprint == model(1).fingerprint != model(2).fingerprint


def test_an_image_of_another_size_is_refused():
    made = model()
    for image in (np.zeros((4, 4), np.uint8), np.zeros((16, 16, 3), np.float32)):
        with pytest.raises(ll.UserError, match="reads images of 768 bytes; got"):
            made.processor(images=[image])


@pytest.mark.parametrize("name", METHODS)
def test_every_reference_method_learns_and_resumes(name, tmp_path):
    done = run(tmp_path / "whole", METHODS[name])
    assert done.matrix.values[0][0] == 1.0, "the first task is learned"
    steps = []

    def stop(event):
        steps.append(event.kind == "step")
        if sum(steps) == 30:  # in the second stage
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", METHODS[name], listen=stop)
    resumed = run(tmp_path / "cut", METHODS[name])
    assert resumed.matrix.values == done.matrix.values
    assert states.equal(dict(resumed.model.network.state_dict()), dict(done.model.network.state_dict()))


def test_a_memory_keeps_an_image_as_bytes(tmp_path):
    run(tmp_path, METHODS["reservoir"])
    cost = json.loads((tmp_path / "stages/001-sky/cost.json").read_text())
    assert 5 * 768 <= cost["memory_bytes"] < 5 * 768 + 200


def test_a_run_and_an_export_load_with_the_same_weights(tmp_path):
    done = run(tmp_path / "run", METHODS["sequential"], seed=4)
    ll.export(tmp_path / "run", tmp_path / "out")
    for folder in ("run", "out"):
        back = ll.load(tmp_path / folder)
        assert states.equal(dict(back.network.state_dict()), dict(done.model.network.state_dict()))
        assert back.processor.num_inputs == 768


def chosen(**keys):
    raw = {"name": "x", "method": "sequential", "defaults": {"epochs": 1}, "stages": "embedded"}
    return config.parse({**raw, "model": {"name": "perceptron", **keys}}, "x.yaml")


def test_a_stream_file_names_it_and_the_seed_of_the_run_draws_its_weights():
    small = {"hidden_sizes": [12, 8], "num_inputs": 768}
    assert launch.load_model(chosen(**small), seed=2).fingerprint == model(2).fingerprint
    assert launch.load_model(chosen(**small, seed=1), seed=2).fingerprint == model(1).fingerprint
    default = launch.load_model(chosen())
    assert [tuple(p.shape) for p in default.network.parameters()] == [(100, 784), (100,), (100, 100), (100,)]


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"hidden_sizes": [8, 0]}, "hidden_sizes must be at least 1, one or more; got [8, 0]"),
        ({"num_inputs": 0}, "model.num_inputs: must be in the range [1, inf) or null; got 0"),
        ({"revision": "main"}, "`revision` is for a model that is loaded; `perceptron` is made"),
        ({"name": "minilm", "seed": 1}, "`seed` is for a model that is made; `minilm` is loaded"),
    ],
)
def test_settings_that_do_not_fit_are_told(keys, said):
    with pytest.raises(ll.UserError) as error:
        chosen(**keys)
    assert said in str(error.value)
