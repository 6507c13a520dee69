"""GS-LoRA: its terms in closed form, its limits, and a stage that forgets and resumes."""

import pytest
import tiny
import tiny_erasure
import torch
from accelerate import Accelerator

from lifelong import launch
from lifelong.core import gradients as steps
from lifelong.core.axes import Context, Outputs
from lifelong.core.composition import compose
from lifelong.core.engine import Settings
from lifelong.core.feeding import replayed
from lifelong.core.life import Life
from lifelong.core.plan import Plan
from lifelong.core.stream import Budget
from lifelong.errors import UserError
from lifelong.models import restore
from lifelong.objectives.classification import Classification
from lifelong.replay.reservoir import Reservoir
from lifelong.tuners.lora import Lora
from lifelong.tuners.o_lora import OLora
from lifelong.unlearning.gs_lora import GsLora


def methods(unlearning, *others, **tuner):
    return compose([OLora(**{"rank": 2} | tuner), unlearning, *others], OLora())


def train(folder, parts, stream=None, model=None, **settings):
    model = model or tiny.model("llama")
    settings = Settings(checkpoint_seconds=0.0, **settings)
    return launch.run(model, stream or tiny_erasure.stream(), parts, output=folder, settings=settings)


# the terms


def terms(logits, targets, owners, **settings):
    """(row losses, gradient of their sum at the logits) of two rows."""
    logits = logits.clone().requires_grad_()
    outputs = Outputs(logits, torch.tensor(targets), torch.tensor(owners))
    context = Context(params={}, objective=Classification(), outputs=outputs, tasks=(0, 0))
    losses = GsLora(**settings).row_losses(context, {"groups": []})
    return losses, torch.autograd.grad(losses.sum(), logits)[0]


def test_a_row_is_pushed_until_its_loss_reaches_the_bound():
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    targets, owners = [0, 0, 0], [0, 0, 1]  # two positions of the first row, one of the second
    each = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="none")
    first, second = float(each[:2].mean()), float(each[2])
    losses, gradient = terms(logits, targets, owners, beta=0.5, bound=2.0)
    assert first < 2.0 < second
    assert losses.tolist() == pytest.approx([0.5 * (2.0 - first), 0.0])
    assert gradient[2].tolist() == [0.0, 0.0]
    wanted = -0.5 / 2 * (torch.softmax(logits[:2], 1) - torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(gradient[:2], wanted)
    assert (terms(logits, targets, owners, beta=0.5, bound=4.0)[1][2] != 0).all()  # control: not there yet
    assert (terms(logits, targets, owners, beta=0.5, bound=first / 2)[1] == 0).all()


def lasso(values, alpha=0.5):
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in values.items()}
    state = {"groups": [["a1", "a2"], ["b1", "b2"]]}
    loss = GsLora(alpha=alpha).loss(Context(params=params), state)
    return loss, dict(zip(params, torch.autograd.grad(loss, params.values()), strict=True))


def test_group_lasso_is_a_sum_of_norms():
    loss, slopes = lasso({"a1": [3.0], "a2": [[0.0, 4.0]], "b1": [1.0, 0.0], "b2": [0.0]})
    assert loss.item() == pytest.approx(0.5 * (5.0 + 1.0))
    assert slopes["a1"].tolist() == pytest.approx([0.5 * 3 / 5])
    assert slopes["a2"].tolist() == [pytest.approx([0.0, 0.5 * 4 / 5])]
    assert slopes["b2"].tolist() == [0.0]  # the zero factor of a group that is not zero


def test_a_zero_group_has_value_and_subgradient_zero():
    loss, slopes = lasso({"a1": [0.0], "a2": [[0.0, 0.0]], "b1": [3.0, 4.0], "b2": [0.0]})
    assert loss.item() == pytest.approx(0.5 * 5.0)
    assert slopes["a1"].tolist() == [0.0] and slopes["a2"].tolist() == [[0.0, 0.0]]
    zero = torch.zeros(2, requires_grad=True)
    assert torch.autograd.grad(zero.square().sum().sqrt(), zero)[0].isnan().all()  # control: the plain root


def test_groups_are_the_blocks():
    life = begun(methods(GsLora()), tiny_erasure.stream(at=1))
    groups = life.states["unlearning"]["groups"]
    assert len(groups) == 2 and sorted(n for g in groups for n in g) == sorted(life.params)
    assert all(n.startswith("model.layers.1.") for n in groups[1]) and len(groups[1]) == 14


# in a stage


def begun(parts, stream):
    """A run that stands at the beginning of its second stage, the one that erases."""
    life = Life(tiny.model("llama"), stream, parts, 0, "float32", Accelerator(cpu=True))
    life.states["tuner"] = parts.tuner.attach(life.model, None, 0)
    life.params = life.model.params()
    life.states |= life._fresh_states()
    life.begin_stage(0, stream.stages[0])
    items = [{"stage": 0, "place": i.place, "example": i.example} for i in life.pool]
    if parts.replay:
        life.states["replay"] = parts.replay.add(life.states["replay"], items)
    life.end_stage()
    life.begin_stage(1, stream.stages[1])
    return life


def gradient(life, rows, size):
    taken = steps.gradients(life, rows, size, True)
    found = {n: p.grad.clone() for n, p in life.params.items() if p.grad is not None}
    for parameter in life.params.values():
        parameter.grad = None
    return taken, found


def test_the_division_into_micro_batches_changes_rounding_only():
    life = begun(methods(GsLora(), Reservoir(size=8, fraction=1.0)), tiny_erasure.stream(at=1))
    (whole, left), (parts, right) = (gradient(life, range(5), size) for size in (None, 2))
    assert whole.loss == pytest.approx(parts.loss) and whole.terms == pytest.approx(parts.terms)
    assert whole.tokens == parts.tokens > 0
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=1e-6, rtol=1e-4)
    assert max(float(each.abs().max()) for each in left.values()) > 1e-3


def test_beta_and_alpha_zero_train_the_remaining_rows_alone(tmp_path):
    """Against a loop of our own over the rows that the memory gives: every bit, the optimiser's too."""
    stream = tiny_erasure.stream(at=1, stages=("sky",))
    settings = stream.stages[1].optimization
    parts = methods(GsLora(beta=0.0, alpha=0.0), Reservoir(size=8, fraction=1.0), dropout=0.5)
    ours, theirs = begun(parts, stream), begun(parts, stream)
    plan = Plan([len(i.example["input_ids"]) for i in ours.pool], settings, stream.stages[1].budget, 0, 1)
    optimizer = torch.optim.AdamW(list(theirs.params.values()), lr=3e-3, weight_decay=0.0, fused=True)
    for step in range(plan.num_steps):
        torch.manual_seed(step)
        ours.step = theirs.step = step
        steps.gradients(ours, plan[step].rows, None, True)
        ours.update(3e-3)
        torch.manual_seed(step)
        items = replayed(theirs, len(plan[step].rows))
        assert len(items) == len(plan[step].rows) and all(item.task == 0 for item in items)
        objective = stream.stages[0].objective
        outputs = objective.forward(
            theirs.network, objective.collate([i.example for i in items], theirs.model)
        )
        (objective.loss(outputs).sum() / len(outputs.targets)).backward()
        torch.nn.utils.clip_grad_norm_(theirs.params.values(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    assert plan.num_steps == 2
    for name in ours.params:
        assert torch.equal(ours.params[name], theirs.params[name]), name
    other = begun(methods(GsLora(alpha=0.0), parts.replay, dropout=0.5), stream)
    torch.manual_seed(0)
    steps.gradients(other, plan[0].rows, None, True)
    assert "gs_lora" in steps.gradients(other, plan[0].rows, None, True).terms  # control: beta is on


def dead_block(model):
    """The last layer's feed-forward part gives zero, whatever goes in."""
    with torch.no_grad():
        model.network.model.layers[1].mlp.down_proj.weight.zero_()
    return model


def ups(run):
    """B of every module, of the last stage."""
    saved = restore.read_run(run.folder).content["states"]["tuner"]["past"]
    return {name: kept["up"][:, -2:] for name, kept in saved.items()}


def test_a_block_that_is_not_needed_keeps_an_update_of_zero(tmp_path):
    parts = methods(GsLora(beta=1.0, alpha=1e-2), targets=("gate_proj", "up_proj"))
    stream = tiny_erasure.stream(at=1, stages=("sky",), erase_budget=Budget(epochs=4))
    found = ups(train(tmp_path / "run", parts, stream, dead_block(tiny.model("llama"))))
    assert all((up == 0).all() for name, up in found.items() if ".1." in name)
    assert all((up != 0).any() for name, up in found.items() if ".0." in name)


def test_nothing_moves_where_every_loss_has_reached_the_bound(tmp_path):
    stream = tiny_erasure.stream(at=1, stages=("sky",), erase_budget=Budget(epochs=4))
    done = ups(train(tmp_path / "done", methods(GsLora(bound=0.01)), stream))
    assert all((up == 0).all() for up in done.values())
    open_ = ups(train(tmp_path / "open", methods(GsLora(bound=50.0)), stream))
    assert all((up != 0).any() for up in open_.values())


def mean_losses(memory, folder):
    """Loss in nats, by label, of what two stages taught and a third forgot a quarter of."""
    every = {"learning_rate": 3e-3, "count": 24, "budget": Budget(epochs=20)}
    stream = tiny_erasure.stream(tuple(range(0, 24, 2)), erase_budget=Budget(epochs=20), **every)
    parts = methods(GsLora(beta=1.0, bound=4.0), *memory, rank=8)
    model, found = train(folder, parts, stream, tiny.model("bert")).model, {}
    for stage in stream.stages[:2]:
        for label in stage.labels:
            rows = [row for row in stage.rows if row["label"] == label]
            examples = stage.objective.encode(rows, model, stream.labels()).examples
            with torch.no_grad():
                outputs = stage.objective.forward(model.network, stage.objective.collate(examples, model))
            found[label] = float(stage.objective.loss(outputs).mean())
    return found


def test_it_forgets_what_was_asked_for_and_keeps_the_rest(tmp_path):
    held = mean_losses([Reservoir(size=48, fraction=2.0)], tmp_path / "held")
    assert held["sky0"] > 4.0 and max(held[k] for k in ("sky1", "farm0", "farm1")) < 2.0, held  # nats
    alone = mean_losses([], tmp_path / "alone")
    assert alone["sky0"] > 4.0 and alone["sky1"] > 4.0, alone  # control: nothing holds its neighbour


def test_the_tuner_must_begin_at_zero():
    with pytest.raises(UserError, match="gs_lora needs a tuner .* at zero; that of lora is not.*o_lora"):
        compose([Lora(), GsLora()], Lora())
    assert compose([OLora(), GsLora()], Lora()).unlearning == GsLora()


def test_the_tuner_that_declares_it_begins_every_stage_at_zero():
    life = begun(methods(GsLora()), tiny_erasure.stream(at=1))
    assert all((p == 0).all() for n, p in life.params.items() if n.endswith("lora_B.weight"))
    batch = {"input_ids": torch.arange(5, 13)[None]}
    torch.testing.assert_close(life.network(**batch)[0], tiny.model("llama").network(**batch)[0])
