"""O-LoRA: boundaries keep the function, old pairs keep every bit, rank adds up."""

import pytest
import tiny
import torch
from test_lora import disturb, inputs, output

from lifelong.core import state as states
from lifelong.core.axes import Context
from lifelong.tuners.o_lora import OLora


def boundary(model, stage):
    return Context(params=model.params(), model=model, stage=stage, seed=stage)


def grown(architecture, stages=3, method=None):
    """A model after `stages` stages of pretended training, its state, and outputs at the boundaries."""
    method = method or OLora(rank=2)
    model = tiny.model(architecture)
    state = method.attach(model, None, seed=0)
    kept = []
    for stage in range(stages):
        state = method.begin_stage(boundary(model, stage), state)
        disturb(model.network, seed=stage)
        kept.append(state)
        state = method.end_stage(boundary(model, stage), state)
    return method, model, state, kept


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_boundaries_keep_the_function(architecture):
    method, batch = OLora(rank=2), inputs(architecture)
    model = tiny.model(architecture)
    base = output(model.network, batch)
    state = method.attach(model, None, seed=0)
    for stage in range(3):
        before = output(model.network, batch)
        state = method.begin_stage(boundary(model, stage), state)
        assert torch.equal(output(model.network, batch), before)
        disturb(model.network, seed=stage)
        trained = output(model.network, batch)
        assert not torch.allclose(trained, before, atol=1e-3)
        state = method.end_stage(boundary(model, stage), state)
        torch.testing.assert_close(output(model.network, batch), trained, atol=2e-5, rtol=2e-5)
    method.fold(model, state)
    torch.testing.assert_close(output(model.network, batch), trained, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(trained, base, atol=1e-3)


def test_old_pairs_keep_every_bit_and_rank_grows():
    method, model, state, kept = grown("llama", stages=4)
    for name, past in state["past"].items():
        assert past["down"].shape[0] == past["up"].shape[1] == 8
        for stage, earlier in enumerate(kept):
            assert torch.equal(past["down"][: 2 * stage], earlier["past"][name]["down"])
    update = method.low_rank(model, state)
    assert {each.down.shape[0] for each in update.values()} == {8}


def test_the_update_is_the_explicit_sum():
    method, model, state, _ = grown("llama", stages=3)
    base = dict(tiny.network("llama").named_parameters())
    for name, past in state["past"].items():
        explicit = base[f"{name}.weight"] + method.scale * past["up"] @ past["down"]
        torch.testing.assert_close(model.network.get_submodule(name).weight, explicit, atol=1e-6, rtol=1e-6)


def test_old_factors_never_get_a_gradient():
    method, model, state, _ = grown("llama", stages=2)
    output(model.network, inputs("llama")).sum().backward()
    trained = {name for name, p in model.network.named_parameters() if p.grad is not None}
    assert trained == set(model.params())
    assert not any(t.requires_grad for t in states.split(state)[0].values())


def test_a_saved_state_rebuilds_the_same_model():
    method, model, state, _ = grown("gpt2", stages=2)
    tensors, tree = states.split(state)
    again = tiny.model("gpt2")
    method.attach(again, states.join(tensors, tree), seed=9)
    for name, parameter in model.params().items():
        again.params()[name].data.copy_(parameter.data)
    batch = inputs("gpt2")
    assert torch.equal(output(again.network, batch), output(model.network, batch))


def test_subspaces_show_past_and_current_inputs():
    method, model, state, _ = grown("llama", stages=2)
    for name, (past, current) in method.subspaces(model, state).items():
        assert past.shape[0] == 4 and not past.requires_grad
        assert current is model.network.get_submodule(name).lora_A.weight and current.requires_grad


def test_in_bfloat16_the_weight_is_rounded_once():
    """Ten stages leave the weight one rounding away from the exact sum; adding up in place would not."""
    method, model = OLora(rank=2), tiny.model("llama")
    model.network.to(torch.bfloat16)
    base = {n: p.detach().clone() for n, p in model.network.named_parameters()}
    state = method.attach(model, None, seed=0)
    drifting = {n: p.clone() for n, p in base.items()}
    for stage in range(10):
        state = method.begin_stage(boundary(model, stage), state)
        disturb(model.network, seed=stage)
        for name in state["past"]:
            module = model.network.get_submodule(name)
            step = method.scale * (module.lora_B.weight @ module.lora_A.weight).detach()
            drifting[f"{name}.weight"] = (drifting[f"{name}.weight"].float() + step).to(torch.bfloat16)
        state = method.end_stage(boundary(model, stage), state)
    ours = theirs = 0.0
    for name, past in state["past"].items():
        exact = base[f"{name}.weight"].float() + method.scale * past["up"] @ past["down"]
        weight = model.network.get_submodule(name).weight
        assert torch.equal(weight, exact.to(torch.bfloat16))
        ours += float((weight.float() - exact).norm())
        theirs += float((drifting[f"{name}.weight"].float() - exact).norm())
    assert theirs > 1.5 * ours
