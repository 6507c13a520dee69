"""Features of a body that stands still: computed once, with the same bits, never those of another body."""

import copy
from dataclasses import replace

import pytest
import tiny
import tiny_stream
import torch

from lifelong import launch
from lifelong.analytic.acu import Acu
from lifelong.analytic.fsa_lda import FsaLda
from lifelong.analytic.nmc import Nmc
from lifelong.core import head, kept
from lifelong.core.composition import compose
from lifelong.core.engine import Settings
from lifelong.core.kept import Kept
from lifelong.tuners.frozen import Frozen
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora

STAGES = ("sky", "farm", "city")
LEARNED, JUDGED = 3, 1 + 2 + 3  # passes: one batch per stage, and per set whose labels the head knows
ROW_BYTES, ROWS = 32 * 4, 6  # of a set's features; every set is one batch


def run(folder, model, tuner=None, analytic=None, **settings):
    """(passes of the body, what was answered and written as tensors) of a run."""
    vision = model.kind == "vision"
    names = ("sea", "farm", "river") if vision else STAGES  # images are drawn by the length of the name
    stream = tiny_stream.stream(vision=vision, stages=names, general=False)
    methods, passes = compose([tuner or Frozen(), analytic or Nmc()], Frozen()), []
    hook = model.network.register_forward_hook(lambda *_: passes.append(0))
    try:
        launch.run(model, stream, methods, output=folder, settings=Settings(**settings))
    finally:
        hook.remove()
    files = [*folder.rglob("answers.jsonl"), *folder.rglob("*.safetensors")]
    assert len(files) >= 2 * len(STAGES)
    return len(passes), {str(each.relative_to(folder)): each.read_bytes() for each in files}


def another(model, moved=0.0):
    """A copy of a model that no run has touched, as a worker of a bench makes it; one weight of its body may
    be other.
    """
    made = replace(model, network=copy.deepcopy(model.network))
    weight_of(made).data[0] += moved
    return made


def weight_of(model):
    """A vector in the first layer of its body."""
    return next(each for name, each in model.network.named_parameters() if ".0." in name and "bias" in name)


def without(model):
    """A copy that keeps nothing."""
    return replace(another(model), kept=Kept(0))


@pytest.mark.parametrize("analytic", [Nmc(), FsaLda(), Acu()], ids=["nmc", "fsa_lda", "acu"])
@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_answers_are_bit_for_bit_those_of_a_run_that_computes_every_feature(architecture, analytic, tmp_path):
    model = tiny.model(architecture)
    every, plain = run(tmp_path / "plain", without(model), analytic=analytic)
    once, found = run(tmp_path / "kept", another(model), analytic=analytic)
    assert found == plain
    assert every - once == JUDGED - LEARNED  # the second and third time that a set was judged
    again, more = run(tmp_path / "again", another(model), analytic=analytic)
    assert more == plain and again == every - JUDGED
    _, other = run(tmp_path / "other", another(model, 0.5), analytic=analytic)
    assert other != plain  # control: the files tell one body from another


def test_random_features_of_a_head_are_no_part_of_the_body(tmp_path):
    model, made = tiny.model("bert"), {}
    for seed in (0, 1):
        passes, _ = run(tmp_path / str(seed), another(model), analytic=Acu(expansion=16), seed=seed)
        made[seed] = passes
    assert made[0] - made[1] == LEARNED  # every set was judged once by another head before


def test_a_head_that_is_trained_by_gradient_is_judged_on_kept_features(tmp_path):
    stream, found = tiny_stream.stream(stages=STAGES, general=False), {}
    model = tiny.model("bert")
    for name, each in (("plain", without(model)), ("kept", model)):
        launch.run(each, stream, [Frozen()], output=tmp_path / name, settings=Settings(evaluate_steps=1))
        found[name] = [file.read_bytes() for file in sorted((tmp_path / name).rglob("answers.jsonl"))]
    assert found["kept"] == found["plain"] and model.kept.num_bytes == 3 * ROWS * ROW_BYTES


@pytest.mark.parametrize("where", ["copy", "place"])
def test_a_body_that_has_moved_between_two_runs_is_asked_again(where, tmp_path):
    model = tiny.model("bert")
    assert run(tmp_path / "first", another(model))[0] == LEARNED + 3
    used = another(model)
    assert run(tmp_path / "control", used)[0] == LEARNED
    moved = another(model, 1e-3)
    _, plain = run(tmp_path / "plain", without(moved))
    assert plain != run(tmp_path / "unmoved", without(model))[1]
    if where == "place":  # the tensors of a run that was, written past PyTorch's count of writes
        del used.network.lifelong_head
        weight_of(used).data[0] += 1e-3
        moved = used
    passes, found = run(tmp_path / "moved", moved)
    assert passes == LEARNED + 3 and found == plain


MOVES = {
    "nothing": lambda network: None,
    "written": lambda network: network.encoder.layer[0].output.dense.weight.mul_(1 + 1e-6),
    "exchanged": lambda network: setattr(
        network.embeddings.LayerNorm.bias, "data", network.embeddings.LayerNorm.bias.data + 1e-6
    ),
    "buffer": lambda network: network.embeddings.token_type_ids.add_(1),
    "head": lambda network: network.lifelong_head.weight.add_(1),
}


@pytest.mark.parametrize("move", MOVES)
@torch.no_grad()
def test_inside_a_run_weights_that_were_written_are_read_again(move):
    model = tiny.model("bert")
    head.attach(model).grow(["a"], 0)
    batch, asked = {"input_ids": torch.tensor([[3, 4, 5]])}, []

    def ask():
        asked.append(0)
        return head.features(model.network, batch, "mean")

    def recall():
        return model.kept.recall(model.network, head.find(model.network), batch, "mean", ask)

    assert torch.equal(recall(), recall()) and len(asked) == 1
    MOVES[move](model.network)
    assert torch.equal(recall(), head.features(model.network, batch, "mean"))
    assert len(asked) == (1 if move in ("nothing", "head") else 2)
    assert model.kept.num_bytes == ROW_BYTES  # of one body


@torch.no_grad()
def test_other_rows_poolings_and_arithmetic_are_apart(monkeypatch):
    model, asked = tiny.model("bert"), []
    apart = head.attach(model)

    def recall(ids=((3, 4, 5),), pooling="mean"):
        batch = {"input_ids": torch.tensor(ids)}
        return model.kept.recall(model.network, apart, batch, pooling, lambda: asked.append(0) or made)

    made = torch.zeros(1, 32)
    recall()
    recall()
    assert len(asked) == 1
    recall(((3, 4, 6),))
    recall(((3,), (4,), (5,)))  # the same bytes in another shape
    recall(pooling="cls")
    with torch.autocast("cpu", torch.bfloat16):
        recall()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    recall()
    monkeypatch.setattr(model.network.config, "_attn_implementation", "other")
    recall()
    assert len(asked) == 7


@pytest.mark.parametrize(
    ("tuner", "analytic"),
    [(Full(), Nmc()), (Full(), FsaLda()), (Lora(rank=2), FsaLda()), (Frozen(), FsaLda())],
)
def test_nothing_is_kept_under_a_tuner_that_may_move_the_body(tuner, analytic, tmp_path):
    model = tiny.model("bert")
    every, plain = run(tmp_path / "plain", without(model), tuner, analytic)
    passes, found = run(tmp_path / "run", model, tuner, analytic)
    still = isinstance(tuner, Frozen)
    assert found == plain and model.still is False
    assert model.kept.num_bytes == 3 * ROWS * ROW_BYTES * still  # frozen is the control
    assert every - passes == (JUDGED - LEARNED) * still


def test_nothing_is_looked_up_after_an_evaluation_that_failed(tmp_path):
    class Stopped(Exception):
        pass

    def stop(*_):
        if model.still and model.kept.num_bytes == 2 * ROWS * ROW_BYTES:
            raise Stopped

    model, plain = tiny.model("bert"), tiny.model("bert")
    hook = model.network.register_forward_pre_hook(stop)
    with pytest.raises(Stopped):
        run(tmp_path / "run", model)
    assert not model.still
    hook.remove()
    every, expected = run(tmp_path / "plain", without(plain))
    passes, found = run(tmp_path / "run", plain)  # goes on after the stage that was not judged
    assert found == expected and 0 < passes < every


def test_the_weights_are_read_once_in_a_run(tmp_path, monkeypatch):
    read, model = [], tiny.model("bert")
    digest = kept.tensors_digest
    monkeypatch.setattr(kept, "tensors_digest", lambda given: read.append(len(given)) or digest(given))
    run(tmp_path / "run", model)
    batches = [each for each in read if each <= 2]  # input_ids, attention_mask
    assert len(batches) == JUDGED and len(read) - len(batches) == 1


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_what_is_kept_is_bounded_and_the_rest_is_computed(room, tmp_path):
    limit = room * ROWS * ROW_BYTES + 17
    model = replace(tiny.model("bert"), kept=Kept(limit))
    _, plain = run(tmp_path / "plain", without(model))
    passes, found = run(tmp_path / "run", model)
    assert model.kept.num_bytes == room * ROWS * ROW_BYTES <= limit
    assert sum(each.untyped_storage().nbytes() for each in model.kept._found.values()) == model.kept.num_bytes
    spared = [0, 2, 2 + 1, 2 + 1]  # the first set is judged three times, the second twice
    assert passes == LEARNED + JUDGED - spared[room]
    assert found == plain


@torch.no_grad()
def test_features_that_are_a_view_are_kept_alone():
    model, hidden = tiny.model("vit"), torch.rand(1, 5, 32)
    batch = {"pixel_values": torch.rand(1, 3, 16, 16)}
    for _ in range(2):
        given = model.kept.recall(model.network, head.attach(model), batch, "cls", lambda: hidden[:, 0])
        assert torch.equal(given, hidden[:, 0])
    assert given.untyped_storage().nbytes() == ROW_BYTES == model.kept.num_bytes
