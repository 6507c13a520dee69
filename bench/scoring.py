"""Judging 15 labels after each of 16 prompts: likelihoods of all against generating one answer.

Ours is `label_log_likelihoods`. It is held, for one prompt, against greedy generation of the 50 tokens
that the published protocol of these tasks allows (an untrained model uses them up), and for a batch
against one plain sequence per prompt and label, which is what the same figures cost otherwise. For
the batch generation is shown too, of those 50 tokens and of as many as the longest label has. Both
must read the prompts, so generation of few tokens cannot be beaten by more than (prompts + tokens
one by one) / prompts, which is printed.
"""

import json

import torch

from bench.figure import Figure, Settings, title
from bench.session import linear_weights
from bench.timing import Block, Worker, best_ratio, in_turns, middle, now, ratio, share
from lifelong.core import scoring
from lifelong.core.encoding import end_token, tokenise
from lifelong.core.labelled import judging
from lifelong.core.model import Model
from lifelong.streams.builtin import FOLDER, TEMPLATES

LABELS = (  # the classes of DBpedia
    "Company", "Educational Institution", "Artist", "Athlete", "Office Holder", "Mean of Transportation",
    "Building", "Natural Place", "Village", "Animal", "Plant", "Album", "Film", "Written Work",
    "Society & Culture",
)  # fmt: skip
ROWS = 16
TOKENS = 60  # of a prompt
PROTOCOL = 50  # tokens that the published protocol of the 15 text tasks generates at most


def measure(settings: Settings) -> list[Figure]:
    model = settings.model()
    prompts = unlike_prompts(model)
    end = end_token(model)
    labels = [[*ids, end] for ids in tokenise(model.processor, [" " + label for label in LABELS])]
    longest = max(map(len, labels))
    references = [i % len(labels) for i in range(ROWS)]
    ids = torch.tensor(prompts, device=model.device)
    pads = model.processor.pad_token_id

    def generate(tokens: int, rows: int = ROWS) -> None:
        with judging(model.network):
            chosen, limits = ids[:rows], {"min_new_tokens": tokens, "max_new_tokens": tokens}
            model.network.generate(
                chosen, attention_mask=torch.ones_like(chosen), do_sample=False, pad_token_id=pads, **limits
            )

    def plain() -> None:
        with judging(model.network):
            scoring.plain(model, prompts, labels)

    def read() -> None:
        with judging(model.network):
            model.network(ids, use_cache=True, logits_to_keep=1)

    workers: dict[str, Worker] = {
        "best": calls(lambda: scoring.label_log_likelihoods(model, prompts, labels, references), model),
        "every": calls(lambda: scoring.label_log_likelihoods(model, prompts, labels), model),
        "generate": calls(lambda: generate(longest), model),
        "protocol": calls(lambda: generate(PROTOCOL), model),
        "plain": calls(plain, model),
        "one": calls(lambda: scoring.label_log_likelihoods(model, prompts[:1], labels), model),
        "one protocol": calls(lambda: generate(PROTOCOL, 1), model),
        "read": calls(read, model),
    }
    blocks = in_turns(workers, 1, settings.repeats(3, 7))
    apart = largest_difference(model, prompts[:2], labels)
    bound = middle(blocks["generate"]) / middle(blocks["read"])
    work = 2 * linear_weights(model.network) * ROWS * TOKENS
    top = share(work, min(b.cost for b in blocks["read"]), settings.device, str(model.network.dtype)[6:])
    what = f"{len(labels)} labels (the longest has {longest} tokens) after {ROWS} prompts of {TOKENS} tokens"

    def figure(mine: str, theirs: str, question: str, limit: float | None = None) -> Figure:
        ours, other = blocks[mine], blocks[theirs]
        return Figure(
            question=f"{what}, {title(settings.name)}: {question}",
            ours=middle(ours) * 1e3, baseline=middle(other) * 1e3, unit="ms",
            value=1 / ratio(ours, other), limit=limit, at_most=False,
            spread=f"best against best {1 / best_ratio(ours, other):.2f}; {len(ours)} turns; likelihoods "
            f"are within {apart:.2g} nats of one plain sequence per prompt and label",
            arithmetic=f"reading the prompts alone takes {middle(blocks['read']) * 1e3:.4g} ms, so "
            f"generation cannot be beaten by more than {bound:.2f}x; {top}",
        )  # fmt: skip

    return [
        figure("one", "one protocol", f"one prompt: every label against generating {PROTOCOL} tokens", 5.0),
        figure("every", "plain", "every label against one sequence per prompt and label", 5.0),
        figure("best", "protocol", f"the best label and the reference against generating {PROTOCOL} tokens"),
        figure("best", "generate", "the best label and the reference against generating the longest label"),
    ]


def calls(work, model: Model) -> Worker:
    def worker(times: int) -> Block:
        begun = now(model.device)
        for _ in range(times):
            work()
        return Block(now(model.device) - begun, times)

    return worker


def unlike_prompts(model: Model) -> list[list[int]]:
    """Ends of real prompts, all of `TOKENS` tokens, which share no beginning."""
    lines = (FOLDER / "mail.train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [TEMPLATES["mail"].format(**json.loads(line)) for line in lines]
    found = [ids[-TOKENS:] for ids in tokenise(model.processor, texts) if len(ids) > TOKENS]
    return found[:ROWS]


def largest_difference(model: Model, prompts: list[list[int]], labels: list[list[int]]) -> float:
    fast = scoring.label_log_likelihoods(model, prompts, labels)
    with judging(model.network):
        return float((fast - scoring.plain(model, prompts, labels)).abs().max())
