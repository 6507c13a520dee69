"""Fisher information against closed forms and brute force, whatever the batch size."""

import pytest
import tiny
import torch
from torch import nn

from lifelong.core.axes import Context, Objective, Outputs
from lifelong.core.model import Model
from lifelong.errors import UserError
from lifelong.numerics.fisher import diagonal_fisher, log_likelihoods


class Words(Objective):
    """Labels at some positions; the head is fed with those only."""

    def encode(self, rows, model, labels): ...

    def answer(self, rows, model, labels): ...

    def collate(self, examples, model):
        width = max(len(e["input_ids"]) for e in examples)
        pad = lambda key, value: torch.tensor([e[key] + [value] * (width - len(e[key])) for e in examples])  # noqa: E731
        ids, labels = pad("input_ids", 0), pad("labels", -100)
        mask = torch.tensor(
            [[1] * len(e["input_ids"]) + [0] * (width - len(e["input_ids"])) for e in examples]
        )
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def forward(self, network, batch):
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        if network.config.is_encoder_decoder:
            start = torch.zeros(len(ids), 1, dtype=torch.int64)
            decoder = torch.cat([start, labels[:, :-1].clamp(min=0)], 1)
            encoded = network.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            hidden = network.decoder(
                input_ids=decoder, encoder_hidden_states=encoded, encoder_attention_mask=mask
            ).last_hidden_state
        elif network.can_generate():
            labels = labels[:, 1:]
            hidden = network.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
        else:
            hidden = network(input_ids=ids, attention_mask=mask).last_hidden_state
        keep = labels != -100
        rows = hidden[keep][None]  # (1, N, H)
        head = network.get_output_embeddings() or network.label_head
        return Outputs(head(rows)[0], labels[keep], keep.nonzero()[:, 0])


class Classes(Objective):
    """One label per example, from its features or pixels."""

    def encode(self, rows, model, labels): ...

    def answer(self, rows, model, labels): ...

    def collate(self, examples, model):
        return {key: torch.stack([torch.as_tensor(e[key]) for e in examples]) for key in examples[0]}

    def forward(self, network, batch):
        rows = batch["rows"] if "rows" in batch else network(batch["pixel_values"]).pooler_output
        head = network.label_head if "pixel_values" in batch else network
        return Outputs(head(rows), batch["labels"], torch.arange(len(rows)))


def context(network, objective, examples, params=None):
    model = Model(network=network, processor=None, kind="decoder", window=128)
    return Context(
        params=params or dict(network.named_parameters()),
        model=model,
        objective=objective,
        examples=examples,
        batches=lambda chosen: iter([objective.collate(chosen, model)]),
    )


def tiny_context(architecture, num=8):
    network = tiny.network(architecture)
    torch.manual_seed(1)
    if architecture in ("bert", "vit"):
        network.label_head = nn.Linear(32, 5)
    classes = 5 if architecture == "bert" else 259
    if architecture == "vit":
        examples = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 5} for i in range(num)]
        return context(network, Classes(), examples)
    examples = []
    for length in torch.randint(4, 12, (num,)).tolist():
        labels = torch.randint(0, classes, (length,)).tolist()
        labels[: length // 2] = [-100] * (length // 2)
        examples.append({"input_ids": torch.randint(3, 259, (length,)).tolist(), "labels": labels})
    return context(network, Words(), examples)


def softmax_context(num=512, seed=0):
    generator = torch.Generator().manual_seed(seed)
    network = nn.Linear(8, 4)
    with torch.no_grad():
        network.weight.copy_(torch.randn(4, 8, generator=generator) * 0.3)
        network.bias.zero_()
    rows = torch.randn(num, 8, generator=generator)
    labels = torch.multinomial(network(rows).softmax(-1).detach(), 1, generator=generator)[:, 0]
    examples = [{"rows": r, "labels": y} for r, y in zip(rows, labels, strict=True)]
    return context(network, Classes(), examples), rows


def brute_force(given):
    network, objective = given.model.network, given.objective
    total = {name: torch.zeros_like(p) for name, p in given.params.items()}
    for example in given.examples:
        outputs = objective.forward(network, objective.collate([example], given.model))
        score = log_likelihoods(outputs, 1)[0]
        made = torch.autograd.grad(score, list(given.params.values()), materialize_grads=True)
        for name, g in zip(given.params, made, strict=True):
            total[name] += g.square() / len(given.examples)
    return total


def near(left, right, tolerance):
    for name, expected in right.items():
        assert (left[name] - expected).norm() <= tolerance * expected.norm() + 1e-9, name


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_equals_brute_force(architecture):
    given = tiny_context(architecture)
    made = diagonal_fisher(given, "empirical", 100, 4, 0)
    near(made, brute_force(given), 1e-4)
    assert sum(value.sum() for value in made.values()) > 0
    assert all(v.dtype == torch.float32 and v.min() >= 0 for v in made.values())


@pytest.mark.parametrize("kind", ["empirical", "true"])
def test_batch_size_changes_nothing(kind):
    given = tiny_context("llama", num=32)
    one = diagonal_fisher(given, kind, 32, 1, 3)
    for size in (2, 8, 32):
        near(diagonal_fisher(given, kind, 32, size, 3), one, 1e-5)


def test_square_of_the_batch_mean_does_depend_on_the_batch_size():
    """The estimator of several other libraries, as the control of the test above."""
    given, rows = softmax_context()
    right = diagonal_fisher(given, "empirical", 512, 64, 0)
    trace = sum(value.sum() for value in right.values())
    batch = given.objective.collate(given.examples, given.model)
    for size, factor in ((1, 1.0), (64, 0.1)):
        wrong = 0.0
        for start in range(0, 512, size):
            part = {key: value[start : start + size] for key, value in batch.items()}
            outputs = given.objective.forward(given.model.network, part)
            score = log_likelihoods(outputs, size).mean()
            made = torch.autograd.grad(score, list(given.params.values()))
            wrong += sum(g.square().sum() for g in made) * size / 512
        if size == 1:
            torch.testing.assert_close(trace, wrong, rtol=1e-4, atol=0)
        else:
            assert wrong < factor * trace


def test_true_fisher_approaches_the_exact_one():
    """F_ck = mean of p_c (1 - p_c) x_k^2 for a linear softmax; 20 samples of 512 labels."""
    given, rows = softmax_context()
    p = given.model.network(rows).softmax(-1).detach()
    exact = torch.einsum("nc,nk->ck", p * (1 - p), rows**2) / 512
    runs = [diagonal_fisher(given, "true", 512, 128, seed)["weight"] for seed in range(20)]
    each = torch.stack([run.sum() for run in runs]) / exact.sum()
    error = each.std() / 20**0.5
    assert error < 0.02 and abs(each.mean() - 1) < 4 * error
    near({"w": torch.stack(runs).mean(0)}, {"w": exact}, 0.05)
    given.examples = [{**e, "labels": torch.tensor(0)} for e in given.examples]  # given labels do not enter
    assert torch.equal(diagonal_fisher(given, "true", 512, 128, 0)["weight"], runs[0])
    skewed = diagonal_fisher(given, "empirical", 512, 128, 0)["weight"]
    assert abs(skewed.sum() / exact.sum() - 1) > 0.1  # but for the empirical one they do


def test_samples_belong_to_examples_not_to_their_place():
    given = tiny_context("llama", num=16)
    whole = diagonal_fisher(given, "true", 16, 16, 0)
    other = diagonal_fisher(given, "true", 16, 16, 1)
    assert (whole["lm_head.weight"] - other["lm_head.weight"]).norm() > 0.01 * whole["lm_head.weight"].norm()
    given.stage = 1
    later = diagonal_fisher(given, "true", 16, 16, 0)
    assert (whole["lm_head.weight"] - later["lm_head.weight"]).norm() > 0.01 * whole["lm_head.weight"].norm()


def test_batches_may_be_cut_smaller():
    given = tiny_context("llama")
    whole, collate = diagonal_fisher(given, "true", 8, 8, 0), given.objective.collate
    given.batches = lambda chosen: (collate(chosen[i : i + 3], given.model) for i in range(0, len(chosen), 3))
    near(diagonal_fisher(given, "true", 8, 8, 0), whole, 1e-5)


def test_number_of_examples_is_kept_to():
    given = tiny_context("llama", num=16)
    seen = []
    given.batches = lambda chosen: seen.extend(chosen) or iter([given.objective.collate(chosen, given.model)])
    diagonal_fisher(given, "empirical", 5, 2, 0)
    first, seen = [id(e) for e in seen], []
    assert len(set(first)) == 5
    given.batches = lambda chosen: seen.extend(chosen) or iter([given.objective.collate(chosen, given.model)])
    diagonal_fisher(given, "empirical", 5, 4, 0)
    assert [id(e) for e in seen] == first


def test_random_state_is_untouched():
    given, state = tiny_context("llama"), torch.get_rng_state()
    diagonal_fisher(given, "true", 8, 4, 0)
    assert torch.equal(state, torch.get_rng_state())


def test_missing_parts_and_overflow_are_named():
    given = tiny_context("llama")
    with pytest.raises(UserError, match="examples"):
        diagonal_fisher(Context(params=given.params), "empirical", 8, 4, 0)
    with torch.no_grad():
        given.model.network.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(UserError, match="not finite"):
        diagonal_fisher(given, "empirical", 8, 4, 0)
