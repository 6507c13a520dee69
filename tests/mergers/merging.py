"""A pretended stage: weights that moved, between the two hooks of a merger."""

import tiny
import tiny_stream
import torch

from lifelong.core import batching
from lifelong.core.axes import Context
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora
from lifelong.tuners.o_lora import OLora


def stage(architecture="llama", tuner=None, name="sky", number=0):
    """(context, stage) with the tuner attached and the rows encoded."""
    tuner, model = tuner or Full(), tiny.model(architecture)
    state = tuner.attach(model, None, seed=0)
    made = tiny_stream.stream(vision=architecture == "vit", stages=(name,), general=False).stages[0]
    made.objective.begin_stage(model, made.labels, 0)
    context = Context(
        params=model.params(), model=model, tuner=tuner, tuner_state=state, objective=made.objective,
        stage=number, seed=number, objectives=[made.objective],
        examples=made.objective.encode(made.rows, model, made.labels).examples,
        batches=lambda rows: iter([batching.part(made.objective, rows, model, model.device).batch]),
    )  # fmt: skip
    context.tuner_state = tuner.begin_stage(context, state)
    return context, made


def moved(context, size=0.05, seed=1, only=""):
    """Disturb the weights; returns copies of those before and after."""
    generator = torch.Generator().manual_seed(seed)
    before = {n: p.detach().clone() for n, p in context.params.items()}
    for name, p in context.params.items():
        if only in name:
            p.data.add_(size * torch.randn(p.shape, generator=generator))
    return before, {n: p.detach().clone() for n, p in context.params.items()}


def merged(method, context, **how):
    """(before, after, merged weights, state) of one stage."""
    state = method.begin_stage(context, method.init(context))
    before, after = moved(context, **how)
    state = method.end_stage(context, state)
    return before, after, dict(context.params), state


TUNERS = {"full": Full(), "o_lora": OLora(rank=2), "lora": Lora(rank=2)}
