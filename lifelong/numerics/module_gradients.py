"""What one call of one module contributes to the gradients of each example.

Given the call's inputs and the gradient D at its output:
    linear, X (T, in), D (T, out):  D^T X, and the sum of D over rows for the bias
    embedding, ids (T,), D (T, H):  row v is the sum of D_t over ids_t = v
    anything else:                  the module alone, by vmap over its vector-Jacobian product
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from transformers.pytorch_utils import Conv1D

from lifelong.numerics.low_rank import Up

FORMS = {kind.forward: kind for kind in (nn.Linear, Conv1D, nn.Embedding)} | {Up.forward: nn.Linear}


class Layout(NamedTuple):
    """Which rows of a tensor belong to which of the B examples. A guess, to be verified.

    rows: (B, ...); blocks: (B * T, ...); owners: (N, ...) or (1, N, ...), row n is of example
    owners[n]; broadcast: (1, ...), the same for all.
    """

    rule: str
    num: int  # B
    lead: tuple[int, ...]  # leading sizes of a tensor that is laid out like this
    places: Tensor | None = None  # (B, M) row numbers, filled up with 0; rule "owners" only
    real: Tensor | None = None  # (B, M) False where filled up

    def covers(self, tensor: Any) -> bool:
        if not isinstance(tensor, Tensor) or self.rule == "broadcast":
            return False
        return tuple(tensor.shape[: len(self.lead)]) == self.lead

    def split(self, tensor: Tensor) -> Tensor:
        """(B, ...): what each example has of it, without a dimension for the batch."""
        if self.rule == "owners":
            return tensor.reshape(-1, *tensor.shape[len(self.lead) :])[self.places]
        if self.rule == "blocks":
            return tensor.reshape(self.num, -1, *tensor.shape[1:])
        return tensor

    def unsplit(self, piece: Tensor) -> Tensor:
        """One example's part, with the batch dimension that the module expects."""
        return piece[None] if self.rule in ("rows", "broadcast") or len(self.lead) == 2 else piece


def places_of(owners: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """(B, M) numbers of the rows of each example in their order, and which of them are real."""
    counts = torch.bincount(owners, minlength=num)
    order = torch.argsort(owners, stable=True)
    column = torch.arange(int(counts.max()), device=owners.device)
    real = column < counts[:, None]
    places = torch.zeros_like(real, dtype=torch.int64)
    places[real] = order
    return places, real


def layout_of(output: Tensor, num: int, owners: Tensor | None, is_embedding: bool) -> Layout | None:
    """The likeliest layout, None where rows cannot be told apart."""
    if not output.dim():
        return None
    if owners is not None and len(owners) and not is_embedding:
        for lead in ((len(owners),), (1, len(owners))):
            if tuple(output.shape[: len(lead)]) == lead and output.dim() > len(lead):
                return Layout("owners", num, lead, *places_of(owners, num))
    size = output.shape[0]
    if size == num:
        return Layout("rows", num, (size,))
    if size == 1:
        return Layout("broadcast", num, (size,))
    if size and size % num == 0 and output.dim() > 1:
        return Layout("blocks", num, (size,))
    return None


@dataclass
class Call:
    """One call of a module that owns wanted parameters."""

    module: nn.Module
    names: dict[str, str]  # attribute of the module -> name of the parameter
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    versions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.versions = self._versions()

    def _versions(self) -> tuple[int, ...]:
        every = (*self.args, *self.kwargs.values(), self.output)
        return tuple(t._version for t in every if isinstance(t, Tensor))

    def intact(self) -> bool:
        """Nothing was changed in place since."""
        return self.versions == self._versions()

    def known(self) -> type | None:
        """The class whose closed form holds: its own forward, not an override."""
        return None if "forward" in vars(self.module) else FORMS.get(type(self.module).forward)


class Share:
    """Per-example gradients of the parameters of one call."""

    def __init__(self, call: Call, layout: Layout, gradient: Tensor) -> None:
        self.call, self.layout, self.kind = call, layout, call.known()
        if layout.real is not None:
            mask = layout.real.reshape(*layout.real.shape, *[1] * (gradient.dim() - 2))
            gradient = torch.where(mask, gradient, 0)
        self.gradient = gradient  # (B, ...) split already
        self.inputs: Tensor | None = None
        if self.kind is None:
            return
        taken = (*call.args, *call.kwargs.values())[0]
        split = layout.split(taken)
        if layout.rule == "broadcast":
            split = split.expand(layout.num, *split.shape[1:])
        if self.kind is nn.Embedding:
            self.inputs = split.reshape(layout.num, -1)  # (B, T)
        else:
            self.inputs = split.reshape(layout.num, -1, split.shape[-1])  # (B, T, in)
        self.gradient = gradient.reshape(layout.num, -1, gradient.shape[-1])  # (B, T, out)

    def of(self, attribute: str, part: slice) -> Tensor:
        """(b, *shape) float32 for the examples of `part`."""
        if self.kind is None:
            return self._vmapped(attribute, part).float()
        if attribute == "bias":
            return self.gradient[part].float().sum(1)
        inputs, gradient = self.inputs[part], self.gradient[part].float()
        if self.kind is nn.Embedding:
            return self._scattered(inputs, gradient)
        if self.kind is Conv1D:
            return inputs.float().mT @ gradient
        return gradient.mT @ inputs.float()

    def magnitude(self, attribute: str) -> Tensor:
        """Root of the summed squares of the terms, one for each row, that a gradient adds up."""
        squares = self.gradient.float().square().sum(-1)
        if attribute == "weight" and self.kind in (nn.Linear, Conv1D):
            squares = squares * self.inputs.float().square().sum(-1)
        return squares.sum().sqrt()

    def squares(self, attribute: str) -> Tensor | None:
        """Sum over examples of the squared gradient, where it is cheaper than by `of`."""
        if self.kind is nn.Embedding:
            return self._scattered_squares()
        if self.kind is None or attribute == "bias" or self.gradient.shape[1] != 1:
            return None
        inputs, gradient = self.inputs[:, 0].float().square(), self.gradient[:, 0].float().square()
        return inputs.mT @ gradient if self.kind is Conv1D else gradient.mT @ inputs

    def _live(self, ids: Tensor, gradient: Tensor) -> Tensor:
        """Autograd gives the padding row of an embedding no gradient."""
        padding = self.call.module.padding_idx
        return gradient if padding is None else torch.where((ids == padding)[..., None], 0, gradient)

    def _scattered(self, ids: Tensor, gradient: Tensor) -> Tensor:
        (rows, width), num = self.call.module.weight.shape, len(ids)
        flat = gradient.new_zeros(num * rows, width)
        keys = ids + rows * torch.arange(num, device=ids.device)[:, None]
        flat.index_add_(0, keys.flatten(), self._live(ids, gradient).flatten(0, 1))
        return flat.view(num, rows, width)

    def _scattered_squares(self) -> Tensor:
        """Never more than one row per position, however large the vocabulary."""
        rows, width = self.call.module.weight.shape
        ids, gradient = self.inputs, self._live(self.inputs, self.gradient.float())
        keys = ids + rows * torch.arange(len(ids), device=ids.device)[:, None]
        distinct, inverse = keys.flatten().unique(return_inverse=True)
        sums = gradient.new_zeros(len(distinct), width).index_add_(0, inverse, gradient.flatten(0, 1))
        return gradient.new_zeros(rows, width).index_add_(0, distinct % rows, sums.square())

    def _vmapped(self, attribute: str, part: slice) -> Tensor:
        bare, layout = _Bare(self.call.module), self.layout
        weight = getattr(self.call.module, attribute).detach()
        named = dict(enumerate(self.call.args)) | self.call.kwargs
        named = {key: _as_exact(value, weight) for key, value in named.items()}
        split = {key: layout.split(value)[part] for key, value in named.items() if layout.covers(value)}

        def one(pieces: dict[Any, Tensor], gradient: Tensor) -> Tensor:
            given = named | {key: layout.unsplit(piece) for key, piece in pieces.items()}
            args = tuple(given[index] for index in range(len(self.call.args)))
            kwargs = {key: given[key] for key in self.call.kwargs}
            output, pull = vjp(
                lambda value: functional_call(bare, {f"module.{attribute}": value}, args, kwargs), weight
            )
            return pull(layout.unsplit(gradient).to(output.dtype))[0]

        return vmap(one)(split, self.gradient[part])


def _as_exact(value: Any, weight: Tensor) -> Any:
    """Autocast rounds what reaches a weight; the module alone runs without it."""
    rounded = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(weight.dtype) if rounded and value.dtype.itemsize < weight.dtype.itemsize else value


class _Bare(nn.Module):
    """A module's forward without the hooks on the module itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)
