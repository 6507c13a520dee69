"""What the model says: likelihoods of the labels of a closed set, and greedy generation.

The prompt is computed once per row, whatever the number of labels: see `label_tree` for decoders.
An encoder-decoder runs its encoder once and its decoder on all labels side by side, each attending
to itself, so that the encoder's keys and values are computed once as well; that is exact where
positions count by distance (T5), otherwise the encoder's output is repeated per label. These ways
rely on the network honouring a mask of our own. So the first call with a network compares a few rows
with one plain sequence per prompt and label, and where they differ warns and takes the next slower
way; the verdict holds for the network's form of attention, whatever its weights become.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from lifelong.core.encoding import IGNORED, end_token, inputs, pad, pad_token, pair
from lifelong.core.label_tree import Labels, by_tree
from lifelong.core.labelled import (
    BATCH_TOKENS,
    LOGITS_AT_ONCE,
    batches_by_length,
    judging,
    log_likelihoods,
    log_probabilities,
    logits_at,
)
from lifelong.core.model import Model

Scorer = Callable[[Model, Sequence[list[int]], Labels, Sequence[int] | None], Tensor]


# What the comparison found, by network: {(way, attention, compute type): does it agree?}
_VERDICTS: WeakKeyDictionary[nn.Module, dict[tuple[str, str, bool], bool]] = WeakKeyDictionary()


def label_log_likelihoods(
    model: Model, prompts: Sequence[list[int]], labels: Labels, references: Sequence[int] | None = None
) -> Tensor:
    """(num_prompts, num_labels) float32 on the CPU: summed log-probability of a label's tokens.

    With `references` (one label index per prompt) a label that provably is neither the likeliest nor
    the reference may be left at -inf.
    """
    if not all(labels):
        raise ValueError("a label has no tokens")
    fast: tuple[Scorer, ...] = (by_tree,) if model.kind == "decoder" else (_side_by_side, _one_by_one)
    with judging(model.network):
        for scorer in fast if _within_window(model, prompts, labels) else ():
            if _trusted(scorer, model, prompts, labels):
                return scorer(model, prompts, labels, references)
        return plain(model, prompts, labels, None)


def plain(model: Model, prompts: Sequence[list[int]], labels: Labels, references: object = None) -> Tensor:
    """One sequence per prompt and label: right for every network."""
    totals, _ = log_likelihoods(model, [pair(p, list(label), model) for p in prompts for label in labels])
    return torch.tensor(totals, dtype=torch.float32).view(len(prompts), len(labels))


def _within_window(model: Model, prompts: Sequence[list[int]], labels: Labels) -> bool:
    """False where attention is limited to a nearer past than a row's length: a mask of our own
    would override that limit.
    """
    config = model.network.config.get_text_config().to_dict()
    longest = max(map(len, prompts)) + max(map(len, labels))
    limits = [config.get(name) for name in ("sliding_window", "attention_chunk_size")]
    within = all(limit is None or longest <= limit for limit in limits)
    if not within:
        warnings.warn(
            f"rows of up to {longest} tokens exceed the attention window of {type(model.network).__name__}: "
            "labels are scored one plain sequence at a time, which is slow.",
            stacklevel=3,
        )
    return within


def _trusted(scorer: Scorer, model: Model, prompts: Sequence[list[int]], labels: Labels) -> bool:
    """Compare once per network, form of attention and compute type."""
    half = torch.is_autocast_enabled(model.device.type)
    key = (scorer.__name__, model.network.config._attn_implementation, half)
    verdicts = _VERDICTS.setdefault(model.network, {})
    if key not in verdicts:
        verdicts[key] = _agrees(scorer, model, prompts, labels)
    return verdicts[key]


def _agrees(scorer: Scorer, model: Model, prompts: Sequence[list[int]], labels: Labels) -> bool:
    """Compare with plain sequences on two short prompts of unlike length and up to four labels."""
    first, last = prompts[0], prompts[-1]
    probes = [first[:12] + first[-6:], first[:12] + last[-14:]]
    chosen = [*sorted(labels, key=len)[-3:], labels[0]]
    expected = plain(model, probes, chosen, None)
    half = next(model.network.parameters()).dtype.itemsize < 4 or torch.is_autocast_enabled(model.device.type)
    try:
        found = scorer(model, probes, chosen, None)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a network of any kind may refuse the mask or the cache in any way
        reason = f"{type(error).__name__}: {error}"
    else:
        tolerance = 0.5 if half else 1e-3
        if torch.allclose(found, expected, atol=tolerance, rtol=0.02 if half else 1e-3):
            return True
        reason = f"log-likelihoods differ by {(found - expected).abs().max():.3g}"
    warnings.warn(
        f"{type(model.network).__name__} cannot score labels {scorer.__name__.replace('_', ' ').strip()} "
        f"({reason}); a slower way is used.",
        stacklevel=3,
    )
    return False


def _side_by_side(model: Model, prompts: Sequence[list[int]], labels: Labels, references: object) -> Tensor:
    """One decoder row per prompt, with all labels in it; blocks do not see each other."""
    starts = _decoder_inputs(model, labels)
    ids = torch.cat([row[: len(label)] for row, label in zip(starts, labels, strict=True)])  # (S,)
    block = torch.tensor([i for i, label in enumerate(labels) for _ in label], device=model.device)
    order = torch.arange(len(ids), device=model.device)
    visible = (block[:, None] == block) & (order[:, None] >= order)  # (S, S)
    dtype = next(model.network.parameters()).dtype
    mask = torch.zeros(visible.shape, dtype=dtype, device=model.device)
    mask.masked_fill_(~visible, torch.finfo(dtype).min)
    targets = torch.tensor([token for label in labels for token in label], device=model.device)

    def decode(encoded: Tensor, padding: Tensor | None) -> Tensor:
        num = len(encoded)
        logits = logits_at(
            model.network, torch.arange(num * len(ids), device=model.device), attention_mask=padding,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded), use_cache=False,
            decoder_input_ids=ids.expand(num, -1), decoder_attention_mask=mask.expand(num, 1, -1, -1),
        )  # fmt: skip
        scores = log_probabilities(logits, targets.repeat(num)).view(num, -1)
        return scores.new_zeros(num, len(labels)).index_add(1, block, scores)

    return _encoded_once(model, prompts, len(ids), decode)


def _one_by_one(model: Model, prompts: Sequence[list[int]], labels: Labels, references: object) -> Tensor:
    """One decoder row per prompt and label, on the repeated output of the encoder."""
    starts = _decoder_inputs(model, labels)
    wanted = pad(labels, IGNORED).to(model.device).flatten()

    def decode(encoded: Tensor, padding: Tensor | None) -> Tensor:
        num, each = len(encoded), len(labels)
        targets = wanted.repeat(num)
        index = (targets != IGNORED).nonzero()[:, 0]
        mask = None if padding is None else padding.repeat_interleave(each, 0)
        logits = logits_at(
            model.network, index, attention_mask=mask,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.repeat_interleave(each, 0)),
            decoder_input_ids=starts.repeat(num, 1), use_cache=False,
        )  # fmt: skip
        scores = log_probabilities(logits, targets[index])
        return scores.new_zeros(num * each).index_add(0, index // starts.shape[1], scores).view(num, each)

    return _encoded_once(model, prompts, starts.numel(), decode)


def _decoder_inputs(model: Model, labels: Labels) -> Tensor:
    targets = pad(labels, IGNORED).to(model.device)
    return model.network.prepare_decoder_input_ids_from_labels(targets)


def _encoded_once(
    model: Model, prompts: Sequence[list[int]], width: int, decode: Callable[[Tensor, Tensor | None], Tensor]
) -> Tensor:
    """`decode` on the encoder's output of each batch; `width` decoder positions per prompt."""
    encoder = model.network.get_encoder()
    words = model.network.get_output_embeddings().weight.shape[0]
    rows = max(1, LOGITS_AT_ONCE // (words * width))
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    for chosen in batches_by_length([len(prompt) + width for prompt in prompts], BATCH_TOKENS, rows):
        batch = inputs([prompts[i] for i in chosen], model)
        batch = {key: value.to(model.device) for key, value in batch.items()}
        encoded = encoder(**batch).last_hidden_state
        for i, row in zip(chosen, decode(encoded, batch.get("attention_mask")).cpu(), strict=True):
            found[i] = row
    return torch.stack(found)


def generate(model: Model, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Greedy continuation of each prompt, up to and without the end token. Settings that came with
    the model (sampling, repetition penalties) do not apply.
    """
    network = model.network
    ends = _ends(model)
    found: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    with judging(network), _plainly(network, ends, pad_token(model)):
        for chosen in batches_by_length(lengths, BATCH_TOKENS):
            batch = inputs([prompts[i] for i in chosen], model, left=model.kind == "decoder")
            batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
            width = 1 if model.kind == "encoder_decoder" else batch["input_ids"].shape[1]
            batch = {key: value.to(model.device) for key, value in batch.items()}
            made = network.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True)
            for i, row in zip(chosen, made[:, width:].tolist(), strict=True):
                stop = next((at for at, token in enumerate(row) if token in ends), len(row))
                found[i] = row[:stop]
    return found


def _ends(model: Model) -> list[int]:
    """The tokenizer's end token and those that the model brought."""
    brought = model.network.generation_config.eos_token_id
    brought = brought if isinstance(brought, list) else [] if brought is None else [brought]
    return list(dict.fromkeys([end_token(model), *brought]))


@contextmanager
def _plainly(network: nn.Module, ends: list[int], padding: int) -> Iterator[None]:
    brought = network.generation_config
    network.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=padding, bos_token_id=brought.bos_token_id,
        decoder_start_token_id=brought.decoder_start_token_id,
        forced_bos_token_id=brought.forced_bos_token_id,
    )  # fmt: skip
    try:
        yield
    finally:
        network.generation_config = brought
