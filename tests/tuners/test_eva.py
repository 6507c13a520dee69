"""EVA against exact PCA and against peft's own, its budget, and the function at the start."""

import pytest
import tiny
import tiny_stream
import torch
from test_lora import inputs, output

from lifelong.core.axes import Context
from lifelong.errors import UserError
from lifelong.objectives.causal_lm import CausalLm
from lifelong.objectives.classification import Classification
from lifelong.tuners.eva import Eva


def boundary(model, objective, rows, labels=("sky0", "sky1"), stage=0):
    examples = objective.encode(rows, model, labels).examples
    return Context(
        params=model.params(), model=model, objective=objective, examples=examples, stage=stage, seed=3,
        batches=lambda chosen: iter([objective.collate(chosen, model)]),
    )  # fmt: skip


def started(method, architecture="llama", objective=None, rows=None):
    model = tiny.model(architecture)
    rows = rows or tiny_stream.rows("sky", 12, 0, vision=architecture == "vit")
    given = boundary(model, objective or Classification(), rows)
    state = method.attach(model, None, seed=0)
    return model, given, method.begin_stage(given, state)


def inputs_of(model, name, batch, keep):
    """Rows that a module of the base reads, at the positions of `keep`."""
    found = []
    handle = model.network.get_submodule(name).register_forward_pre_hook(lambda m, a: found.append(a[0]))
    with torch.no_grad():
        model.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    handle.remove()
    return found[0][keep].double()


@pytest.mark.parametrize("masked", [True, False])
def test_equals_exact_pca_of_the_inputs(masked):
    """One batch with all rows: the directions explain as much variance as any could."""
    method = Eva(rank=3, spread=1.0, batch_size=100, passes=1, label_mask=masked)
    model, given, state = started(method)
    batch = next(given.batches(given.examples))
    keep, other = batch["labels"] != -100, batch["attention_mask"].bool()
    keep, other = (keep, other) if masked else (other, keep)
    for name in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"):
        down = model.network.get_submodule(name).lora_A.weight.detach().double()
        torch.testing.assert_close(down @ down.T, torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0)

        def explained(keep, name=name, down=down):
            centred = inputs_of(model, name, batch, keep)
            centred = centred - centred.mean(0)
            best = torch.linalg.svdvals(centred)[:3].square().sum()
            return float((centred @ down.T).square().sum() / best)

        assert abs(explained(keep) - 1) < 1e-5
        assert explained(other) < 0.999  # control: the other positions have other components


def gap(model, rank=3):
    """Embeddings with a few directions that stand out."""
    generator = torch.Generator().manual_seed(0)
    weight = model.network.get_input_embeddings().weight
    strong = torch.randn(len(weight), rank, generator=generator) * torch.tensor([4.0, 3.0, 2.0])
    basis = torch.linalg.qr(torch.randn(weight.shape[1], rank, generator=generator)).Q
    weight.data = strong @ basis.T + 0.01 * torch.randn(weight.shape, generator=generator)


def test_spans_the_subspace_that_peft_finds():
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import EvaConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    rows = [{"text": row["text"]} for row in tiny_stream.rows("sky", 24, 0)]
    objective, name = CausalLm(block_size=16), "model.layers.0.self_attn.q_proj"
    model = tiny.model("llama")
    gap(model)
    given = boundary(model, objective, rows, ())
    method = Eva(rank=3, spread=1.0, batch_size=4, label_mask=False, targets=(name,))
    method.begin_stage(given, method.attach(model, None, seed=0))
    ours = model.network.get_submodule(name).lora_A.weight.detach()

    theirs = tiny.model("llama")
    gap(theirs)
    config = LoraConfig(
        r=3,
        target_modules=[name],
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0, use_label_mask=False),
    )
    batches = [
        {k: v for k, v in next(given.batches(given.examples[i : i + 4])).items() if k != "labels"}
        for i in range(0, len(given.examples), 4)
    ]
    found = get_eva_state_dict(
        get_peft_model(theirs.network, config), batches, prepare_layer_inputs_fn=None,
        prepare_model_inputs_fn=None, show_progress_bar=False,
    )  # fmt: skip
    (reference,) = found.values()
    cosines = torch.linalg.svdvals(ours @ reference.float().T)  # of the angles between the two subspaces
    assert cosines.min() > 0.99
    other = torch.linalg.qr(torch.randn(32, 3, generator=torch.Generator().manual_seed(1))).Q.T
    assert torch.linalg.svdvals(ours @ other.T).min() < 0.9  # control


def test_ranks_add_up_and_follow_the_explained_variance():
    method = Eva(rank=4, spread=2.0, batch_size=100, passes=1)
    model, given, state = started(method)
    alike, given_alike, uniform = started(Eva(rank=4, spread=1.0, batch_size=100, passes=1))
    assert sum(state["ranks"].values()) == 4 * 14 and max(state["ranks"].values()) <= 8
    assert len(set(state["ranks"].values())) > 1
    assert set(uniform["ranks"].values()) == {4}  # control: no room to spread
    batch = next(given.batches(given.examples))
    shares = {}
    for name in uniform["ranks"]:
        centred = inputs_of(alike, name, batch, batch["labels"] != -100)
        values = torch.linalg.svdvals(centred - centred.mean(0)).square()
        shares[name] = (values / values.sum())[:8]
    chosen = [float(s) for n, rank in state["ranks"].items() for s in shares[n][:rank]]
    left = [float(s) for n in shares for s in shares[n][state["ranks"].get(n, 0) :]]
    assert min(chosen) >= max(left) - 1e-5


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_function_does_not_change_where_the_first_stage_begins(architecture):
    batch, base = inputs(architecture), tiny.model(architecture)
    base.network.requires_grad_(False)
    model, given, state = started(Eva(rank=2, batch_size=4, passes=2), architecture)
    assert torch.equal(output(model.network, batch), output(base.network, batch))
    assert model.params() and all("lora_" in name for name in model.params())
    again = Eva(rank=2).begin_stage(given, state)  # later stages keep what there is
    assert again is state
    other, _, repeated = started(Eva(rank=2, batch_size=4, passes=2), architecture)
    assert repeated == state
    for name, parameter in model.params().items():
        assert torch.equal(other.params()[name], parameter)
    for parameter in model.params().values():
        parameter.data = parameter.data + 0.1
    trained = output(model.network, batch)
    assert not torch.allclose(trained, output(base.network, batch), atol=1e-3)
    Eva(rank=2).fold(model, state)
    torch.testing.assert_close(output(model.network, batch), trained, atol=1e-4, rtol=1e-4)


def test_a_target_without_a_share_has_no_update():
    """One module reads a single direction, so that the budget goes to others."""
    model = tiny.model("llama")
    rows = tiny_stream.rows("sky", 12, 0)
    given = boundary(model, Classification(), rows)
    with torch.no_grad():
        for name in ("gate_proj", "up_proj"):
            model.network.model.layers[0].mlp.get_submodule(name).weight.zero_()  # input of down_proj: 0
    method = Eva(rank=2, batch_size=100, passes=1)
    state = method.begin_stage(given, method.attach(model, None, seed=0))
    assert "model.layers.0.mlp.down_proj" not in state["ranks"]
    assert "model.layers.1.mlp.down_proj" in state["ranks"]
    assert set(method.low_rank(model, state)) == set(state["ranks"])


def test_whitening_and_scale():
    plain, _, state = started(Eva(rank=4, batch_size=100, passes=1))
    white, given, _ = started(Eva(rank=4, batch_size=100, passes=1, whiten=True))
    name = "model.layers.0.mlp.down_proj"
    first, second = (m.network.get_submodule(name).lora_A.weight.detach() for m in (plain, white))
    batch = next(given.batches(given.examples))
    centred = inputs_of(tiny.model("llama"), name, batch, batch["labels"] != -100)
    values = torch.linalg.svdvals(centred - centred.mean(0))[: len(first)].float()
    torch.testing.assert_close(second, first / values[:, None].sqrt(), atol=1e-3, rtol=1e-2)
    kept, own = Eva(rank=4, alpha=8.0), Eva(rank=4, alpha=8.0, keep_scale=False)
    scales = [each.scale for each in kept.low_rank(plain, state).values()]
    assert set(scales) == {2.0}
    assert {e.scale * len(e.down) for e in own.low_rank(plain, state).values()} == {8.0}


def test_it_goes_on_until_the_components_have_settled():
    def batches_used(**settings):
        model = tiny.model("llama")
        given = boundary(model, Classification(), tiny_stream.rows("sky", 12, 0))
        used, batches = [], given.batches
        given.batches = lambda chosen: used.append(len(chosen)) or batches(chosen)
        method = Eva(rank=2, batch_size=4, **settings)
        method.begin_stage(given, method.attach(model, None, seed=0))
        return used

    assert batches_used(settled=0.0) == [4]
    assert 1 < len(batches_used(settled=0.5, passes=50)) < 150
    assert len(batches_used(settled=1.0, passes=2)) == 6


def test_without_examples_it_says_what_it_needs():
    model = tiny.model("llama")
    with pytest.raises(UserError, match="eva looks at the first stage's inputs"):
        Eva().begin_stage(Context(params={}, model=model), Eva().attach(model, None, seed=0))
