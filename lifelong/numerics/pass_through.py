"""How much of what enters a linear module passes through it in the same direction."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lifelong.numerics.observing import observe
from lifelong.numerics.swap import evaluating


def pass_through(
    network: nn.Module, modules: Mapping[str, nn.Module], forwards: Iterable[None]
) -> dict[str, float]:
    """Mean over positions, pads left out, of |cos(x, W x)|, by module; each of `forwards` runs one
    forward pass as it is asked for. x and W x of different sizes are cut to the shorter (as in the
    code of Nayak et al. 2025). 0 where a module was not called.
    """
    totals = {name: [0.0, 0.0] for name in modules}  # sum, number of positions

    def see(name: str, inputs: Tensor, output: Tensor, real: Tensor | None) -> None:
        bias = modules[name].bias
        product = output.float() if bias is None else output.float() - bias.float()
        size = min(inputs.shape[-1], output.shape[-1])
        cosine = torch.cosine_similarity(inputs[..., :size].float(), product[..., :size], dim=-1).abs()
        weights = torch.ones_like(cosine) if real is None else real.to(cosine.dtype)
        totals[name][0] += float((cosine * weights).sum())
        totals[name][1] += float(weights.sum())

    handles = observe(network, modules, see)
    try:
        with evaluating(network), torch.no_grad():
            for _ in forwards:
                pass
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / number if number else 0.0 for name, (total, number) in totals.items()}
