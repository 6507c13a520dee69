"""A stage in closed form: features of its rows, the learner's state, the head that follows from it."""

import torch

from lifelong.core import batching, head
from lifelong.core.life import Life

ROWS_AT_ONCE = 64


def learn(life: Life) -> None:
    """Let the analytic learner, where there is one, take in the stage's own rows (in an erase stage, take
    them back) and write the head.

    Every process learns all rows, so that all hold the same state.
    """
    analytic = life.methods.analytic
    if analytic is None:
        return
    classifier = head.head_of(life.network)
    take = analytic.forget if life.erasing else analytic.learn
    device, state = life.accelerator.device, life.states["analytic"]
    life.network.eval()
    with torch.no_grad(), life.serving():
        for part in batching.parts(life.pool[life.own :], life.objectives, life.model, device, ROWS_AT_ONCE):
            with life.autocast():
                found = part.objective.features(life.network, part.batch)
            state = take(state, classifier.expand(found).double(), part.batch["labels"])
    life.states["analytic"] = state
    weight, bias = analytic.head(state, len(classifier.labels))
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)
