"""DER and DER++ in closed form, with heads that grow, and in the engine."""

import json

import pytest
import tiny
import tiny_stream
import torch
from torch.nn import functional

from lifelong import launch
from lifelong.core.axes import Outputs
from lifelong.core.engine import Settings
from lifelong.core.state import equal, join, split
from lifelong.errors import UserError
from lifelong.replay.der import Der
from lifelong.replay.reservoir import Reservoir
from lifelong.tuners.lora import Lora


def outputs(seed=0, sizes=(2, 3), columns=6):
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    logits = torch.randn(total, columns, generator=generator, requires_grad=True)
    owners = torch.cat([torch.full((n,), i) for i, n in enumerate(sizes)])
    return Outputs(logits, torch.arange(total) % 3, owners)


def items(method, found, columns=None, shift=0.0):
    """What the memory keeps of the rows of `found`, as they were `shift` ago."""
    made = []
    for i in range(int(found.owners.max()) + 1):
        logits = found.logits[found.owners == i][:, :columns].detach() - shift
        made.append({"stage": 0, "example": {"id": i}, "logits": logits})
    return method.add(method.init(0), made)["items"]


def test_value_and_gradient_are_the_closed_form():
    method, found = Der(alpha=0.7, beta=0.2, precision="float32"), outputs()
    loss = method.loss(found, items(method, found, shift=0.5))
    entropies = functional.cross_entropy(found.logits, found.targets, reduction="none")
    by_row = (entropies[:2].mean() + entropies[2:].mean()) / 2
    torch.testing.assert_close(loss, 0.7 * 0.25 + 0.2 * by_row)
    made = torch.autograd.grad(
        Der(alpha=1.0, beta=0.0).loss(found, items(method, found, shift=0.5)), found.logits
    )[0]
    expected = torch.cat([torch.full((2, 6), 2 * 0.5 / 12 / 2), torch.full((3, 6), 2 * 0.5 / 18 / 2)])
    torch.testing.assert_close(made, expected)


def test_kept_answers_give_exactly_zero_and_half_precision_nearly():
    found = outputs()
    exact, half = Der(beta=0.0, precision="float32"), Der(beta=0.0)
    assert exact.loss(found, items(exact, found)).item() == 0.0
    kept = items(half, found)
    assert kept[0]["logits"].dtype == torch.float16
    assert 0 < half.loss(found, kept).item() < 1e-6
    assert exact.loss(found, items(exact, found, shift=0.01)).item() > 4e-5  # control


def test_columns_of_later_labels_do_not_enter():
    method, found = Der(alpha=1.0, beta=0.0, precision="float32"), outputs(columns=6)
    kept = items(method, found, columns=4, shift=0.5)
    loss = method.loss(found, kept)
    assert loss.item() == pytest.approx(0.25)
    gradient = torch.autograd.grad(loss, found.logits)[0]
    assert not gradient[:, 4:].any() and gradient[:, :4].abs().min() > 0


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_masked_columns_are_left_out(precision):
    method, found = Der(alpha=1.0, beta=0.0, precision=precision), outputs(sizes=(3,))
    least = torch.finfo(torch.float32).min
    hidden = Outputs(found.logits.detach().index_fill(1, torch.tensor([0, 1]), least), *found[1:])
    kept = items(method, hidden)
    assert torch.isfinite(kept[0]["logits"].float()).all()
    moved = Outputs(found.logits + 2.0, *found[1:])  # the masked columns answer again
    loss = method.loss(moved, kept)
    assert loss.item() == pytest.approx(4.0, rel=1e-2)
    assert torch.isfinite(torch.autograd.grad(loss, found.logits)[0]).all()
    assert method.loss(hidden, items(method, found)).item() < 1e-5


def test_off_means_no_rows_and_beta_alone_needs_no_logits():
    method = Der(alpha=0.0, beta=0.0)
    state = method.add(method.init(0), [{"stage": 0, "example": {}, "logits": torch.zeros(1, 2)}] * 4)
    assert method.pick(state, 4, stage=1, step=0) == []
    assert len(Der().pick(state, 4, stage=1, step=0)) == 4
    assert len(Der().pick(state, 4, stage=0, step=0)) == 4  # of the running stage too
    assert Der(current=False).pick(state, 4, stage=0, step=0) == []


def test_state_comes_back_and_another_number_of_positions_is_named():
    method, found = Der(), outputs()
    state = method.add(method.init(3), [{"stage": 0, "example": {"id": 1}, "logits": found.logits[:2]}])
    assert equal(join(*split(state)), state)
    assert not state["items"][0]["logits"].requires_grad
    with pytest.raises(UserError, match="keep to tokens"):
        method.loss(outputs(sizes=(3,)), state["items"])


def train(path, method, architecture="llama", precision="float32", **settings):
    stream = tiny_stream.stream(vision=architecture == "vit", general=False, **settings)
    run = launch.run(
        tiny.model(architecture),
        stream,
        [Lora(rank=2), method],
        output=path,
        settings=Settings(precision=precision),
    )
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kept", ["float16", "float32"])
def test_terms_in_bfloat16_are_near_those_in_float32(kept, tmp_path):
    half, full = (
        train(tmp_path / each, Der(size=6, precision=kept), precision=each)
        for each in ("bfloat16", "float32")
    )
    terms = [[entry["penalties"].get("der", 0.0) for entry in log] for log in (half, full)]
    assert terms[0] == pytest.approx(terms[1], rel=0.05) and terms[1][-1] > 0.1


@pytest.mark.parametrize("architecture", ["llama", "vit"])
def test_micro_batches_change_only_rounding(architecture, tmp_path):
    whole = train(tmp_path / "a", Der(size=6), architecture)
    parts = train(tmp_path / "b", Der(size=6), architecture, micro_batch_size=1)
    found = [
        (a["penalties"]["der"], b["penalties"]["der"])
        for a, b in zip(whole, parts, strict=True)
        if a["penalties"]
    ]
    assert len(found) == 5  # from the second step on: rows of the running stage count
    for left, right in found:
        assert left == pytest.approx(right, rel=1e-3)
    assert [a["loss"] for a in whole] == pytest.approx([b["loss"] for b in parts], abs=1e-4)


def test_beta_alone_is_the_loss_of_the_same_rows(tmp_path):
    """The rows that a reservoir of the same seed would replay, weighed by rows, not by positions."""
    log = train(tmp_path / "a", Der(size=50, alpha=0.0, beta=1.0, current=False), "vit", learning_rate=1e-12)
    plain = train(tmp_path / "b", Reservoir(size=50, fraction=1.0), "vit", learning_rate=1e-12)
    for a, b in zip(log[3:], plain[3:], strict=True):
        assert (a["loss"] + a["penalties"]["der"]) / 2 == pytest.approx(b["loss"], abs=1e-5)
    assert all("der" not in entry["penalties"] for entry in log[:3])


def test_answers_on_remembered_rows_drift_less(tmp_path):
    def squared_difference(alpha):
        log = train(tmp_path / f"{alpha}", Der(size=12, alpha=alpha, beta=0.0), "vit")
        return [entry["penalties"]["der"] / alpha for entry in log if entry["penalties"]][-1]

    assert squared_difference(20.0) < 0.5 * squared_difference(1e-6)
