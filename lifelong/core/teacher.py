"""How far the network is from a teacher, which is the same network run with other weights."""

from collections.abc import Mapping

from torch import Tensor

from lifelong.core.axes import Context
from lifelong.core.features import decision_features
from lifelong.errors import UserError
from lifelong.numerics.distillation import kl_divergence
from lifelong.numerics.swap import taught


def need_batch(context: Context, method: str) -> None:
    if None in (context.model, context.objective, context.batch, context.outputs):
        raise UserError(
            f"{method} looks at the current batch: give Context(model=..., objective=..., batch=..., "
            "outputs=...)."
        )


def answer_distance(context: Context, teacher: Mapping[str, Tensor], temperature: float) -> Tensor:
    """Mean over labelled positions of T^2 KL(teacher || network); of old labels, where a head grows."""
    network = context.model.network
    with taught(network, context.params, teacher):
        old = context.objective.forward(network, context.batch).logits
    columns = slice(context.num_old_labels)  # all where no head grows
    return kl_divergence(context.outputs.logits[:, columns], old[:, columns], temperature).mean()


def feature_distance(context: Context, teacher: Mapping[str, Tensor]) -> Tensor:
    """Mean squared difference of what the output head reads at labelled positions. Without
    `context.features` the network reads the batch once more.
    """
    network, new = context.model.network, context.features
    with taught(network, context.params, teacher):
        old = decision_features(context.objective, network, context.batch)
    if new is None:
        new = decision_features(context.objective, network, context.batch)
    return (new.float() - old.float()).square().mean()
