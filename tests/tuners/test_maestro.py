"""Maestro recovers the SVD of a linear map, prunes within its promise, and keeps the function."""

import pytest
import tiny
import torch
from test_lora import inputs, output
from torch import nn

from lifelong.core import state as states
from lifelong.core.axes import Context
from lifelong.core.model import Model
from lifelong.tuners.maestro import Maestro


class Map(nn.Module):
    """One linear map, 6 to 9."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.map = nn.Linear(6, 9, bias=False)

    def get_output_embeddings(self):
        return None

    def forward(self, rows):
        return self.map(rows)


def target():
    """A 9 x 6 matrix with the singular values 9, 6 and 3."""
    generator = torch.Generator().manual_seed(1)
    left = torch.linalg.qr(torch.randn(9, 3, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(6, 3, generator=generator)).Q
    return left @ torch.diag(torch.tensor([9.0, 6.0, 3.0])) @ right.T


def learned(steps=2000, **settings):
    """Identity inputs, mean squared error, gradient descent at 0.5."""
    method = Maestro(prune=0.0, **settings)
    model = Model(network=Map(), processor=None, kind="encoder", window=1)
    state = method.attach(model, None, seed=0)
    wanted, rows = target().T, torch.eye(6)
    model.network.train()

    def context(step):
        return Context(params=model.params(), model=model, step=step, seed=7)

    state = method.begin_stage(context(0), state)
    for step in range(steps):
        loss = (model.network(rows) - wanted).square().mean()
        term = method.loss(context(step), state)
        (loss if term is None else loss + term).backward()
        with torch.no_grad():
            for parameter in model.params().values():
                parameter -= 0.5 * parameter.grad
                parameter.grad = None
        state = method.after_update(context(step), state)
    module = model.network.map
    return module.lora_A.weight.detach(), module.lora_B.weight.detach()


def prefix_errors(down, up):
    """Relative excess over the best approximation of rank 1 and 2, and what is left in full."""
    wanted = target()
    left, values, right = torch.linalg.svd(wanted, full_matrices=False)
    found = []
    for b in (1, 2):
        best = left[:, :b] * values[:b] @ right[:b]
        found.append(float((up[:, :b] @ down[:b] - best).norm() / best.norm()))
    return found, float((up @ down - wanted).norm())


def test_it_recovers_the_singular_values_and_best_approximations():
    down, up = learned()
    importance = down.norm(dim=1) * up.norm(dim=0)
    torch.testing.assert_close(importance[:3], torch.tensor([9.0, 6.0, 3.0]), rtol=0.03, atol=0.0)
    assert importance[3:].max() < 0.15
    errors, rest = prefix_errors(down, up)
    assert max(errors) < 0.03 and rest < 0.2


def test_without_sampled_widths_no_order_comes_about():
    down, up = learned(sample=False)
    errors, rest = prefix_errors(down, up)
    assert rest < 0.2 and min(errors) > 0.1


def test_the_lasso_shrinks_what_is_not_needed():
    kept, shrunk = (learned(shrink=size) for size in (0.0, 1e-3))
    tail = [float(down[3:].norm() * up[:, 3:].norm()) for down, up in (kept, shrunk)]
    assert tail[1] < 0.5 * tail[0]


def attached(architecture, **settings):
    model, method = tiny.model(architecture), Maestro(**settings)
    return model, method, method.attach(model, None, seed=0)


def context(model, step=0, seed=5):
    return Context(params=model.params(), model=model, step=step, seed=seed)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_attach_and_fold_keep_the_function_up_to_rounding(architecture):
    batch, base = inputs(architecture), tiny.model(architecture)
    before = output(base.network, batch)
    names = {n for n, _ in base.network.named_parameters()}
    model, method, state = attached(architecture)
    state = method.begin_stage(context(model), state)
    model.network.eval()  # a width is drawn, for training alone
    torch.testing.assert_close(output(model.network, batch), before, atol=1e-4, rtol=1e-4)
    for parameter in model.params().values():
        parameter.data *= 1.1
    trained = output(model.network, batch)
    assert not torch.allclose(trained, before, atol=1e-3)
    method.fold(model, state)
    torch.testing.assert_close(output(model.network, batch), trained, atol=1e-4, rtol=1e-4)
    assert {n for n, _ in model.network.named_parameters()} == names


def test_pruning_changes_no_weight_by_more_than_the_threshold():
    model, method, state = attached("llama", prune=0.3)
    weights = {n: m.lora_B.weight @ m.lora_A.weight for n, m in modules(model, state)}
    ended = method.end_stage(context(model), method.begin_stage(context(model), state))
    assert ended["drawn"] is None and 0 < sum(ended["kept"].values()) < sum(state["kept"].values())
    for name, module in modules(model, ended):
        kept = ended["kept"][name]
        assert module.lora_kept == module.lora_width == kept
        changed = (weights[name] - module.lora_B.weight[:, :kept] @ module.lora_A.weight[:kept]).norm()
        assert changed <= 0.3
        if kept:
            column = module.lora_B.weight[:, kept - 1 :] @ module.lora_A.weight[kept - 1 :]
            assert column.norm() > 0.3 / len(module.lora_A.weight)  # control: not all could go
    assert set(model.params()) == set(dict(attached("llama")[0].params()))  # names stay for penalties


def modules(model, state):
    return [(name, model.network.get_submodule(name)) for name in state["kept"]]


def test_every_step_draws_one_width_of_one_module_uniformly():
    model, method, state = attached("llama", targets=("k_proj", "q_proj"))
    counts: dict = {}
    for step in range(4000):
        state = method.after_update(context(model, step), state)
        name, width = state["drawn"]
        counts[name, width] = counts.get((name, width), 0) + 1
    assert state == method.after_update(context(model, 3999), state)  # a function of seed and step
    assert state["drawn"] != method.after_update(context(model, 3999, seed=6), state)["drawn"]
    pairs = sum(state["kept"].values())
    assert len(counts) == pairs == 2 * (16 + 32)
    expected = 4000 / pairs
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert statistic < 150  # chi-square, 95 degrees: 0.9998 quantile is about 150
    state = method.after_update(context(model, 3999), state)
    widths = {n: m.lora_width for n, m in modules(model, state)}
    assert [n for n in widths if widths[n] != state["kept"][n]] in ([], [state["drawn"][0]])
    assert widths[state["drawn"][0]] == state["drawn"][1]


def test_a_saved_state_rebuilds_kept_and_drawn_columns():
    model, method, state = attached("gpt2", prune=0.05, interval=1)
    state = method.after_update(context(model), state)
    again = tiny.model("gpt2")
    rebuilt = method.attach(again, states.join(*states.split(state)), seed=9)
    assert rebuilt == state
    for name, parameter in model.params().items():
        again.params()[name].data.copy_(parameter.data)
    for mode in (True, False):
        model.network.train(mode), again.network.train(mode)
        for network in (model.network, again.network):
            for module in network.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        batch = inputs("gpt2")
        assert torch.equal(output(again.network, batch), output(model.network, batch))
