"""What a network decides on: the vectors that its output head reads, for any objective."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lifelong.core import head
from lifelong.core.axes import Batch, Objective, Outputs
from lifelong.errors import UserError


@contextmanager
def inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what `modules` are given inside, as they see it (after other hooks)."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found.append(args[0])

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def decision_features(objective: Objective, network: nn.Module, batch: Batch) -> Tensor:
    """(N, H) features at the labelled positions of a batch, see `forward_with_features`."""
    return forward_with_features(objective, network, batch)[1]


def forward_with_features(objective: Objective, network: nn.Module, batch: Batch) -> tuple[Outputs, Tensor]:
    """Outputs of a forward pass, and (N, H) what they were decided on, in their order: the input of the
    label head where one decides, else of the head over the vocabulary.
    """
    heads = [module for module in (head.find(network), network.get_output_embeddings()) if module is not None]
    with inputs_of(heads) as found:
        outputs = objective.forward(network, batch)
    if len(found) != 1:
        raise UserError(
            f"{type(network).__name__} does not call its output head as a module, so the features that it "
            "decides on cannot be read. Compare answers instead (form: prediction)."
        )
    return outputs, found[0].flatten(0, -2)
