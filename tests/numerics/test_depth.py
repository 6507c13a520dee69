"""Blocks of any architecture in the order in which it holds them."""

import pytest
import tiny
from torch import nn

from lifelong.numerics.depth import depth

EXPECTED = {  # (parameter, its block), blocks in all
    "llama": ({"model.embed_tokens.weight": None, "model.layers.0.mlp.up_proj.weight": 0,
               "model.layers.1.self_attn.q_proj.weight": 1, "model.norm.weight": None}, 2),
    "gpt2": ({"transformer.wpe.weight": None, "transformer.h.0.attn.c_attn.weight": 0,
              "transformer.h.1.ln_1.bias": 1, "transformer.ln_f.weight": None}, 2),
    "bert": ({"embeddings.LayerNorm.weight": None, "encoder.layer.0.output.dense.weight": 0,
              "encoder.layer.1.output.dense.bias": 1, "pooler.dense.weight": None}, 2),
    "t5": ({"shared.weight": None, "encoder.block.0.layer.0.SelfAttention.q.weight": 0,
            "encoder.block.1.layer.1.DenseReluDense.wi.weight": 1,
            "decoder.block.0.layer.1.EncDecAttention.q.weight": 2,
            "decoder.block.1.layer.2.DenseReluDense.wo.weight": 3,
            "decoder.final_layer_norm.weight": None}, 4),
}  # fmt: skip


@pytest.mark.parametrize("architecture", EXPECTED)
def test_blocks_are_found_in_order(architecture):
    network = tiny.network(architecture)
    names, count = EXPECTED[architecture]
    found = depth(network)
    assert found.count == count
    for name, block in names.items():
        assert network.get_parameter(name) is not None
        assert found.of(name) == block
        assert found.share(name) == (None if block is None else block / (count - 1))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_block_holds_parameters_and_the_rest_lies_outside(architecture):
    network = tiny.network(architecture)
    found = depth(network)
    numbers = [found.of(name) for name, _ in network.named_parameters()]
    assert {n for n in numbers if n is not None} == set(range(found.count)) and None in numbers
    inside = [n for n in numbers if n is not None]
    assert inside == sorted(inside)


def test_what_lies_outside_belongs_to_the_block_before_it():
    found = depth(tiny.network("t5"))
    assert [found.nearest(n) for n in ("shared.weight", "encoder.final_layer_norm.weight")] == [0, 1]
    assert found.nearest("decoder.final_layer_norm.weight") == 3


def test_eleven_blocks_keep_their_order_and_lists_inside_are_part_of_a_block():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

    network = nn.Module()
    network.layers = nn.ModuleList(Block() for _ in range(12))
    found = depth(network)
    assert found.count == 12 and found.of("layers.1.experts.2.weight") == 1
    assert found.of("layers.11.experts.0.bias") == 11 and found.share("layers.11.experts.0.bias") == 1


def test_one_block_is_the_deepest():
    network = nn.Module()
    network.layers = nn.ModuleList([nn.Linear(2, 2)])
    assert depth(network).share("layers.0.weight") == 1.0
