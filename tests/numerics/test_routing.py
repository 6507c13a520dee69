"""Experts beside modules: what a pass tells, where blocks are, what an added child does to a network."""

import pytest
import tiny
import torch
from torch import nn

from lifelong.errors import UserError
from lifelong.numerics import low_rank, routing


def passed(architecture, masked=True, **more):
    """Arguments of a forward pass whose second row has two pads."""
    torch.manual_seed(7)
    if architecture == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    batch = {"input_ids": torch.randint(3, 250, (2, 5))}
    if masked:
        batch["attention_mask"] = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    if architecture == "t5":
        batch["decoder_input_ids"] = torch.randint(3, 250, (2, 5))
    return batch | more


def places(architecture, batch):
    """The place of the input of every linear module, by name."""
    network, found = tiny.network(architecture), {}
    trace = routing.watch(network)
    for name, module in low_rank.linear_modules(network).items():
        module.register_forward_hook(
            lambda owner, args, output, name=name: found.update({name: trace.place(args[0])})
        )
    network(**batch)
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_a_module_knows_the_pads_of_the_pass(architecture):
    batch = passed(architecture)
    inner = {n: p for n, p in places(architecture, batch).items() if "pooler" not in n}
    assert len(inner) >= 8
    for place in inner.values():
        assert torch.equal(place.mask, batch["attention_mask"]) and not place.decodes
    assert all(p.mask is None for p in places(architecture, passed(architecture, masked=False)).values())


def test_of_an_encoder_decoder_each_side_has_its_own_positions():
    """The encoder and the decoder have 5 positions each, so shapes alone would not tell them apart."""
    batch = passed("t5")
    found = places("t5", batch)
    crossed = [n for n in found if "EncDecAttention.k" in n or "EncDecAttention.v" in n]
    assert len(crossed) == 4
    for name, place in found.items():
        reads_encoder = name.startswith("encoder") or name in crossed
        assert place.decodes != reads_encoder
        assert (place.mask is not None) == reads_encoder


def test_a_row_without_positions_has_no_mask():
    found = places("bert", passed("bert"))
    assert found["pooler.dense"].mask is None
    assert all(place.mask is None for place in places("vit", passed("vit")).values())


def test_blocks_by_stack_from_the_input_on():
    found = {name: routing.blocks(tiny.network(name)) for name in tiny.ARCHITECTURES}
    assert [len(each) for each in found.values()] == [1, 1, 1, 2, 1]
    for each in found.values():
        for stack, names in each.items():
            assert names == [f"{stack}.0", f"{stack}.1"]
    with pytest.raises(UserError, match="no list of blocks"):
        routing.blocks(nn.Linear(2, 2))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_what_experts_return_is_added_to_blocks_and_linear_modules(architecture):
    class Constant(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, inputs):
            return None if self.value is None else torch.tensor(self.value)

    network, batch = tiny.network(architecture), passed(architecture)
    network.requires_grad_(False)
    before = network(**batch)[0]
    name = next(names[-1] for names in reversed(routing.blocks(network).values()))
    block, seen = network.get_submodule(name), {}
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731
    block.register_forward_hook(lambda owner, args, output: seen.update(before=first(output)))
    experts = Constant(None)
    routing.put_beside(block, experts)
    block.register_forward_hook(lambda owner, args, output: seen.update(after=first(output)))
    assert torch.equal(network(**batch)[0], before)
    experts.value = 0.5
    network(**batch)
    torch.testing.assert_close(seen["after"], seen["before"] + 0.5)
    assert routing.experts_of(network, name) is experts


def test_experts_take_the_mode_of_their_module_and_a_second_tuner_is_refused():
    network = tiny.network("llama").train()
    routing.put_beside(network.model.layers[0], routing.Adapters("a", None, 1.0, routing.watch(network)))
    network2 = tiny.network("llama").eval()
    routing.put_beside(network2.model.layers[0], routing.Adapters("a", None, 1.0, routing.watch(network2)))
    modes = [routing.adapters_of(each)[0].training for each in (network, network2)]
    assert modes == [True, False]
    with pytest.raises(UserError, match="carries routed experts already"):
        routing.watch(network)
    assert not low_rank.linear_modules(network).keys() ^ low_rank.linear_modules(tiny.network("llama")).keys()


def test_pooled_is_the_mean_over_tokens():
    states = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert routing.pooled(states, mask).tolist() == [[1.0, 2.0], [8.0, 9.0]]
    assert routing.pooled(states, None).tolist() == [[2.0, 3.0], [8.0, 9.0]]
    assert torch.equal(routing.pooled(states[0], mask), states[0])


def test_closing_a_pool_keeps_its_function():
    torch.manual_seed(0)
    trace = routing.Trace()
    mix = lambda pool, inputs, activations, place: activations  # noqa: E731
    pool = routing.Pool("a", torch.zeros(0, 4), torch.zeros(3, 0), 2.0, 0.0, mix, trace)
    x = torch.randn(5, 4)
    assert pool(x) is None
    pool.open(torch.randn(2, 4))
    assert not pool(x).any()
    pool.up.data = torch.randn(3, 2)
    expected = 2.0 * x @ pool.down.T @ pool.up.T
    torch.testing.assert_close(pool(x), expected)
    half = 2.0 * x @ pool.down[:1].T @ pool.up[:, :1].T
    both, one = pool, routing.Pool("a", torch.zeros(0, 4), torch.zeros(3, 0), 2.0, 0.0, mix, trace)
    one.open(pool.down.data)
    one.up.data = pool.up.data.clone()
    both.close(torch.tensor([True, True]))
    one.close(torch.tensor([True, False]))
    torch.testing.assert_close(both(x), expected.detach())
    torch.testing.assert_close(one(x), half.detach())
    assert not list(both.parameters())


def test_an_unnamed_adapter_is_not_computed():
    trace = routing.Trace()
    adapters = routing.Adapters("a", lambda a, hidden, place: {"1": hidden.new_ones(())}, 1.0, trace)
    adapters.members["0"] = nn.Identity()
    adapters.members["1"] = nn.Identity()
    adapters.members["0"].register_forward_hook(lambda *_: pytest.fail("was computed"))
    x = torch.randn(2, 3, 4)
    assert torch.equal(adapters(x), x)
