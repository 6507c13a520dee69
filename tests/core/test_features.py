"""Features are what the output head reads at labelled positions, for every objective."""

import pytest
import tiny
import tiny_stream
import torch
from torch import nn

from lifelong.core import head
from lifelong.core.features import decision_features, inputs_of
from lifelong.errors import UserError
from lifelong.objectives.classification import Classification


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_head_on_the_features_gives_the_logits(architecture):
    model = tiny.model(architecture)
    objective, rows = Classification(), tiny_stream.rows("sky", 5, 0, vision=architecture == "vit")
    objective.begin_stage(model, ["sky0", "sky1"], 0)
    examples = objective.encode(rows, model, ["sky0", "sky1"]).examples
    batch = objective.collate(examples, model)
    outputs = objective.forward(model.network, batch)
    found = decision_features(objective, model.network, batch)
    decides = head.find(model.network) or model.network.get_output_embeddings()
    assert found.shape == (len(outputs.targets), model.hidden_size) and found.requires_grad
    torch.testing.assert_close(decides(found), outputs.logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(decides(found.flip(0)), outputs.logits, atol=1e-5)  # control: order counts
    if architecture in ("bert", "vit"):
        torch.testing.assert_close(found, objective.features(model.network, batch))


def test_hooks_are_gone_afterwards_and_a_head_that_is_not_called_is_named():
    model = tiny.model("llama")
    with pytest.raises(RuntimeError), inputs_of([model.network.lm_head]):
        raise RuntimeError
    assert not model.network.lm_head._forward_hooks

    class Deaf(Classification):
        def forward(self, network: nn.Module, batch):
            return None

    with pytest.raises(UserError, match="form: prediction"):
        decision_features(Deaf(), model.network, {})
