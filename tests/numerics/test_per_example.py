"""Per-example gradients against one forward and one backward pass per example."""

import time

import pytest
import tiny
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lifelong.numerics.low_rank import ALL_LINEAR, attach_all
from lifelong.numerics.per_example import (
    PerExample,
    Scores,
    per_example_gradients,
    squared_gradient_sum,
)

NUM = 4


def text(num=NUM, length=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 259, (num, length), generator=generator)
    ids[:, 4] = ids[:, 2]  # one token twice in an example
    return ids


def scorer(architecture, network):
    """(score of a batch of inputs, inputs): heads are fed with selected positions only."""
    if architecture in ("llama", "gpt2"):

        def score(ids):
            hidden = network.base_model(input_ids=ids).last_hidden_state[:, :-1]
            keep = ids[:, 1:] % 3 > 0  # another number of labelled positions in each example
            owners = keep.nonzero()[:, 0]
            log_p = network.lm_head(hidden[keep][None])[0].log_softmax(-1)
            taken = log_p.gather(-1, ids[:, 1:][keep][:, None])[:, 0]
            return Scores(taken.new_zeros(len(ids)).index_add(0, owners, taken), owners)

        return score, text()
    if architecture == "t5":

        def score(ids):
            logits = network(input_ids=ids[:, :5], decoder_input_ids=ids[:, 5:]).logits
            return logits.log_softmax(-1)[..., 7].sum(1)

        return score, text()
    if architecture == "bert":
        return lambda ids: network(input_ids=ids).pooler_output.square().sum(-1), text()
    pixels = torch.randn(NUM, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return lambda rows: network(pixel_values=rows).pooler_output.square().sum(-1), pixels


def values(made):
    return made.values if isinstance(made, Scores) else made


def brute_force(params, score, inputs):
    """(B, *shape) by a forward and a backward pass for each example alone."""
    rows = []
    for index in range(len(inputs)):
        value = values(score(inputs[index : index + 1]))[0]
        rows.append(torch.autograd.grad(value, list(params.values()), materialize_grads=True))
    return {name: torch.stack(column) for name, column in zip(params, zip(*rows, strict=True), strict=True)}


def same(left, right, tolerance=2e-5):
    for name, expected in right.items():
        error = (left[name] - expected).norm()
        assert left[name].shape == expected.shape and left[name].dtype == torch.float32, name
        assert error <= tolerance * expected.norm() + 1e-9, (name, error, expected.norm())


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_all_weights_equal_brute_force(architecture):
    network = tiny.network(architecture)
    params = dict(network.named_parameters())
    score, inputs = scorer(architecture, network)
    expected = brute_force(params, score, inputs)
    series = PerExample(network, params)
    same(series.gradients(lambda: score(inputs)), expected)
    squares = {name: rows.square().sum(0) for name, rows in expected.items()}
    for _ in range(2):  # the first is verified, the second trusted
        same(series.squared_sum(lambda: score(inputs)), squares)
    slow = {name for name in params if "relative_attention_bias" in name}
    assert series.exact == slow  # nothing else needs one pass per example


def test_square_of_the_batch_gradient_is_something_else():
    network = tiny.network("llama")
    params = dict(network.named_parameters())
    score, inputs = scorer("llama", network)
    per_batch = torch.autograd.grad(values(score(inputs)).sum(), list(params.values()))
    wrong = {name: g.square() for name, g in zip(params, per_batch, strict=True)}
    with pytest.raises(AssertionError):
        same(squared_gradient_sum(network, params, lambda: score(inputs)), wrong, tolerance=0.05)


def add_adapters(network, rank=8):
    """Low-rank pairs as child modules that a forward hook calls; only they are trainable."""
    network.requires_grad_(False)
    params = {}
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            module.lora_A = nn.Linear(module.in_features, rank, bias=False)
            module.lora_B = nn.Linear(rank, module.out_features, bias=False)
            module.register_forward_hook(lambda m, args, out: out + 2 * m.lora_B(m.lora_A(args[0])))
            params[f"{name}.lora_A.weight"] = module.lora_A.weight
            params[f"{name}.lora_B.weight"] = module.lora_B.weight
    return params


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_adapters_equal_brute_force(architecture):
    network = tiny.network(architecture)
    params = add_adapters(network)
    score, inputs = scorer(architecture, network)
    series = PerExample(network, params)
    same(series.gradients(lambda: score(inputs)), brute_force(params, score, inputs))
    assert not series.exact


def test_wrong_owners_are_found_out():
    network = tiny.network("llama")
    params = {"head": network.lm_head.weight}
    score, inputs = scorer("llama", network)

    def lying():
        made = score(inputs)
        return Scores(made.values, made.owners.flip(0))

    series = PerExample(network, params)
    expected = brute_force(params, score, inputs)
    same(series.gradients(lying), expected)
    assert series.exact == {"head"}
    blind = PerExample(network, params)
    blind._agree = lambda *_: True  # control: without the check the answer is wrong
    with pytest.raises(AssertionError):
        same(blind.gradients(lying), expected)


def test_memory_limit_changes_nothing():
    network = tiny.network("gpt2")
    params = dict(network.named_parameters())
    score, inputs = scorer("gpt2", network)
    whole = squared_gradient_sum(network, params, lambda: score(inputs))
    pieces = squared_gradient_sum(network, params, lambda: score(inputs), memory_bytes=1)
    same(pieces, whole, tolerance=1e-6)
    rows = per_example_gradients(network, params, lambda: score(inputs), memory_bytes=1)
    same({name: g.square().sum(0) for name, g in rows.items()}, whole, tolerance=1e-6)


def test_sixteen_bit_network_takes_one_pass():
    network = tiny.network("llama").to(torch.bfloat16)
    params = dict(network.named_parameters())
    score, inputs = scorer("llama", network)
    series = PerExample(network, params)
    made = series.gradients(lambda: score(inputs))
    assert not series.exact
    same(made, {n: g.float() for n, g in brute_force(params, score, inputs).items()}, tolerance=0.05)


def test_float32_adapters_beside_sixteen_bit_weights_take_one_pass():
    """Compared as if they were exact to float32, all of them would take the slow way."""
    network = tiny.network("llama").to(torch.bfloat16)
    params = add_adapters(network)
    score, inputs = scorer("llama", network)
    series = PerExample(network, params)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = series.gradients(lambda: score(inputs))
        expected = brute_force(params, score, inputs)
    assert not series.exact
    same(made, expected, tolerance=0.05)


def test_rounding_of_a_deep_network_is_the_same_on_both_sides():
    """With weights that round, some parameters of a sound network were 10 % apart and took the slow way."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=24, num_attention_heads=4,
        num_key_value_heads=4, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    network = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    params = add_adapters(network)
    score, inputs = scorer("llama", network)
    series, apart = PerExample(network, params), []
    agree = series._agree

    def seen(name, made, expected, shares):
        apart.append(float((made - expected).norm() / expected.norm()))
        return agree(name, made, expected, shares)

    series._agree = seen
    with torch.autocast("cpu", dtype=torch.bfloat16):
        series.squared_sum(lambda: score(inputs))
    assert not series.exact and len(apart) == len(params) and max(apart) < 0.005


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_float32_weights_under_autocast_take_one_pass(architecture):
    """As the engine trains whole weights in bfloat16."""
    network = tiny.network(architecture)
    params = dict(network.named_parameters())
    score, inputs = scorer(architecture, network)

    def cast(rows=inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return score(rows)

    series = PerExample(network, params)
    made = series.gradients(cast)
    # of (L, L, heads), the same for all examples: no row is of one of them
    assert all("relative_attention_bias" in name for name in series.exact)
    same(made, brute_force(params, cast, inputs), tolerance=0.05)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_pairs_of_ours_take_one_pass(kind):
    """The score alone is computed under autocast, as `diagonal_fisher` does it."""
    network = tiny.network("llama").to(kind)
    attach_all(network, [ALL_LINEAR], rank=2, scale=2.0, dropout=0.0, seed=0)
    generator = torch.Generator().manual_seed(3)
    params = {name: p for name, p in network.named_parameters() if "lora_" in name}
    for parameter in params.values():
        parameter.data.normal_(0, 0.1, generator=generator)
    score, inputs = scorer("llama", network)

    def cast(rows=inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind is torch.bfloat16):
            return score(rows)

    series = PerExample(network, params)
    made = series.gradients(cast)
    assert not series.exact
    same(made, brute_force(params, cast, inputs), tolerance=2e-5 if kind is torch.float32 else 0.05)


@pytest.mark.parametrize("fails", [False, True])
def test_network_is_left_as_it_was(fails):
    network = tiny.network("llama")
    network.train()
    network.model.layers[0].eval()
    network.lm_head.weight.requires_grad_(False)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 3.0) if parameter.requires_grad else None
    before = [(m.training, len(m._forward_hooks)) for m in network.modules()]
    flags = [p.requires_grad for p in network.parameters()]
    state, seen = torch.get_rng_state(), []
    score, inputs = scorer("llama", network)

    def run():
        seen.append(any(m.training for m in network.modules()))
        made = score(inputs)
        if fails:
            raise KeyError("stop")
        return made

    params = {"norm": network.model.norm.weight}
    with torch.no_grad():
        if fails:
            with pytest.raises(KeyError):
                squared_gradient_sum(network, params, run)
        else:
            assert squared_gradient_sum(network, params, run)["norm"].norm() > 0
    assert seen == [False]
    assert before == [(m.training, len(m._forward_hooks)) for m in network.modules()]
    assert flags == [p.requires_grad for p in network.parameters()]
    assert all(p.grad is None or bool((p.grad == 3.0).all()) for p in network.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_unused_parameter_has_no_gradient():
    network = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    inputs = torch.randn(5, 3)
    made = per_example_gradients(
        network, dict(network.named_parameters()), lambda: network["used"](inputs).sum(-1)
    )
    assert made["idle.weight"].shape == (5, 2, 3) and not made["idle.weight"].any()
    same(made, {"used.weight": inputs[:, None].expand(5, 2, 3)})


@pytest.mark.parametrize("adapters", [False, True])
def test_four_times_faster_than_one_backward_pass_per_example(adapters):
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=259, hidden_size=256, intermediate_size=688, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    ).eval()  # fmt: skip
    params = add_adapters(network) if adapters else dict(network.named_parameters())
    ids = text(32, 32)

    def score():
        log_p = network(input_ids=ids).logits[:, :-1].log_softmax(-1)
        return log_p.gather(-1, ids[:, 1:, None])[..., 0].sum(1)

    series = PerExample(network, params)
    made = series.squared_sum(score)  # verified here, trusted below
    started = time.perf_counter()
    made = series.squared_sum(score)
    fast = time.perf_counter() - started
    started = time.perf_counter()
    rows = score()
    once = time.perf_counter() - started
    started = time.perf_counter()
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for row in rows[:4]:  # an eighth of them
        for name, g in zip(
            params, torch.autograd.grad(row, list(params.values()), retain_graph=True), strict=True
        ):
            total[name].addcmul_(g, g)
    slow = once + 8 * (time.perf_counter() - started)
    print(f"ratio {slow / fast:.1f}")
    assert not series.exact and all(bool((made[name] >= total[name] * 0.999 - 1e-9).all()) for name in params)
    assert slow > 4 * fast, (slow, fast)
