"""The growing head and the features under it."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from lifelong.core import head
from lifelong.core.head import LabelHead
from lifelong.errors import UserError


def test_growing_keeps_old_rows_and_does_not_depend_on_the_order_of_growth():
    once, steps = LabelHead(8), LabelHead(8)
    once.grow(["a", "b", "c", "d"], 3)
    steps.grow(["a", "b"], 3)
    with torch.no_grad():
        steps.weight.add_(1.0)
        steps.bias.add_(0.5)
    before = steps.weight.detach().clone()
    steps.grow(["a", "b", "c", "d"], 3)
    assert torch.equal(steps.weight[:2], before) and torch.equal(steps.bias, torch.tensor([0.5, 0.5, 0, 0]))
    assert torch.equal(steps.weight[2:], once.weight[2:])
    assert steps.labels == once.labels == ["a", "b", "c", "d"] and steps.current == [2, 3]
    steps.grow(["b", "a"], 3)  # nothing new: nothing moves
    assert steps.labels == ["a", "b", "c", "d"] and steps.current == [2, 3]
    other = LabelHead(8)
    other.grow(["a"], 4)
    assert not torch.equal(other.weight[0], once.weight[0])


def test_new_rows_have_the_promised_spread_and_leave_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = LabelHead(2000)
    found.grow(["a", "b"], 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert abs(found.weight.std().item() - 0.02) < 1e-3 and abs(found.weight.mean().item()) < 2e-3
    assert (found.weight[0] * found.weight[1]).mean().abs() < 5e-5  # rows are independent


def test_growing_keeps_a_frozen_head_frozen_and_computes_in_float32():
    found = LabelHead(4).requires_grad_(False)
    found.grow(["a"], 0)
    assert not found.weight.requires_grad and not found.bias.requires_grad
    assert found(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def batches(length_a: int, length_b: int) -> tuple[dict, dict]:
    model = tiny.model("bert")
    ids = [list(range(10, 10 + length_a)), list(range(30, 30 + length_b))]
    return head._stack([{"input_ids": ids[0]}, {"input_ids": ids[1]}], model), head._stack(
        [{"input_ids": ids[1]}], model
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("pooling", ["auto", "cls", "mean"])
def test_padding_does_not_change_features(architecture, pooling):
    network = tiny.network(architecture)
    padded, alone = batches(9, 5)
    assert "attention_mask" in padded and "attention_mask" not in alone
    together = head.features(network, padded, pooling)
    assert together.shape == (2, 32)
    assert torch.allclose(together[1], head.features(network, alone, pooling)[0], atol=1e-5)
    unmasked = head.features(network, {"input_ids": padded["input_ids"]}, pooling)
    if not (pooling == "cls" and architecture in ("llama", "gpt2")):
        assert not torch.allclose(unmasked[1], together[1], atol=1e-3)  # control: pads would count


def test_pooling_is_what_it_says():
    alone = batches(9, 5)[1]
    hidden = {name: tiny.network(name) for name in ("bert", "llama")}
    bert = hidden["bert"](**alone).last_hidden_state
    assert torch.allclose(head.features(hidden["bert"], alone, "auto"), bert.mean(1))
    assert torch.allclose(head.features(hidden["bert"], alone, "cls"), bert[:, 0])
    llama = hidden["llama"].model(**alone).last_hidden_state
    assert torch.allclose(head.features(hidden["llama"], alone, "auto"), llama[:, -1])
    pixels = {"pixel_values": torch.rand(2, 3, 16, 16)}
    vit = tiny.network("vit")
    assert torch.allclose(head.features(vit, pixels, "auto"), vit(**pixels).last_hidden_state[:, 0])


def test_the_special_token_at_the_end_survives_truncation():
    from core.test_encoding import framed

    model = framed("bert", "[CLS]", "<eos>")
    bodies, cut = head._bodies([{"text": "x" * 300}, {"text": "y"}], model)
    assert cut == 1 and len(bodies[0]["input_ids"]) == model.window
    assert (
        bodies[0]["input_ids"][0] == 2
        and bodies[0]["input_ids"][-1] == 1
        and len(bodies[1]["input_ids"]) == 3
    )


def test_images_from_path_array_and_image_are_the_same(tmp_path):
    model = tiny.model("vit")
    image = Image.effect_noise((16, 16), 50)  # grey: must become three channels
    image.save(tmp_path / "a.png")
    array = np.asarray(image.convert("RGB"))
    rows = [{"image": each} for each in (str(tmp_path / "a.png"), image, array)]
    found = [each["pixel_values"] for each in head._bodies(rows, model)[0]]
    assert (
        found[0].shape == (3, 16, 16) and torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    )
    with pytest.raises(UserError, match=r"row 1: cannot read image '.*no.png'"):
        head._bodies([{"image": str(tmp_path / "no.png")}], model)


def test_a_network_without_head_says_what_to_do():
    with pytest.raises(UserError, match="begin_stage"):
        head.head_of(tiny.network("bert"))
