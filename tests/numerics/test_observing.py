"""Observing modules: pads do not count, in encoders, decoders and across; importance is the mean cosine."""

import pytest
import tiny
import torch
from torch import nn

from lifelong.core.labelled import labelled_outputs
from lifelong.numerics.low_rank import linear_modules
from lifelong.numerics.observing import observe
from lifelong.numerics.pass_through import pass_through
from lifelong.objectives.classification import Classification

LENGTHS = (9, 5, 2)


def examples(architecture):
    generator = torch.Generator().manual_seed(3)

    def tokens(n):
        return torch.randint(3, 250, (n,), generator=generator).tolist()

    if architecture == "t5":
        return [{"input_ids": tokens(n), "labels": tokens(n // 2) + [1]} for n in LENGTHS]
    if architecture == "bert":
        return [{"input_ids": tokens(n), "label": 0} for n in LENGTHS]
    return [{"input_ids": (ids := tokens(n)), "labels": [-100, *ids[1:]]} for n in LENGTHS]


def sums(architecture, groups, respect=True):
    """Sum of |output| per unit of every linear module over batches of examples."""
    model, found = tiny.model(architecture), {}

    def see(name, inputs, output, real):
        sizes = output.detach().abs()
        if real is not None and respect:
            sizes = sizes * real.unsqueeze(-1)
        found[name] = found.get(name, 0) + sizes.flatten(0, -2).sum(0)

    handles = observe(model.network, linear_modules(model.network), see)
    for group in groups:
        batch = Classification().collate(group, model)
        if architecture == "bert":
            batch.pop("labels")
            model.network(**batch)
        else:
            labelled_outputs(model.network, batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_a_padded_batch_counts_what_its_rows_count_alone(architecture):
    rows = examples(architecture)
    together, alone = sums(architecture, [rows]), sums(architecture, [[row] for row in rows])
    careless = sums(architecture, [rows], respect=False)
    assert set(together) == set(linear_modules(tiny.network(architecture)))
    for name in together:
        torch.testing.assert_close(together[name], alone[name], atol=1e-4, rtol=1e-4)
    differ = [name for name in alone if not torch.allclose(careless[name], alone[name], rtol=1e-2)]
    assert len(differ) > len(alone) / 2  # Llama embeds a pad as 0, so not in its first layer


def test_without_pads_nothing_is_masked():
    model, seen = tiny.model("llama"), []
    handles = observe(model.network, linear_modules(model.network), lambda *call: seen.append(call[3]))
    model.network(input_ids=torch.randint(3, 250, (2, 5)))
    assert seen and not any(real is not None for real in seen)
    for handle in handles:
        handle.remove()
    model.network(input_ids=torch.randint(3, 250, (2, 5)))
    assert len(seen) == len(linear_modules(model.network))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_importance_is_the_mean_cosine_of_rows_alone(architecture):
    model, rows = tiny.model(architecture), examples(architecture)
    modules = linear_modules(model.network)

    def forwards(groups):
        for group in groups:
            labelled_outputs(model.network, Classification().collate(group, model))
            yield

    model.network.train()
    found = pass_through(model.network, modules, forwards([rows]))
    assert model.network.training and not any(m._forward_hooks for m in model.network.modules())
    cosines = {name: [] for name in modules}

    def note(name):
        def called(module, args, output):
            x, y = args[0][0], output[0] - (0 if module.bias is None else module.bias)
            size = min(x.shape[-1], y.shape[-1])
            x, y = x[:, :size], y[:, :size]
            cosines[name] += ((x * y).sum(1) / x.norm(dim=1) / y.norm(dim=1)).abs().tolist()

        return called

    model.network.eval()
    for name, module in modules.items():
        module.register_forward_hook(note(name))
    with torch.no_grad():
        for _ in forwards([[row] for row in rows]):
            pass
    for name, expected in cosines.items():
        assert found[name] == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_importance_of_the_identity_is_one():
    model = tiny.model("llama")
    name = "model.layers.0.self_attn.q_proj"
    module = model.network.get_submodule(name)
    with torch.no_grad():
        module.weight.copy_(torch.eye(32))

    def forwards():
        model.network(input_ids=torch.randint(3, 250, (2, 5)))
        yield

    assert pass_through(model.network, {name: module}, forwards())[name] == pytest.approx(1.0, abs=1e-6)
    assert pass_through(model.network, {"idle": nn.Linear(2, 2)}, forwards()) == {"idle": 0.0}
