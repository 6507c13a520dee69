"""Gradients of each example's score from one backward pass over the whole batch.

Forward hooks catch the inputs and outputs of every module that owns a wanted parameter, one
backward pass gives the gradient at each caught output, and `module_gradients` turns the two into
gradients per example (for linear modules: Goodfellow 2015, arXiv:1510.01799; with many rows per
example: Rochette et al. 2019, arXiv:1912.06015). What several calls contribute to one parameter
(tied weights) is added up per example before anything is squared.

Which rows belong to which example is inferred from shapes, and never believed: whenever a parameter
is met with a new pattern of calls, sum_b w_b G_b for random w is compared with the ordinary
gradient of sum_b w_b s_b, which fails also for rows booked on the wrong example. A parameter that
fails, or that no hook caught, is from then on computed by one backward pass per example.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lifelong.numerics.module_gradients import Call, Layout, Share, layout_of
from lifelong.numerics.swap import differentiating, evaluating

MEMORY_BYTES = 2**28  # per-example gradients that exist at one time
CACHE_BYTES = 2**20  # the same on a CPU, where pieces that stay in its cache are faster


class Scores(NamedTuple):
    values: Tensor  # (B,) one score per example, with gradient
    owners: Tensor | None = None  # (N,) int64: the example of each row that a head is fed with


Score = Callable[[], Tensor | Scores]  # runs the forward pass of one batch


def squared_gradient_sum(
    network: nn.Module,
    params: Mapping[str, nn.Parameter],
    log_likelihoods: Score,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, Tensor]:
    """sum_b (d l_b / d theta)^2 by parameter name, float32."""
    return PerExample(network, params, memory_bytes).squared_sum(log_likelihoods)


def per_example_gradients(
    network: nn.Module,
    params: Mapping[str, nn.Parameter],
    log_likelihoods: Score,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, Tensor]:
    """d l_b / d theta by parameter name, (B, *shape) float32."""
    return PerExample(network, params, memory_bytes).gradients(log_likelihoods)


class PerExample:
    """A series of batches through one network; what was verified once is trusted afterwards."""

    def __init__(
        self, network: nn.Module, params: Mapping[str, nn.Parameter], memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.network, self.params, self.memory_bytes = network, dict(params), memory_bytes
        self.exact: set[str] = set()  # names that take one backward pass per example
        self._trusted: dict[str, set[Hashable]] = {name: set() for name in params}
        self._coarsest = torch.float32  # of what is verified

    def squared_sum(self, scores: Score) -> dict[str, Tensor]:
        """sum_b (d s_b / d theta)^2, float32."""
        return self._run(scores, keep=False)

    def gradients(self, scores: Score) -> dict[str, Tensor]:
        """d s_b / d theta, (B, *shape) float32."""
        return self._run(scores, keep=True)

    def _run(self, scores: Score, keep: bool) -> dict[str, Tensor]:
        calls: list[Call] = []
        with evaluating(self.network), differentiating(self.network, self.params), torch.enable_grad():
            with self._caught(calls):
                made = scores()
            values, owners = made if isinstance(made, Scores) else (made, None)
            if values.dim() != 1:
                raise ValueError(f"scores must give one number per example, (B,); got {tuple(values.shape)}")
            if not values.requires_grad or len(values) == 1:
                return self._one_by_one(list(self.params), values, keep)
            return self._from_calls(calls, values, owners, keep)

    @contextmanager
    def _caught(self, calls: list[Call]) -> Iterator[None]:
        """Record calls of modules that own wanted parameters."""
        name_of = {id(parameter): name for name, parameter in self.params.items()}
        handles = []
        for module in self.network.modules():
            own = module.named_parameters(recurse=False, remove_duplicate=False)
            names = {attribute: name_of[id(p)] for attribute, p in own if id(p) in name_of}
            if not names:
                continue

            def catch(module, args, kwargs, output, names=names):
                if isinstance(output, Tensor) and output.requires_grad:
                    calls.append(Call(module, names, args, kwargs, output))

            # first of all hooks: a later one may add an adapter's share to the output
            handles.append(module.register_forward_hook(catch, prepend=True, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _from_calls(
        self, calls: list[Call], values: Tensor, owners: Tensor | None, keep: bool
    ) -> dict[str, Tensor]:
        num, layouts, patterns = len(values), {}, {name: [] for name in self.params}
        doubtful = set()  # verified in every batch: flat rows may be in another order next time
        for index, call in enumerate(calls):
            layout = layout_of(call.output, num, owners, isinstance(call.module, nn.Embedding))
            layouts[index] = layout
            for attribute, name in call.names.items():
                patterns[name].append((id(call.module), attribute, layout.rule if layout else None))
                if layout is None or not call.intact():
                    self.exact.add(name)
                elif layout.rule == "blocks" or (layout.rule == "rows" and call.output.dim() == 2):
                    doubtful.add(name)
        self.exact.update(name for name, pattern in patterns.items() if not pattern)
        fresh = [
            name
            for name, pattern in patterns.items()
            if name not in self.exact and (name in doubtful or tuple(pattern) not in self._trusted[name])
        ]
        if fresh:
            self._coarsest = self._roughest(calls)
        weights, expected = self._expected(fresh, values)
        shares = self._shares(calls, layouts, values)
        result = {}
        with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
            for name in self.params:
                if name in self.exact:
                    continue
                made = self._collect(name, shares[name], num, weights if name in expected else None, keep)
                wrong = made is None or (
                    name in expected and not self._agree(name, made[1], expected[name], shares[name])
                )
                if wrong:
                    self.exact.add(name)
                    continue
                self._trusted[name].add(tuple(patterns[name]))
                result[name] = made[0]
        result |= self._one_by_one([name for name in self.params if name in self.exact], values, keep)
        return {name: result[name] for name in self.params}

    def _expected(self, fresh: list[str], values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) weights, and the ordinary gradients of the weighted sum. Powers of 2 commute with rounding, so
        that both sides have the same rounding behind them, however deep the network; neighbours differ.
        """
        places = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
        weights = torch.exp2((places % 4).float() - 1).to(values.device)
        if not fresh:
            return weights, {}
        return weights, dict(zip(fresh, self._ordinary((weights * values).sum(), fresh), strict=True))

    def _ordinary(self, score: Tensor, names: list[str]) -> list[Tensor]:
        chosen = [self.params[name] for name in names]
        made = torch.autograd.grad(score, chosen, retain_graph=True, materialize_grads=True)
        return [gradient.float() for gradient in made]

    def _shares(
        self, calls: list[Call], layouts: dict[int, Layout | None], values: Tensor
    ) -> dict[str, list[tuple[str, Share]]]:
        """For each parameter the calls that contribute to it, with the attribute that it is there."""
        live = [i for i, call in enumerate(calls) if not self.exact.issuperset(call.names.values())]
        if not live:
            return {}
        outputs = [calls[i].output for i in live]
        caught = torch.autograd.grad(values.sum(), outputs, retain_graph=True, allow_unused=True)
        shares: dict[str, list[tuple[str, Share]]] = {name: [] for name in self.params}
        for index, gradient in zip(live, caught, strict=True):
            call, layout = calls[index], layouts[index]
            if gradient is None or layout is None:
                continue
            split = (
                _spread(gradient, caught, layout.num)
                if layout.rule == "broadcast"
                else layout.split(gradient)
            )
            if split is None:
                self.exact.update(call.names.values())
                continue
            share = Share(call, layout, split)
            for attribute, name in call.names.items():
                shares[name].append((attribute, share))
        return shares

    def _collect(
        self, name: str, shares: list[tuple[str, Share]], num: int, weights: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor] | None:
        """(result, sum_b w_b G_b), as many examples at a time as memory allows; None where a module
        cannot be differentiated alone.
        """
        parameter = self.params[name]
        budget = self.memory_bytes if parameter.is_cuda else min(self.memory_bytes, CACHE_BYTES)
        step = max(1, budget // (4 * parameter.numel()))
        total = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        weighted, kept = torch.zeros_like(total), []
        try:
            if not keep and weights is None and len(shares) == 1:
                squares = shares[0][1].squares(shares[0][0])
                if squares is not None:
                    return squares, weighted
            for start in range(0, num, step):
                part = slice(start, min(start + step, num))
                gradient = total.new_zeros(part.stop - start, *total.shape) if not shares else None
                for attribute, share in shares:  # never in place: a share may be a view of D
                    own = share.of(attribute, part)
                    gradient = own if gradient is None else gradient + own
                if weights is not None:
                    weighted += torch.tensordot(weights[part], gradient, 1)
                if keep:
                    kept.append(gradient)
                elif len(gradient) == 1:
                    total.addcmul_(gradient[0], gradient[0])
                else:
                    total += gradient.square().sum(0)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError):  # not differentiable alone, or no vmap rule
            return None
        return (torch.cat(kept) if keep else total), weighted

    def _agree(self, name: str, made: Tensor, expected: Tensor, shares: list[tuple[str, Share]]) -> bool:
        """Measured against the terms of the sum too: they may cancel (a bias of attention's keys)."""
        terms = sum((share.magnitude(attribute) for attribute, share in shares), made.new_zeros(()))
        scale = torch.maximum(expected.norm(), 0.03 * terms)
        return _close(made, expected, scale, self._coarsest)

    def _roughest(self, calls: list[Call]) -> torch.dtype:
        """The type that rounds most on the way: float32 adapters beside bfloat16 weights are no more
        exact than those, nor float32 weights under autocast.
        """
        kinds = {p.dtype for p in self.network.parameters() if p.is_floating_point()}
        kinds |= {call.output.dtype for call in calls}
        return min(kinds, key=lambda kind: kind.itemsize)

    def _one_by_one(self, names: list[str], values: Tensor, keep: bool) -> dict[str, Tensor]:
        """One backward pass per example."""
        shape = {name: (len(values), *self.params[name].shape) for name in names}
        if not names or not values.requires_grad:
            return {
                name: torch.zeros(
                    shape[name][not keep :], dtype=torch.float32, device=self.params[name].device
                )
                for name in names
            }
        made: dict[str, list[Tensor]] = {name: [] for name in names}
        for value in values:
            for name, gradient in zip(names, self._ordinary(value, names), strict=True):
                if keep:
                    made[name].append(gradient)
                elif made[name]:
                    made[name][0].addcmul_(gradient, gradient)
                else:
                    made[name].append(gradient.square())
        return {name: torch.stack(rows) if keep else rows[0] for name, rows in made.items()}


def _spread(gradient: Tensor, caught: tuple[Tensor | None, ...], num: int) -> Tensor | None:
    """Per-example gradient at an output (1, ...) that was broadcast: it equals the one at the rows
    (B, ...) that the output was added to, if those were caught, and is known by their sum.
    """
    for other in caught:
        if other is not None and other.shape == (num, *gradient.shape[1:]):
            if _close(other.sum(0, keepdim=True), gradient, other.norm(), gradient.dtype):
                return other
    return None


def _close(left: Tensor, right: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    """Apart by rounding only: that of the products, and of an ordinary gradient in 16 bits."""
    exact_products = torch.get_float32_matmul_precision() == "highest"
    limit = 1e-2 if dtype.itemsize < 4 else 1e-4 if exact_products else 2e-3
    return bool((left.float() - right.float()).norm() <= limit * scale.float())
