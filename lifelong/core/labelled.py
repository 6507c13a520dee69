"""The output head at chosen positions only, and log-likelihoods read there.

With 50,000 words the head is the dearest layer of a small model, and most positions of a batch
(prompts, pads) carry no label. A hook in front of the head keeps the positions that do, so that
whatever the model does behind the head (scaling, soft-capping, a bias) still applies.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lifelong.core.axes import Batch, Example, Outputs
from lifelong.core.encoding import IGNORED, collate_text
from lifelong.core.model import Model
from lifelong.errors import UserError

BATCH_TOKENS = 4096  # positions of one evaluation batch, pads counted
PADS = 128  # positions wasted in one, at most: about what another pass costs before it computes
LOGITS_AT_ONCE = 2**26  # elements of the largest logits kept during evaluation


def bare(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, DistributedDataParallel) else network


@contextmanager
def head_at(network: nn.Module, index: Tensor) -> Iterator[None]:
    """Inside, the head sees only `index` (N,) of the flattened positions, as (1, N, H)."""
    head = bare(network).get_output_embeddings()
    if head is None:
        raise UserError(f"{type(bare(network)).__name__} has no output head; load it as a language model.")

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]  # (B, L, H)
        # two-dimensional and contiguous: a linear layer expands its weight for anything else
        return (hidden.flatten(0, -2).index_select(0, index).unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def logits_at(network: nn.Module, index: Tensor, **kwargs: object) -> Tensor:
    """(N, V) logits of a forward pass at `index` (N,) of its flattened positions."""
    with head_at(network, index):
        logits = network(**kwargs).logits
    if logits.shape[:2] == (1, len(index)):
        return logits.squeeze(0)  # a view: the slope of logits[0] fills and copies all of them
    return logits.flatten(0, -2).index_select(0, index)  # the model does not call its head as a module


def labelled_outputs(network: nn.Module, batch: Batch) -> Outputs:
    """Logits, targets and owners of the labelled positions, in the order of the batch."""
    labels = batch["labels"]  # (B, L), IGNORED where there is none
    kwargs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
    ahead = 1  # t predicts t + 1
    if bare(network).config.is_encoder_decoder:
        kwargs["decoder_input_ids"] = bare(network).prepare_decoder_input_ids_from_labels(labels)
        ahead = 0
    owners, columns = (labels[:, ahead:] != IGNORED).nonzero().unbind(1)
    index = owners * labels.shape[1] + columns
    targets = labels.flatten().index_select(0, index + ahead)
    return Outputs(logits_at(network, index, use_cache=False, **kwargs), targets, owners)


@contextmanager
def judging(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is as it was."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def batches_by_length(lengths: Sequence[int], budget: int, rows: int = 2**31) -> list[list[int]]:
    """Indices in batches of like length, the longest first: at most `rows` of them, longest * number
    <= budget and pads <= PADS; or a single one.
    """
    batches: list[list[int]] = []
    longest = pads = room = 0  # of the last batch
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        pads += longest - lengths[index]
        if room > 0 and pads <= PADS:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest, pads = lengths[index], 0
            room = min(budget // longest, rows)
        room -= 1
    return batches


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) float32 log-probability of each target; float32 copies are made in slices."""
    size = max(1, 2**22 // logits.shape[-1])
    found = [
        -nn.functional.cross_entropy(part.float(), wanted, reduction="none")
        for part, wanted in zip(logits.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(found)


def log_likelihoods(model: Model, examples: Sequence[Example]) -> tuple[list[float], list[int]]:
    """(sum of log-probabilities in nats, number) over the labelled positions of each example."""
    words = max(model.network.get_output_embeddings().weight.shape[0], 1)
    longest = [max(len(e["input_ids"]), len(e["labels"])) for e in examples]
    totals, counts = [0.0] * len(examples), [0] * len(examples)
    with judging(model.network):
        for chosen in batches_by_length(longest, min(BATCH_TOKENS, LOGITS_AT_ONCE // words)):
            batch = collate_text([examples[i] for i in chosen], model)
            outputs = labelled_outputs(model.network, {k: v.to(model.device) for k, v in batch.items()})
            scores = log_probabilities(outputs.logits, outputs.targets).double()
            summed = scores.new_zeros(len(chosen)).index_add(0, outputs.owners, scores).tolist()
            number = torch.bincount(outputs.owners, minlength=len(chosen)).tolist()
            for i, total, count in zip(chosen, summed, number, strict=True):
                totals[i], counts[i] = total, count
    return totals, counts
