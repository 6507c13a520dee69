"""Layers are found in every architecture; pads and, if asked, positions without a label are left out."""

import pytest
import tiny
import torch

from lifelong.numerics.positions import layer_outputs, layers, real_positions

COUNTS = {"llama": 2, "gpt2": 2, "bert": 2, "t5": 4, "vit": 2}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_layers_of_every_architecture(architecture):
    network = tiny.network(architecture)
    assert len(layers(network)) == COUNTS[architecture]
    batch = {"input_ids": torch.randint(3, 250, (2, 7))}
    if architecture == "vit":
        batch = {"pixel_values": torch.randn(2, 3, 16, 16)}
    if architecture == "t5":
        batch["decoder_input_ids"] = torch.randint(3, 250, (2, 4))
    with torch.no_grad():
        made = network(**batch, output_hidden_states=True)  # transformers leaves hooks of its own behind
    before = [len(layer._forward_hooks) for layer in layers(network).values()]
    with layer_outputs(network) as found, torch.no_grad():
        network(**batch)
    assert list(found) == list(layers(network))
    assert all(each.shape[0] == 2 and each.shape[-1] == 32 for each in found.values())
    if architecture in ("llama", "gpt2", "bert", "vit"):  # the last hidden state may be normed
        assert torch.equal(list(found.values())[0], made.hidden_states[1])
    assert [len(layer._forward_hooks) for layer in layers(network).values()] == before


def hidden(rows, length):
    return torch.zeros(rows, length, 3)


def test_pads_and_unlabelled_positions_of_a_decoder():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    labels = torch.tensor([[-100, 5, 6, -100], [-100, -100, 7, 1]])
    batch = {"attention_mask": mask, "labels": labels}
    assert torch.equal(real_positions(hidden(2, 4), batch, False), mask.bool())
    assert torch.equal(real_positions(hidden(2, 4), batch, False, labelled=True), labels != -100)
    assert real_positions(hidden(2, 5), batch, False).all()  # positions of something else
    assert real_positions(hidden(2, 4), {"labels": torch.tensor([0, 1])}, False, labelled=True).all()


def test_the_two_sides_of_an_encoder_decoder_are_told_apart_by_length():
    mask, labels = torch.tensor([[1, 1, 0]]), torch.tensor([[4, -100]])
    batch = {"attention_mask": mask, "labels": labels}
    assert torch.equal(real_positions(hidden(1, 3), batch, True), mask.bool())
    assert torch.equal(real_positions(hidden(1, 2), batch, True), labels != -100)
    both = {"attention_mask": torch.tensor([[1, 0]]), "labels": torch.tensor([[-100, -100]])}
    assert torch.equal(real_positions(hidden(1, 2), both, True), torch.tensor([[True, False]]))
