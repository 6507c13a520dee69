"""Where weights moved, against the difference of the models that the stages leave."""

import pytest
import tiny
import tiny_stream
import torch
from transformers.utils import logging

from lifelong import launch
from lifelong.core.composition import Methods
from lifelong.errors import UserError
from lifelong.models import movement, pretrained, restore
from lifelong.numerics.spectrum import effective_rank
from lifelong.store import lineage
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora
from lifelong.tuners.o_lora import OLora
from lifelong.tuners.sema import Sema

TUNERS = {"lora": Lora(rank=2), "o_lora": OLora(rank=2), "full": Full(targets=("mlp", "norm"))}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of two stages for each tuner."""
    place = tmp_path_factory.mktemp("movement")
    logging.disable_progress_bar()
    model = tiny.model("llama")
    model.network.save_pretrained(place / "base")
    model.processor.save_pretrained(place / "base")
    for name, tuner in {**TUNERS, "sema": Sema()}.items():
        base = pretrained.load(str(place / "base"))
        launch.run(base, tiny_stream.stream(general=False), Methods(tuner=tuner, name=name),
                   output=place / name)  # fmt: skip
    return place


def plain(node):
    """Weights of the model that a node serves."""
    if not node.row:
        return dict(pretrained.load(str(node.run.parent / "base")).network.named_parameters())
    return dict(restore.load(node.run, node.stage).network.named_parameters())


@pytest.mark.parametrize("rows", [(0, 1), (1, 2), (0, 2), (2, 1)])
@pytest.mark.parametrize("name", TUNERS)
def test_figures_are_those_of_the_difference(runs, name, rows):
    nodes = lineage.read_nodes(runs / name)
    before, after = nodes[rows[0]], nodes[rows[1]]
    old, new, base = plain(before), plain(after), plain(nodes[0])
    found = movement.movement(before, after)
    changed = {key for key in new if not torch.equal(new[key], old[key])}
    assert changed and {p["name"] for p in found["parameters"] if p["norm"]} == changed
    for each in found["parameters"]:
        change = (new[each["name"]] - old[each["name"]]).detach()
        assert each["norm"] == pytest.approx(float(change.norm()), rel=1e-4)
        assert each["relative"] == pytest.approx(
            each["norm"] / float(base[each["name"]].detach().norm()), rel=1e-4
        )
        if change.dim() == 2 and each["norm"]:
            sizes = torch.linalg.svdvals(change.double())
            kept = sizes * (sizes > 1e-5 * sizes.max())
            assert each["effective_rank"] == pytest.approx(effective_rank(kept), rel=0.02)
    share = sum(int((new[key] != old[key]).sum()) for key in new) / sum(v.numel() for v in new.values())
    assert found["total"]["moved"] == pytest.approx(share, abs=2e-3)
    norm = sum(float((new[k] - old[k]).detach().norm()) ** 2 for k in new) ** 0.5
    assert found["total"]["norm"] == pytest.approx(norm, rel=1e-4)
    layers = {each["name"]: each for each in found["layers"]}
    inside = [p for p in found["parameters"] if p["name"].startswith("model.layers.1.")]
    assert layers["model.layers.1"]["norm"] == pytest.approx(sum(p["norm"] ** 2 for p in inside) ** 0.5)


def test_a_pair_per_stage_cancels_exactly(runs):
    """Pairs of earlier stages are in both, so the difference has the rank of one pair."""
    nodes = lineage.read_nodes(runs / "o_lora")
    found = movement.movement(nodes[1], nodes[2])
    assert all(each["effective_rank"] <= 2.001 for each in found["parameters"])
    both = movement.movement(nodes[0], nodes[2])
    assert any(each["effective_rank"] > 2.001 for each in both["parameters"])  # control


def test_the_same_node_has_not_moved(runs):
    for name in TUNERS:
        node = lineage.read_nodes(runs / name)[2]
        found = movement.movement(node, node)
        assert found["total"]["norm"] == 0 and found["total"]["moved"] == 0


def test_different_tuners_compare(runs):
    lora, full = (lineage.read_nodes(runs / name)[1] for name in ("lora", "full"))
    new, old = plain(full), plain(lora)
    norm = sum(float((new[k] - old[k]).detach().norm()) ** 2 for k in new) ** 0.5
    assert movement.movement(lora, full)["total"]["norm"] == pytest.approx(norm, rel=1e-4)


def test_a_routed_update_is_refused(runs):
    nodes = lineage.read_nodes(runs / "sema")
    with pytest.raises(UserError, match="routed.*--weights"):
        movement.movement(nodes[0], nodes[1])


def test_other_base_weights_are_refused(runs, tmp_path):
    model = tiny.model("llama", seed=1)
    model.network.save_pretrained(tmp_path / "base")
    model.processor.save_pretrained(tmp_path / "base")
    launch.run(pretrained.load(str(tmp_path / "base")), tiny_stream.stream(general=False, stages=("sky",)),
               Methods(tuner=Lora(rank=2), name="lora"), output=tmp_path / "run")  # fmt: skip
    mine, theirs = lineage.read_nodes(runs / "lora")[1], lineage.read_nodes(tmp_path / "run")[1]
    with pytest.raises(UserError, match="different base models"):
        movement.movement(mine, theirs)


def test_effective_rank():
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3.0)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(3)) == 0.0
