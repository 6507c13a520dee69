"""A repair: the largest share of an update that keeps every budget, found again after a kill."""

import gc
import os
import shutil
import signal
import weakref
from dataclasses import replace

import pytest
import tiny
import torch
from guarding import guard, stream, train

from lifelong import launch
from lifelong.core import guard as guarding
from lifelong.core import repair as repairing
from lifelong.core.repair import largest
from lifelong.errors import OverBudget, UserError
from lifelong.numerics.interpolation import interpolate
from lifelong.penalties.ewc import Ewc
from lifelong.replay.reservoir import Reservoir
from lifelong.store import lineage, moves
from lifelong.store.checkpoint import write_checkpoint
from lifelong.store.files import read_json
from lifelong.store.shards import Shards
from lifelong.tuners.eva import Eva
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora
from lifelong.tuners.migu_lora import MiguLora
from lifelong.tuners.o_lora import OLora

REPAIR = dict(otherwise="repair")
METHODS = {
    "full": [Full(), Ewc(strength=1.0), Reservoir(size=4, fraction=0.1)],
    "lora": [Lora(rank=8), Ewc(strength=1.0)],
    "o_lora": [OLora(rank=8)],
}
OTHERS = {"eva": [Eva(rank=8)], "migu_lora": [MiguLora(rank=8)]}  # as lora
RATES = {Full: 3e-3, Lora: 3e-3}


def rate(methods):
    return RATES.get(type(methods[0]), 5e-3)


def weights(folder, row="002-farm"):
    return (folder / "stages" / row / "checkpoint" / "state.safetensors").read_bytes()


def told(folder, name="guard.json"):
    return read_json(folder / "stages" / "002-farm" / name)


def accuracy(folder, row, name):
    sets = read_json(folder / "stages" / row / "evaluation.json")["sets"]
    return next(each["value"] for each in sets if each["name"] == name)


# the search -----------------------------------------------------------------------------------


def test_bisection_ends_at_the_last_share_that_kept():
    tried = []

    def keeps(shares):
        tried.append(shares[0])
        return shares[0] <= 0.3

    assert largest(keeps, 1, 6) == (0.296875,)
    assert len(tried) == 6 and 1.0 not in tried and 0.0 not in tried


def test_where_nothing_keeps_the_share_is_zero():
    assert largest(lambda shares: False, 1, 4) == (0.0,)


def test_a_share_counts_only_where_it_was_tried():
    """Not monotone: 0.5 keeps, 0.75 and 0.625 do not, and neither does all below 0.4."""
    assert largest(lambda shares: 0.4 < shares[0] < 0.6, 1, 3) == (0.5,)


def test_groups_keep_at_least_the_common_share():
    """Only the first group costs anything: the others keep all."""
    found = largest(lambda shares: shares[0] <= 0.3, 3, 4)
    assert found == (0.25, 1.0, 1.0)
    both = largest(lambda shares: shares[0] + shares[1] <= 0.9, 2, 5)
    assert both[0] >= 0.4 and both[1] >= 0.4 and 0.85 <= sum(both) <= 0.9


# a stream that breaks its budget --------------------------------------------------------------


@pytest.fixture(scope="module", params=METHODS)
def whole(request, tmp_path_factory):
    """(name, a run that was repaired, one that was stopped)."""
    folder, notices = tmp_path_factory.mktemp(request.param), []
    settings = {"learning_rate": rate(METHODS[request.param])}
    run = train(folder / "run", guard(**REPAIR), METHODS[request.param], notices, **settings)
    with pytest.raises(OverBudget):
        train(folder / "stopped", guard(), METHODS[request.param], **settings)
    return request.param, run, folder / "stopped", notices, settings


def test_all_budgets_hold_and_the_new_task_is_better_than_before(whole):
    name, run, stopped, notices, _ = whole
    found = told(run.folder)
    (share,) = found["repair"]["shares"]
    assert 0 < share < 1 and found["promoted"]
    assert all(each["verdict"] == "kept" for each in found["sets"])
    assert accuracy(run.folder, "002-farm", "farm") > accuracy(run.folder, "001-sky", "farm") + 0.05
    (new,) = found["repair"]["new"]
    assert new["value"] == accuracy(stopped, "002-farm", "farm")  # the whole update
    assert new["after"] == accuracy(run.folder, "002-farm", "farm")
    (refused,) = found["repair"]["refused"]
    assert refused["after"] == pytest.approx(accuracy(stopped, "002-farm", "sky"), abs=0.01)
    assert len(notices) == len(found["repair"]["trials"]) == 6
    assert found["repair"]["num_sets_judged"] == 1 + 6 + 2
    assert not list((run.folder / "checkpoints").glob("*"))


def test_the_share_is_that_of_the_weights(whole):
    """Independent of the search: the weights kept are where the share says, between the two ends."""
    name, run, stopped, _, _ = whole
    if name == "o_lora":
        return  # a pair per stage: see test_a_share_of_a_pair
    share = told(run.folder)["repair"]["shares"][0]
    before, after, kept = (
        Shards(place / "checkpoint", "params/")
        for place in (
            run.folder / "stages/001-sky",
            stopped / "stages/002-farm",
            run.folder / "stages/002-farm",
        )
    )
    moved = 0
    for key in before:
        torch.testing.assert_close(kept[key], torch.lerp(before[key], after[key], share), rtol=0, atol=1e-7)
        moved += not torch.equal(before[key], kept[key])
    assert moved > 10


class Killed(Exception):
    pass


@pytest.mark.parametrize("place", ["step 1", "trial 4", "interrupted"])
def test_killed_anywhere_it_ends_at_the_same_bits(whole, place, tmp_path):
    """In the second stage: before its first timed checkpoint, in the midst of the search, or by Ctrl-C."""
    name, run, _, _, settings = whole
    if name != "full" and place == "interrupted":
        return  # another way into the same checkpoint
    heard = []

    def listen(event):
        heard.extend([event.kind] if event.stage == 2 else [])
        steps, trials = heard.count("step"), heard.count("notice")
        if (place == "step 1" and steps == 1) or f"trial {trials}" == place:
            raise Killed
        if place == "interrupted" and event.kind == "notice" and trials == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises((Killed, UserError)) as stopped:
        train(tmp_path / "run", guard(**REPAIR), METHODS[name], listen=listen, **settings)
    assert (place == "interrupted") == ("same command goes on" in str(stopped.value))
    assert not (tmp_path / "run/stages/002-farm").exists()
    trained = []
    again = train(
        tmp_path / "run", guard(**REPAIR), METHODS[name],
        listen=lambda event: trained.append(1) if event.kind == "step" else None, **settings,
    )  # fmt: skip
    assert bool(trained) == (place == "step 1")  # else nothing is trained again
    for row in ("001-sky", "002-farm"):
        assert weights(again.folder, row) == weights(run.folder, row)
    ours, theirs = told(again.folder), told(run.folder)
    for each in (ours, theirs):
        del each["repair"]["seconds"]
    assert ours == theirs


def test_a_damaged_end_is_trained_and_repaired_anew(whole, tmp_path):
    name, run, _, _, settings = whole
    shutil.copytree(run.folder, tmp_path / "run")
    file = tmp_path / "run/stages/002-farm/checkpoint/state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    again = train(tmp_path / "run", guard(**REPAIR), METHODS[name], **settings)
    assert weights(again.folder) == weights(run.folder)
    assert told(again.folder)["sets"] == told(run.folder)["sets"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Without a guard."""
    return train(tmp_path_factory.mktemp("plain") / "run", None)


def test_a_budget_that_is_kept_changes_no_bit(plain, tmp_path):
    loose = train(tmp_path / "loose", guard(allowed_drop_fraction=0.9, **REPAIR))
    assert weights(loose.folder) == weights(plain.folder)
    assert told(loose.folder)["promoted"] and told(loose.folder)["repair"] is None


def test_groups_of_layers(tmp_path):
    run = train(tmp_path / "run", guard(layer_groups=2, trials=4, **REPAIR))
    found = told(run.folder)["repair"]
    common = [each for each in found["trials"][:4] if each["broken"] is None]
    share, shares = max(each["shares"][0] for each in common), found["shares"]
    assert all(len(set(each["shares"])) == 1 for each in common)
    assert len(shares) == 2 and all(each >= share for each in shares) and max(shares) > share
    assert told(run.folder)["promoted"]
    assert {"shares": shares, "broken": None} in found["trials"]


def test_no_share_keeps_an_impossible_budget(plain, tmp_path, monkeypatch):
    """Every trial is told to fail: the run stops, with the weights as trained."""
    monkeypatch.setattr(repairing.guard, "holds", lambda entry, guard: False)
    with pytest.raises(OverBudget, match="No share of its update keeps every budget"):
        train(tmp_path / "run", guard(trials=2, **REPAIR))
    assert told(tmp_path / "run")["repair"]["shares"] == [0.0]
    assert weights(tmp_path / "run") == weights(plain.folder)


def test_a_stage_trained_without_a_repair_says_how_to_get_one(tmp_path):
    with pytest.raises(OverBudget):
        train(tmp_path / "run", guard())
    with pytest.raises(OverBudget, match="lifelong revert` and run the same command again"):
        train(tmp_path / "run", guard(**REPAIR))
    moves.revert(lineage.find(f"{tmp_path}/run:sky"))
    assert told(train(tmp_path / "run", guard(**REPAIR)).folder)["repair"]["shares"][0] > 0


@pytest.mark.parametrize("candidates", ["task", "seen"])
def test_a_growing_head_is_moved_with_the_deepest_group(candidates, tmp_path):
    """Labels of both stages compete with `seen`: the rows of the new ones take over the old task."""
    made = replace(stream(guard(**REPAIR, trials=3, layer_groups=2)), candidates=candidates)
    if candidates == "task":
        made = replace(made, guard=guard(**REPAIR, trials=3, allowed_drop_fraction=0.045))
    run = launch.run(tiny.model("bert"), made, [Full()], output=tmp_path / "run")
    found = told(run.folder)
    assert found["promoted"] and found["repair"] and 0 < found["repair"]["shares"][-1] < 1
    head = Shards(run.folder / "stages/002-farm/checkpoint", "params/lifelong_head")
    assert max(value.shape[0] for value in head.values()) == 4


# the line between the ends --------------------------------------------------------------------


def test_share_zero_is_the_weights_before_to_the_bit_and_one_those_after():
    model = tiny.model("llama")
    params = dict(model.network.named_parameters())
    before = {n: p.detach().clone() for n, p in params.items()}
    before["model.norm.weight"][0] = -0.0  # lerp would make it +0.0
    after = {n: p.detach() + torch.randn(p.shape) for n, p in params.items()}
    for share, end in ((0.0, before), (1.0, after)):
        for name, p in params.items():
            p.data.copy_(after[name])
        interpolate(params, before, lambda name, share=share: share)
        for name, p in params.items():
            assert p.detach().numpy().tobytes() == end[name].numpy().tobytes(), name


@pytest.mark.parametrize("methods", (METHODS | OTHERS).values(), ids=METHODS | OTHERS)
def test_at_share_zero_every_answer_is_that_of_before(methods, tmp_path, monkeypatch):
    """A search that tries 0 alone; the guard is shown the answers of both rows."""
    seen, decide = [], guarding.decide

    def look(each, before, after, *settings):
        seen.append((before, after))
        return decide(each, before, after, *settings)

    monkeypatch.setattr(guarding, "decide", look)
    monkeypatch.setattr(repairing, "largest", lambda keeps, num_groups, trials: (keeps((0.0,)) - 1.0,))
    with pytest.raises(OverBudget):
        train(tmp_path / "run", guard(**REPAIR), methods, learning_rate=rate(methods))
    assert told(tmp_path / "run")["repair"]["trials"] == [{"shares": [0.0], "broken": None}]
    (_, whole), (before, after) = seen[0], seen[1]
    assert len(before) == 200 and whole != before  # control: the whole update answers otherwise
    tolerance = 1e-4 if isinstance(methods[0], OLora) else 0  # a pair without effect still rounds
    for left, right in zip(before, after, strict=True):
        assert left.prediction == right.prediction
        assert left.log_likelihood == pytest.approx(right.log_likelihood, abs=tolerance)


def test_ends_are_read_one_tensor_at_a_time(tmp_path):
    """Alive at once: never more than two of 40 tensors of the weights before."""
    names = [f"layer{i}" for i in range(40)]
    write_checkpoint(tmp_path, {f"params/{name}": torch.ones(64, 64) for name in names}, {})
    params = {name: torch.nn.Parameter(torch.zeros(64, 64)) for name in names}
    alive, most = set(), [0]

    class Watched(Shards):
        def __getitem__(self, name):
            value = super().__getitem__(name)
            alive.add(name)
            weakref.finalize(value, alive.discard, name)
            most.append(len(alive))
            return value

    gc.collect()
    interpolate(params, Watched(tmp_path, "params/"), lambda name: 0.25)
    assert max(most) == 2 and len(most) == 41
    assert all(torch.equal(p.detach(), torch.full((64, 64), 0.75)) for p in params.values())
    held = Watched(tmp_path, "params/")
    kept = dict(held)
    assert len(alive) == 40 and len(kept) == 40  # control: a dict of them holds all


def test_a_begun_checkpoint_that_is_damaged_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(repairing, "broken", lambda place: "state.safetensors has another checksum")
    with pytest.raises(UserError, match=r"another checksum\).*trained anew") as said:
        train(tmp_path / "run", guard(**REPAIR))
    assert said.value.status == 2
