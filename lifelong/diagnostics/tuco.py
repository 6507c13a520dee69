"""TuCo: how much of what a model computes for a prompt is fine-tuning, and how much is pretraining.

    x_l                           what enters block l of the tuned model
    PTC_l = f_l^pre(x_l)          f_l(x) = block_l(x) - x: what a block adds to the stream
    FTC_l = f_l^tuned(x_l) - f_l^pre(x_l)
    TuCo  = |sum_l FTC_l| / (|sum_l PTC_l| + |sum_l FTC_l|)

Nuti et al. 2025, arXiv:2506.23423. Exact on the tuned model's own residual stream: embedding + sum PTC +
sum FTC is what leaves the last block. Between 0 (the blocks compute what they did before) and 1; 0
where neither adds anything. It is taken at the last token of the prompt of evaluation rows, of all sets
whose stage has begun and of the general ones.

The pretrained blocks run on what the tuned ones were given in one forward pass, and need a second copy
of the weights only where the tuner writes base weights. Choices here: an encoder-decoder is
looked at where its decoder begins to answer; of encoders and vision, which decide on pooled states,
both sums are pooled alike. Whatever a block is given beside the stream (masks, positions, T5's relative
bias, the encoder's states) is the tuned model's. A block that changes the size of its input ends it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lifelong.core import head, prompts
from lifelong.core.axes import Batch, Context, Diagnostic
from lifelong.core.matrix import mean
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.errors import UserError
from lifelong.numerics.positions import layers


class Call(NamedTuple):
    """What a module was given, and what it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True, kw_only=True)
class Tuco(Diagnostic):
    """Share of fine-tuning in what the blocks add for the prompts of every evaluation set."""

    paper: ClassVar[str] = "Nuti et al. 2025, arXiv:2506.23423"
    cost: ClassVar[str] = (
        "two passes through the blocks per row after each stage; base weights once more, on the CPU, where "
        "the tuner writes them"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "equals a decomposition by hand, block after block, on a tiny model",
        "exactly 0 for identical models, exactly 1 where the pretrained blocks add nothing",
        "the parts sum up to the stream; an update beside the weights counts as one inside them",
        "changes no bit of a run",
    )
    title: ClassVar[str] = "Contribution of fine-tuning (TuCo)"
    needs_base: ClassVar[bool] = True

    num_examples: Annotated[int, Range(1)] = 64  # rows of each evaluation set, at most; always the same

    def measure(self, context: Context) -> dict[str, float]:
        found = {}
        for each in context.stream.known(context.stage + 1):
            order = torch.randperm(len(each.rows), generator=torch.Generator().manual_seed(0))
            rows = [each.rows[i] for i in sorted(order[: self.num_examples].tolist())]
            examples = prompts.of_rows(each.objective, rows, context.model, each.labels)
            with torch.no_grad(), context.autocast():
                shares = [
                    contribution(context.model, context.base, batch)
                    for batch in prompts.batches(examples, context.model, context.model.window)
                ]
            found[each.name] = float(torch.cat(shares).mean())
        return found

    def brief(self, figures: dict[str, float]) -> dict[str, float]:
        """Mean over sets."""
        return {"share": mean(figures.values())} if figures else {}


def contribution(model: Model, base: nn.Module, batch: Batch) -> Tensor:
    """(B,) of each prompt in a batch of inputs."""
    pretrained, tuned = (part.norm(dim=-1) for part in components(model, base, batch))
    return tuned / (pretrained + tuned).clamp_min(torch.finfo(torch.float32).tiny)


def components(model: Model, base: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(sum PTC, sum FTC), both (B, H) float32."""
    answers = model.kind == "encoder_decoder"
    tuned, before = (each.get_decoder() if answers else each.base_model for each in (model.network, base))
    blocks = layers(before)
    with calls_of({name: tuned.get_submodule(name) for name in blocks}) as calls:
        prompts.read(model.network, batch)
    if not calls:
        raise UserError(
            f"tuco needs a stack of blocks, each of which adds to its input; {type(base).__name__} has none. "
            "Leave it out of `diagnostics`."
        )
    parts = [split(name, blocks[name], call) for name, call in calls.items()]
    sums = (torch.stack(each).sum(0) for each in zip(*parts, strict=True))
    mask = None if answers else batch.get("attention_mask")
    return tuple(each[:, -1] if answers else head.pooled(each, mask, model.kind) for each in sums)


@contextmanager
def calls_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Call]]:
    """The last call of every module inside."""
    found: dict[str, Call] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            found[name] = Call(args, dict(kwargs), output)

        return hook

    handles = [each.register_forward_hook(keep(name), with_kwargs=True) for name, each in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def split(name: str, block: nn.Module, call: Call) -> tuple[Tensor, Tensor]:
    """(PTC_l, FTC_l), both (B, L, H) float32: the pretrained block runs on what the tuned one was given."""
    stream = call.args[0] if call.args else call.kwargs["hidden_states"]
    held = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    held = {key: value.to(stream.device) for key, value in held.items()}
    before, after = _first(functional_call(block, held, call.args, call.kwargs)), _first(call.output)
    if after.shape != stream.shape:
        raise UserError(f"tuco: block {name} changes the size of its input, so no stream can be split.")
    return before.float() - stream.float(), after.float() - before.float()


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output
