"""The head at labelled positions, label likelihoods and generation, against plain computations."""

import itertools
import random
import warnings

import pytest
import tiny
import torch
from transformers import BartConfig, BartForConditionalGeneration, MistralConfig, MistralForCausalLM

from lifelong.core import label_tree, scoring
from lifelong.core.encoding import collate_text, pair
from lifelong.core.labelled import PADS, batches_by_length, judging, labelled_outputs, log_likelihoods
from lifelong.core.model import Model

LENGTHS = [(5, 3), (2, 1), (9, 6), (5, 3)]


def tokens(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(3, 259, (count,), generator=generator).tolist()


def sharp(architecture: str) -> Model:
    """A tiny model with larger weights, so that its answers depend on what it has read."""
    model = tiny.model(architecture)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if parameter.dim() > 1 and "shared" not in name and "relative" not in name:
                parameter.mul_(1.5 if architecture == "t5" else 4)
    return model


def case(architecture: str, num: int = 9, common: int = 0) -> tuple[Model, list[list[int]], list[list[int]]]:
    generator = torch.Generator().manual_seed(7)
    start = tokens(common, generator)
    prompts = [start + tokens(3 + 5 * (i % 4), generator) for i in range(num)]
    a, b, c = tokens(1, generator), tokens(3, generator), tokens(6, generator)
    labels = [
        a,
        a + tokens(1, generator),
        b,
        b[:2],
        b[:2] + tokens(2, generator),
        c,
        c[:5],
        tokens(4, generator),
    ]
    return sharp(architecture), prompts, labels  # prefixes of each other, 1 to 6 tokens


def by_hand(model: Model, prompts: list[list[int]], labels: list[list[int]]) -> torch.Tensor:
    """One unpadded sequence at a time, full logits."""
    found = torch.zeros(len(prompts), len(labels))
    with torch.no_grad():
        for i, prompt in enumerate(prompts):
            for j, label in enumerate(labels):
                wanted = torch.tensor(label)
                if model.kind == "decoder":
                    logits = model.network(input_ids=torch.tensor([prompt + label])).logits[
                        0, len(prompt) - 1 : -1
                    ]
                else:
                    logits = model.network(input_ids=torch.tensor([prompt]), labels=wanted[None]).logits[0]
                found[i, j] = logits.log_softmax(-1).gather(1, wanted[:, None]).sum()
    return found


@pytest.mark.parametrize("architecture", tiny.TEXT)
def test_loss_and_gradients_equal_those_of_the_full_logits(architecture):
    generator = torch.Generator().manual_seed(0)
    model = tiny.model(architecture)
    batch = collate_text([pair(tokens(p, generator), tokens(c, generator), model) for p, c in LENGTHS], model)
    outputs = labelled_outputs(model.network, batch)
    assert outputs.logits.shape == (13, 259) and int((batch["labels"] != -100).sum()) == 13
    assert outputs.owners.tolist() == [0] * 3 + [1] + [2] * 6 + [3] * 3
    loss = torch.nn.functional.cross_entropy(outputs.logits, outputs.targets)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in model.network.named_parameters()}
    model.network.zero_grad()
    full = model.network(**batch)
    assert abs(loss.item() - full.loss.item()) < 1e-5 and full.logits.shape[:2] == batch["labels"].shape
    full.loss.backward()
    for name, parameter in model.network.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-5), name


def test_the_hook_goes_away_also_after_an_exception():
    model = tiny.model("llama")
    batch = collate_text([pair([5, 6], [7], model)], model)
    head = model.network.get_output_embeddings()
    seen = []
    spy = head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    labelled_outputs(model.network, batch)
    with pytest.raises(IndexError):
        labelled_outputs(model.network, batch | {"input_ids": torch.tensor([[5, 6, 9999]])})
    spy.remove()
    assert seen == [(1, 1, 259)] and not head._forward_pre_hooks  # the head ran at one position only
    assert model.network(input_ids=batch["input_ids"]).logits.shape == (1, 3, 259)


def test_whatever_follows_the_head_still_applies():
    model = tiny.model("llama")
    batch = collate_text([pair([5, 6], [7, 8], model)], model)
    plain = labelled_outputs(model.network, batch).logits
    forward = model.network.forward

    def capped(**kwargs):
        out = forward(**kwargs)
        out.logits = torch.tanh(out.logits)
        return out

    model.network.forward = capped
    assert torch.allclose(labelled_outputs(model.network, batch).logits, torch.tanh(plain))


def test_log_likelihoods_do_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(0)
    model = sharp("llama")
    prompts = [tokens(p, generator) for p, _ in LENGTHS]
    wanted = [tokens(c, generator) for _, c in LENGTHS]
    totals, counts = log_likelihoods(model, [pair(p, w, model) for p, w in zip(prompts, wanted, strict=True)])
    assert counts == [c for _, c in LENGTHS]
    for i in range(4):
        assert abs(totals[i] - by_hand(model, prompts[i : i + 1], wanted[i : i + 1]).item()) < 1e-4


def test_judging_restores_every_module_and_keeps_no_gradient():
    network = tiny.network("llama").train()
    network.model.layers[0].eval()
    before = [module.training for module in network.modules()]
    with pytest.raises(KeyError), judging(network):
        assert not any(module.training for module in network.modules()) and not torch.is_grad_enabled()
        raise KeyError
    assert [module.training for module in network.modules()] == before and torch.is_grad_enabled()
    assert len(set(before)) == 2  # control: a mixture was restored


def test_batches_hold_every_row_once_within_the_budget():
    lengths = [3, 50, 7, 7, 90, 1, 12, 300]
    batches = batches_by_length(lengths, 100)
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 100 for b in batches)
    assert batches[0] == [7] and max(map(len, batches)) > 1
    assert max(map(len, batches_by_length([1] * 9, 100, rows=4))) == 4
    assert batches_by_length([300, 300], 100) == [[0], [1]]  # longer than the budget


def test_batches_waste_few_positions_and_are_not_small_for_it():
    draw = random.Random(0)
    lengths = [draw.randint(4, 40) for _ in range(500)]
    batches = batches_by_length(lengths, 4096)
    pads = [sum(lengths[b[0]] - lengths[i] for i in b) for b in batches]
    assert max(pads) <= PADS
    assert sum(pads) / sum(lengths) < 0.1
    for first, second in itertools.pairwise(batches):  # what begins a batch would not have fitted
        joined = pads[batches.index(first)] + lengths[first[0]] - lengths[second[0]]
        assert joined > PADS or lengths[first[0]] * (len(first) + 1) > 4096


def test_the_tree_shares_beginnings():
    tree = label_tree.tree_of([[1], [1, 2], [1, 2, 3], [4, 2], [1, 5]])
    assert tree.tokens[1:] == [1, 2, 4] and tree.parents == [0, 0, 1, 0] and tree.depths == [0, 1, 2, 1]
    assert tree.num_edges == 6 and tree.paths[2][:2] == tree.paths[1] and tree.ways[2] == [1, 2]


@pytest.mark.parametrize("common", [0, 20])
@pytest.mark.parametrize("architecture", tiny.TEXT)
def test_label_likelihoods_equal_one_plain_sequence_each(architecture, common, monkeypatch):
    model, prompts, labels = case(architecture, common=common)
    expected = by_hand(model, prompts, labels)
    assert (expected - expected.mean(0)).abs().max() > 0.5  # control: the prompt matters
    monkeypatch.setattr(label_tree, "BATCH_TOKENS", 100)  # several batches
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 150)
    model.network.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the fast way is taken
        found = scoring.label_log_likelihoods(model, prompts, labels)
    assert model.network.training and not found.requires_grad
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(scoring.plain(model, prompts, labels, None), expected, atol=1e-4)
    one = scoring.label_log_likelihoods(model, prompts[:1], labels)
    assert torch.allclose(one, expected[:1], atol=1e-4)


@pytest.mark.parametrize("architecture", tiny.TEXT)
def test_labels_left_out_cannot_win(architecture):
    model, prompts, labels = case(architecture, num=16)
    full = scoring.label_log_likelihoods(model, prompts, labels)
    references = [i % len(labels) for i in range(len(prompts))]
    found = scoring.label_log_likelihoods(model, prompts, labels, references)
    known = found.isfinite()
    assert torch.allclose(found[known], full[known], atol=1e-4)
    assert torch.equal(found.argmax(1), full.argmax(1))
    assert known[range(len(prompts)), references].all()
    if model.kind == "decoder":
        assert known.float().mean() < 0.9  # control: some were left out


def test_a_tree_computes_far_fewer_positions_than_plain_sequences():
    model, prompts, labels = case("llama", num=16, common=30)
    count = []
    spy = model.network.model.embed_tokens.register_forward_hook(
        lambda m, a, out: count.append(out[..., 0].numel())
    )
    with judging(model.network):
        label_tree.by_tree(model, prompts, labels, None)
        tree, count[:] = sum(count), []
        scoring.plain(model, prompts, labels, None)
        plain = sum(count)
    spy.remove()
    assert tree * 10 < plain


def test_a_network_that_ignores_the_mask_is_noticed():
    model, prompts, labels = case("llama")
    expected = by_hand(model, prompts, labels)
    forward = model.network.forward

    def ignorant(attention_mask=None, **kwargs):
        if attention_mask is not None and attention_mask.dim() == 4:
            attention_mask = torch.zeros_like(attention_mask)
        return forward(attention_mask=attention_mask, **kwargs)

    model.network.forward = ignorant
    with pytest.warns(UserWarning, match="LlamaForCausalLM cannot score labels by tree .*differ"):
        found = scoring.label_log_likelihoods(model, prompts, labels)
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_network_that_refuses_the_mask_is_noticed():
    model, prompts, labels = case("gpt2")
    forward = model.network.forward

    def strict(attention_mask=None, **kwargs):
        if attention_mask is not None and attention_mask.dim() == 4:
            raise ValueError("two dimensions please")
        return forward(attention_mask=attention_mask, **kwargs)

    model.network.forward = strict
    with pytest.warns(UserWarning, match="two dimensions please"):
        found = scoring.label_log_likelihoods(model, prompts, labels)
    assert torch.allclose(found, by_hand(model, prompts, labels), atol=1e-4)


def test_absolute_positions_in_a_decoder_take_the_second_way():
    torch.manual_seed(0)
    network = BartForConditionalGeneration(
        BartConfig(vocab_size=259, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
                   decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
                   max_position_embeddings=128, pad_token_id=0, bos_token_id=2, eos_token_id=1,
                   decoder_start_token_id=1, init_std=0.5, forced_eos_token_id=None)
    ).eval()  # fmt: skip
    _, prompts, labels = case("t5")
    model = Model(network=network, processor=tiny.tokenizer(), kind="encoder_decoder", window=128)
    with pytest.warns(UserWarning, match="side by side") as caught:
        found = scoring.label_log_likelihoods(model, prompts, labels)
    assert len(caught) == 1  # the second way holds
    assert torch.allclose(found, by_hand(model, prompts, labels), atol=2e-4)


def test_a_sliding_window_shorter_than_the_row_is_respected():
    torch.manual_seed(0)
    network = MistralForCausalLM(
        MistralConfig(vocab_size=259, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                      num_attention_heads=2, num_key_value_heads=2, sliding_window=8, initializer_range=0.3,
                      pad_token_id=0, eos_token_id=1, bos_token_id=None)
    ).eval()  # fmt: skip
    _, prompts, labels = case("llama")
    model = Model(network=network, processor=tiny.tokenizer(), kind="decoder", window=128)
    expected = by_hand(model, prompts, labels)
    with pytest.warns(UserWarning, match="exceed the attention window"):
        found = scoring.label_log_likelihoods(model, prompts, labels)
    assert torch.allclose(found, expected, atol=2e-4)
    with judging(network):
        assert not torch.allclose(
            label_tree.by_tree(model, prompts, labels, None), expected, atol=1e-2
        )  # control


@pytest.mark.parametrize("architecture", tiny.TEXT)
def test_generation_is_greedy_whatever_the_model_brought(architecture):
    model, prompts, _ = case(architecture)
    model.network.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, top_k=2)
    brought = model.network.generation_config
    found = scoring.generate(model, prompts, 6)
    assert model.network.generation_config is brought
    for prompt, ids in zip(prompts, found, strict=True):
        assert ids == by_steps(model, prompt, 6)
    assert len({tuple(ids) for ids in found}) > 3  # control: answers differ


def by_steps(model: Model, prompt: list[int], limit: int) -> list[int]:
    said: list[int] = []
    for _ in range(limit):
        with torch.no_grad():
            if model.kind == "decoder":
                logits = model.network(input_ids=torch.tensor([prompt + said])).logits
            else:
                decoder = torch.tensor([[0, *said]])
                logits = model.network(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits
        token = int(logits[0, -1].argmax())
        if token == 1:
            break
        said.append(token)
    return said


def test_generation_stops_at_the_end_token():
    model, prompts, _ = case("llama")
    first = by_steps(model, prompts[0], 3)
    model.network.generation_config.eos_token_id = [first[1]]
    assert scoring.generate(model, prompts, 6)[0] == first[: first.index(first[1])]
