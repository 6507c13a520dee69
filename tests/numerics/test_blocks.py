"""Blocks: every matrix of a block once, by category and size."""

import pytest
import tiny

from lifelong.numerics.blocks import blocks

NUMBERS = {  # sizes of the categories of matrices, by stack
    "llama": [{"self_attn": [2, 2], "feed-forward": [3]}],
    "gpt2": [{"attn": [1, 1], "feed-forward": [2]}],
    "bert": [{"attention": [4], "feed-forward": [2]}],
    "t5": [
        {"layer.0": [4], "feed-forward": [2]},
        {"layer.0": [4], "layer.1": [4], "feed-forward": [2]},
    ],
    "vit": [{"attention": [4], "feed-forward": [2]}],
}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_categories(architecture):
    network = tiny.network(architecture)
    found = blocks(network)
    assert len(found) == len(NUMBERS[architecture])
    for members, expected in zip(found.values(), NUMBERS[architecture], strict=True):
        assert len(members) == 2
        for block in members:
            sizes = {}
            for key, units in block.items():
                kind = key.rpartition("/")[0]
                if kind != "norm":
                    sizes.setdefault(kind, []).append(len(units))
            assert {k: sorted(v) for k, v in sizes.items()} == {k: sorted(v) for k, v in expected.items()}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_parameter_of_a_block_once(architecture):
    network = tiny.network(architecture)
    listed = [
        name
        for members in blocks(network).values()
        for block in members
        for units in block.values()
        for unit in units
        for name in unit
    ]
    stacks = tuple(f"{stack}." for stack in blocks(network))
    inside = {name for name, _ in network.named_parameters() if name.startswith(stacks)}
    inside = {name for name in inside if "relative_attention_bias" not in name}  # an embedding
    assert len(listed) == len(set(listed)) and set(listed) == inside
