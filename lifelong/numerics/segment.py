"""The segment of weights between those before a stage and those after it, one ratio per group.

    theta_i(r) = before_i + r_g(i) * (after_i - before_i),     d loss / d r_g = sum over i in g of
                                                               d loss / d theta_i * (after_i - before_i)

The slope needs the gradient at theta(r) alone, so no second network and no functional call.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lifelong.numerics.swap import differentiating, evaluating


class Segment:
    """`group` gives the group of a parameter, None for one that stays as it is after the stage."""

    def __init__(
        self,
        network: nn.Module,
        params: Mapping[str, nn.Parameter],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        group: Callable[[str], int | None],
    ) -> None:
        self.network = network
        groups = {name: group(name) for name in params}
        self.groups = {
            name: number
            for name, number in groups.items()
            if number is not None and not torch.equal(before[name], after[name])
        }
        self.params = {name: params[name] for name in self.groups}
        self.before, self.after = before, after
        self.change = {name: _flat(after[name]) - _flat(before[name]) for name in self.groups}

    @torch.no_grad()
    def move(self, ratios: Sequence[float] | Tensor) -> None:
        """Put the weights at `ratios`; all 1 leaves every bit of those after the stage."""
        for name, number in self.groups.items():
            found = torch.lerp(self.before[name], self.after[name], float(ratios[number]))
            self.params[name].copy_(found)

    def slopes(self, loss: Callable[[], Tensor], num_groups: int) -> tuple[float, Tensor]:
        """(value, d loss / d ratio (num_groups,) float64 on the CPU) where the weights are now."""
        slopes = torch.zeros(num_groups, dtype=torch.float64)
        with evaluating(self.network), differentiating(self.network, self.params), torch.enable_grad():
            value = loss()
            if not self.params or not value.requires_grad:
                return float(value.detach()), slopes
            found = torch.autograd.grad(value, list(self.params.values()), allow_unused=True)
        for (name, number), gradient in zip(self.groups.items(), found, strict=True):
            if gradient is not None:
                slopes[number] += float(torch.dot(_flat(gradient), self.change[name]))
        return float(value.detach()), slopes


def _flat(value: Tensor) -> Tensor:
    """In float32 at least: a difference of close weights loses nothing there, and a product of all weights
    in float64 would cost more than the pass that it follows.
    """
    return value.reshape(-1).to(torch.promote_types(value.dtype, torch.float32))


@torch.no_grad()
def ends(params: Mapping[str, nn.Parameter], undo: Callable[[], object]) -> tuple[dict[str, Tensor], ...]:
    """(weights after `undo`, weights now); the parameters keep those of now."""
    after = {name: parameter.detach().clone() for name, parameter in params.items()}
    undo()
    before = {name: parameter.detach().clone() for name, parameter in params.items()}
    for name, parameter in params.items():
        parameter.copy_(after[name])
    return before, after
