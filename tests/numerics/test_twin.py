"""A twin computes what the network computed, whatever is added to the network later."""

import pytest
import tiny
import torch

from lifelong.numerics.twin import twin
from lifelong.tuners.lora import Lora


def logits(network):
    with torch.no_grad():
        return network(input_ids=torch.arange(3, 12)[None]).logits


@pytest.mark.parametrize("share", [True, False])
def test_what_is_added_later_is_not_in_it(share):
    model = tiny.model("gpt2")
    before, other = logits(model.network), twin(model.network, share)
    Lora(rank=2).attach(model, None, 0)
    model.network.transformer.h[0].mlp.c_fc.lora_B.weight.data.normal_()
    assert not torch.equal(logits(model.network), before)
    assert torch.equal(logits(other), before)
    assert not any("lora" in name for name, _ in other.named_parameters())


def test_memory_is_shared_or_apart_and_ties_stay():
    network = tiny.network("gpt2")
    shared, apart = twin(network, share=True), twin(network, share=False)
    for name, parameter in network.named_parameters():
        assert shared.get_parameter(name).data_ptr() == parameter.data_ptr()
        assert apart.get_parameter(name).data_ptr() != parameter.data_ptr()
        assert torch.equal(apart.get_parameter(name), parameter)
    assert apart.lm_head.weight is apart.transformer.wte.weight
    assert shared.lm_head.weight is shared.transformer.wte.weight
    network.transformer.wte.weight.data.add_(1)
    assert torch.equal(shared.transformer.wte.weight, network.transformer.wte.weight)
    assert not torch.equal(apart.transformer.wte.weight, network.transformer.wte.weight)
