"""LoRA equals peft's in outputs and gradients, starts as the base and folds without a trace."""

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from lifelong.core.axes import Context
from lifelong.errors import UserError
from lifelong.tuners.lora import Lora


def inputs(architecture):
    torch.manual_seed(7)
    if architecture == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    batch = {"input_ids": torch.randint(3, 250, (2, 9))}
    return batch | ({"decoder_input_ids": torch.randint(3, 250, (2, 4))} if architecture == "t5" else {})


def output(network, batch):
    found = network(**batch)
    return found.logits if "logits" in found else found.last_hidden_state


def disturb(network, seed=5):
    """Give every B a value, so that the update does something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_attach_changes_no_bit_and_fold_keeps_the_function(architecture):
    model, batch = tiny.model(architecture), inputs(architecture)
    names = {n for n, _ in model.network.named_parameters()}
    model.network.requires_grad_(False)  # PyTorch takes another kernel for trained weights in T5
    before = output(model.network, batch)
    state = Lora(rank=4).attach(model, None, seed=0)
    assert torch.equal(output(model.network, batch), before)
    assert all("lora_" in name for name in model.params())
    disturb(model.network)
    trained = output(model.network, batch)
    assert not torch.allclose(trained, before, atol=1e-3)
    Lora(rank=4).fold(model, state)
    assert {n for n, _ in model.network.named_parameters()} == names
    torch.testing.assert_close(output(model.network, batch), trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_equals_peft_in_outputs_and_gradients(architecture):
    batch = inputs(architecture)
    model = tiny.model(architecture)
    Lora(rank=4, alpha=12.0).attach(model, None, seed=0)
    disturb(model.network)
    theirs = tiny.network(architecture)
    targets = _targets(model)
    theirs = get_peft_model(
        theirs, LoraConfig(r=4, lora_alpha=12, target_modules=targets, fan_in_fan_out=architecture == "gpt2")
    )
    mine = dict(model.network.named_parameters())
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data = mine[name.removeprefix("base_model.model.").replace(".default", "")].data.clone()
    ours, reference = output(model.network, batch), output(theirs, batch)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    (ours**2).sum().backward()
    (reference**2).sum().backward()
    compared = 0
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            own = mine[name.removeprefix("base_model.model.").replace(".default", "")]
            if parameter.grad is None:  # BERT's pooler stands beside this output
                assert own.grad is None and "pooler" in name
                continue
            torch.testing.assert_close(own.grad, parameter.grad, atol=1e-3, rtol=1e-4)
            compared += bool(own.grad.abs().sum() > 0)
    assert compared == 2 * sum("pooler" not in name for name in targets)


def _targets(model):
    return [
        name.removesuffix(".lora_A") for name, _ in model.network.named_modules() if name.endswith(".lora_A")
    ]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_an_update_is_a_pair_beside_the_line(share):
    """Both ends to the bit; between them the weights leave the straight line by share (1 - share) s dB dA."""
    tuner, model = Lora(rank=4, alpha=12.0), tiny.model("gpt2")
    state = tuner.attach(model, None, seed=0)
    context = Context(params=model.params(), model=model)
    disturb(model.network)
    before = {name: p.detach().clone() for name, p in context.params.items()}
    line = {name: (1 - share) * product(each) for name, each in tuner.low_rank(model, state).items()}
    generator = torch.Generator().manual_seed(6)
    for parameter in context.params.values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    after = {name: p.detach().clone() for name, p in context.params.items()}
    for name, each in tuner.low_rank(model, state).items():
        line[name] += share * product(each)
    tuner.interpolate(context, state, before, lambda name: share)
    for name, parameter in context.params.items():
        if share in (0, 1):
            assert torch.equal(parameter, (before, after)[int(share)][name])
    for name, each in tuner.low_rank(model, state).items():
        assert each.down.shape[0] == each.up.shape[1] == 4
        down, up = (after[f"{name}.{k}.weight"] - before[f"{name}.{k}.weight"] for k in ("lora_A", "lora_B"))
        beside = share * (1 - share) * 12.0 / 4 * up @ down
        torch.testing.assert_close(line[name] - product(each), beside, atol=1e-6, rtol=1e-5)
        assert share in (0, 1) or beside.norm() > 0.01  # control: it is not the line


def product(update):
    return update.scale * update.up @ update.down


def test_dropout_acts_in_training_only():
    model, batch = tiny.model("llama"), inputs("llama")
    Lora(rank=4, dropout=0.5).attach(model, None, seed=0)
    disturb(model.network)
    model.network.eval()
    assert torch.equal(output(model.network, batch), output(model.network, batch))
    model.network.train()
    assert not torch.equal(output(model.network, batch), output(model.network, batch))


def test_bad_targets_and_ranks_say_what_would_do():
    with pytest.raises(UserError, match="q_prok.*Did you mean `q_proj`"):
        Lora(targets=("q_prok",)).attach(tiny.model("llama"), None, seed=0)
    with pytest.raises(UserError, match="rank must be at most 16 for a 16 x 32 module; got 64"):
        Lora(rank=64, targets=("k_proj",)).attach(tiny.model("llama"), None, seed=0)
    with pytest.raises(UserError, match=r"Lora.rank must be in the range \[1, inf\); got 0"):
        Lora(rank=0)
