"""I-LoRA: the slow pair is the moving average and moves; the term is that of two networks; it answers."""

from copy import deepcopy

import pytest
import tiny
import tiny_stream
import torch
from test_lora import disturb, inputs, output

from lifelong import launch
from lifelong.core.axes import Context
from lifelong.core.composition import compose
from lifelong.errors import UserError
from lifelong.models import restore
from lifelong.numerics.positions import layer_outputs
from lifelong.objectives.classification import Classification
from lifelong.replay.a_gem import AGem
from lifelong.replay.der import Der
from lifelong.replay.reservoir import Reservoir
from lifelong.tuners.i_lora import ILora


def attached(method, architecture="llama"):
    model = tiny.model(architecture)
    return model, method.attach(model, None, seed=0)


def step(method, model, state):
    return method.after_update(Context(params=model.params(), model=model), state)


def shift(model, seed, size=0.1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.params().values():
        parameter.data = parameter.data + size * torch.randn(parameter.shape, generator=generator)


def test_slow_weights_are_the_closed_form_average():
    """e_n = a^n e_0 + (1 - a) sum_i a^(n-1-i) w_i once a = min(1 - 1/(n + 1), keep) is keep throughout."""
    method, keep = ILora(rank=2, keep=0.25), 0.25
    model, state = attached(method)
    first = {name: p.detach().clone() for name, p in model.params().items()}
    seen = []
    for number in range(5):
        shift(model, number)
        seen.append({name: p.detach().clone() for name, p in model.params().items()})
        state = step(method, model, state)
    for name, start in first.items():
        expected = keep**5 * start + (1 - keep) * sum(keep ** (4 - i) * w[name] for i, w in enumerate(seen))
        torch.testing.assert_close(state["slow"][name], expected, atol=1e-6, rtol=1e-5)
        assert not torch.equal(state["slow"][name], start)  # the authors' release stays at its start


def test_early_steps_keep_less_and_the_limits_hold():
    model, state = attached(ILora(rank=2, keep=0.9))
    before = {name: slow.clone() for name, slow in state["slow"].items()}
    shift(model, 0)
    state = step(ILora(rank=2, keep=0.9), model, state)
    name, fast = next(iter(model.params().items()))
    torch.testing.assert_close(state["slow"][name], (before[name] + fast.detach()) / 2)  # 1 - 1/2
    copied, state = attached(ILora(rank=2, keep=0.0))
    shift(copied, 1)
    state = step(ILora(rank=2, keep=0.0), copied, state)
    assert all(torch.equal(state["slow"][n], p) for n, p in copied.params().items())
    still = step(ILora(rank=2, keep=0.7), copied, state)  # equal pairs are a fixed point
    assert all(torch.equal(still["slow"][n], p) for n, p in copied.params().items())


def stepped(architecture, method, tasks=(1, 0, 0), stage=1, watched=True):
    """A model whose pairs differ, and the context of a step with old rows, whose pass was `watched`."""
    model, state = attached(method, architecture)
    vision = architecture == "vit"
    rows = tiny_stream.rows("sky", len(tasks), 0, vision)
    objective, labels = Classification(), ("sky0", "sky1")
    objective.begin_stage(model, labels, 0)
    disturb(model.network, seed=1)
    state["slow"] = {n: model.params()[n].detach().clone() for n in state["slow"]}
    disturb(model.network, seed=2)
    batch = objective.collate(objective.encode(rows, model, labels).examples, model)
    with layer_outputs(model.network) as layers:
        outputs = objective.forward(model.network, batch)
    return model, state, Context(
        params=model.params(), model=model, objective=objective, stage=stage, batch=batch, outputs=outputs,
        layers=layers if watched else None, tasks=tasks,
    )  # fmt: skip


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_term_equals_two_separate_networks(architecture, watched):
    """Hidden states of transformers itself, row by row, so without pads; the last is behind a norm there."""
    method = ILora(rank=2, strength=3.0)
    model, state, given = stepped(architecture, method, watched=watched)
    loss = method.loss(given, state)
    slow = deepcopy(model)
    for name, value in state["slow"].items():
        slow.params()[name].data = value
    owners, total = given.outputs.owners, 0.0
    for row in (1, 2):
        fast_states, slow_states = (layer_states(m, given, row) for m in (model, slow))
        pulls = [torch.relu(s - f).square() for f, s in zip(fast_states, slow_states, strict=True)]
        mean = sum(p.sum() for p in pulls) / sum(p.numel() for p in pulls)
        total = total + mean * int((owners == row).sum())
    expected = 3.0 * total / len(owners)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-4)
    chosen = [p for n, p in model.params().items() if n in state["slow"]]
    for ours, wanted in zip(
        torch.autograd.grad(loss, chosen, allow_unused=True),
        torch.autograd.grad(expected, chosen, allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (wanted is None)
        if ours is not None:
            torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-3)
    assert loss > 1e-6


def layer_states(model, given, row):
    """Outputs of the layers for one row alone, its pads cut off, by hooks of the test's own."""
    batch = {key: value[row : row + 1] for key, value in given.batch.items()}
    if "attention_mask" in batch:
        length = int(batch["attention_mask"].sum())
        batch |= {k: batch[k][:, :length] for k in ("input_ids", "attention_mask")}
        if batch["labels"].dim() == 2:
            learned = int((batch["labels"] != -100).sum())
            encoder_decoder = model.kind == "encoder_decoder"
            batch["labels"] = batch["labels"][:, : learned if encoder_decoder else length]
    network, found = model.network, []
    stacks = {
        "decoder": lambda: getattr(network.base_model, "layers", None) or network.base_model.h,
        "encoder_decoder": lambda: [*network.encoder.block, *network.decoder.block],
        "encoder": lambda: network.encoder.layer,
        "vision": lambda: next(m for m in network.modules() if isinstance(m, torch.nn.ModuleList)),
    }
    hook = lambda m, a, o: found.append(o[0] if isinstance(o, tuple) else o)  # noqa: E731
    handles = [layer.register_forward_hook(hook) for layer in stacks[model.kind]()]
    given.objective.forward(network, batch)
    for handle in handles:
        handle.remove()
    return found


def test_no_term_without_old_rows_or_strength_and_none_where_pairs_agree():
    method = ILora(rank=2)
    model, state, given = stepped("llama", method, tasks=(1, 1, 1))
    assert method.loss(given, state) is None
    model, state, given = stepped("llama", method, tasks=(0, 1, 2), stage=0)  # a joint stage
    assert method.loss(given, state) is None
    model, state, given = stepped("llama", method)
    assert ILora(rank=2, strength=0.0).loss(given, state) is None
    assert method.loss(given, state) > 0
    state["slow"] = {n: model.params()[n].detach().clone() for n in state["slow"]}
    assert method.loss(given, state) == 0.0


def test_the_term_draws_nothing_and_leaves_the_network_as_it_was():
    method = ILora(rank=2, dropout=0.5)
    model, state, given = stepped("llama", method)
    model.network.train()
    random, before = torch.get_rng_state(), {n: p.detach().clone() for n, p in model.params().items()}
    assert method.loss(given, state) == method.loss(given, state)
    assert torch.equal(random, torch.get_rng_state()) and model.network.training
    assert all(torch.equal(before[n], p) for n, p in model.params().items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_the_slow_pair_answers_and_is_exported(architecture):
    method, batch = ILora(rank=2), inputs(architecture)
    model, state, _ = stepped(architecture, method)
    fast = output(model.network, batch)
    with method.serving(model, state):
        slow = output(model.network, batch)
    assert not torch.allclose(slow, fast, atol=1e-3)
    assert torch.equal(output(model.network, batch), fast)
    method.fold(model, state)
    torch.testing.assert_close(output(model.network, batch), slow, atol=1e-4, rtol=1e-4)


def trained(tmp_path, name, *parts, **settings):
    model = tiny.model("llama")
    model.network.save_pretrained(tmp_path / "base")
    model.processor.save_pretrained(tmp_path / "base")
    stream = tiny_stream.stream(general=False, **settings)
    methods = compose(list(parts), parts[0])
    return launch.run(restore.load(tmp_path / "base"), stream, methods, output=tmp_path / name)


@pytest.mark.parametrize("memory", [Reservoir(size=6, fraction=1.0), Der(size=6)], ids=["reservoir", "der"])
def test_it_works_with_any_memory_that_trains_on_its_rows(memory, tmp_path):
    import json

    def terms(run):
        lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
        return [(line["stage"], line["penalties"].get("i_lora", 0.0)) for line in lines]

    found = terms(trained(tmp_path, "a", ILora(rank=2, keep=0.9), memory))
    assert all(term == 0 for stage, term in found if stage == 0)
    assert all(term > 0 for stage, term in found if stage == 1)
    cut = terms(trained(tmp_path, "b", ILora(rank=2, keep=0.9), memory, micro_batch_size=3))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(cut), atol=1e-7, rtol=2e-2)


def test_a_memory_that_only_projects_is_refused():
    with pytest.raises(UserError, match="i_lora holds on to.*a_gem trains on none"):
        compose([ILora(), AGem()], ILora())
