"""Made-up features of a few classes, and small runs of learners in closed form."""

import tiny
import tiny_stream
import torch

from lifelong import launch
from lifelong.core.composition import compose
from lifelong.core.engine import Settings
from lifelong.models import pretrained
from lifelong.tuners.full import Full


def rows(count=200, size=12, classes=5, seed=0):
    """(features float64, labels): Gaussian clouds of unlike size around random means."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    means, mixing = 2 * torch.randn(classes, size, **draw), torch.randn(size, size, **draw)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return means[labels] + torch.randn(count, size, **draw) @ mixing, labels


def learned(method, features, labels, order=None, batch=32):
    """State after taking in the rows in `order`, some at a time."""
    order = torch.arange(len(labels)) if order is None else order
    state = method.init(features.shape[1])
    for part in order.split(batch):
        state = method.learn(state, features[part], labels[part])
    return state


def by_task(labels):
    """Rows of the classes 3, 4, then of 0, 1, then of 2."""
    return torch.cat([(labels == c).nonzero()[:, 0] for c in (4, 3, 0, 1, 2)])


def decisions(head, features):
    weight, bias = head
    return (features @ weight.T + bias).argmax(1)


def train(path, analytic, architecture="bert", tuner=None, listen=lambda event: None, **settings):
    stream = tiny_stream.stream(vision=architecture == "vit", general=False)
    methods = compose([tuner or Full(), analytic], Full())
    model = pretrained.load(str(tiny.save(tiny.model(architecture), path.parent / architecture)))
    run = launch.run(model, stream, methods, output=path, settings=Settings(**settings), listen=listen)
    return run, model
