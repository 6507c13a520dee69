"""A stage in plain PyTorch, with the hooks where the engine has them."""

import torch
from test_lora import inputs, output
from torch.nn import functional

from lifelong.core.axes import Context


def loss_of(network, architecture, step):
    """Learn random tokens, another batch in every step."""
    batch = inputs(architecture)
    made = output(network, batch)
    generator = torch.Generator().manual_seed(step)
    if architecture in ("bert", "vit"):
        return functional.mse_loss(made, torch.randn(made.shape, generator=generator))
    targets = torch.randint(3, 250, made.shape[:-1], generator=generator)
    return functional.cross_entropy(made.flatten(0, 1), targets.flatten())


def train(method, model, state, *, architecture="llama", steps=3, stage=0, rate=1e-2, decay=0.1, watch=None):
    """(state, optimiser) after a stage; `watch(step, model)` looks on after every update."""
    network = model.network
    beginning = Context(params=model.params(), model=model, stage=stage, seed=stage + 1)
    state = method.begin_stage(beginning, state)
    params = model.params()
    optimizer = torch.optim.AdamW(list(params.values()), lr=rate, weight_decay=decay)
    network.train()
    for step in range(steps):
        torch.manual_seed(step)
        context = Context(
            params=params, model=model, stage=stage, step=step, learning_rate=rate, seed=stage + 1
        )
        loss_of(network, architecture, step).backward()
        state = method.before_update(context, state)
        optimizer.step()
        state = method.after_update(context, state)
        optimizer.zero_grad(set_to_none=True)
        if watch is not None:
            watch(step, model)
    network.eval()
    return state, optimizer


def values(model):
    return {name: p.detach().clone() for name, p in model.network.named_parameters()}


def same(left, right):
    return {name for name in left if torch.equal(left[name], right[name])}
