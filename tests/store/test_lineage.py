"""Nodes, and how they are named, gone back to, branched off, tagged and freed."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import made_runs
import pytest
from made_runs import contents

from lifelong.errors import UserError
from lifelong.store import lineage, moves, node
from lifelong.store.files import Lock, read_json

STAGES = ("sky", "farm", "city")


def ids(folder):
    return {each.place: each.id for each in lineage.history([folder]).nodes}


def chain(run):
    """Stages of a run folder as they stand, without what is set aside."""
    return [each.stage for each in lineage.read_nodes(run) if not each.aside][1:]


# nodes ----------------------------------------------------------------------------------------


def test_a_node_knows_where_it_comes_from(tmp_path):
    run = made_runs.make(tmp_path / "run", STAGES)
    root, sky, farm, city = lineage.read_nodes(run)
    assert root.id == made_runs.BASE[:12] and root.parent is None
    assert [each.parent for each in (sky, farm, city)] == [root.id, sky.id, farm.id]
    assert len({root.id, sky.id, farm.id, city.id}) == 4 and all(len(each.id) == 12 for each in (sky, farm))
    assert farm.data == "2" * 16 and farm.code == "0.1.0+aaaa" and farm.promoted
    assert farm.configuration["stage"]["budget"] == {"epochs": 1.0}
    assert farm.metrics["taught"] == ["sky", "farm"] and farm.metrics["general"] == {"prose": 9.0}
    assert farm.cost["seconds"] == 2.0 and farm.metrics["average"] == 0.5


@pytest.mark.parametrize("change", ["weights", "parent", "data", "configuration", "code"])
def test_the_id_depends_on_all_that_made_the_node(tmp_path, change):
    settings = {
        "weights": {"weights": ("sky", "FARM")}, "parent": {"weights": ("SKY", "farm")},
        "data": {}, "configuration": {"seed": 1}, "code": {},
    }[change]  # fmt: skip
    first = lineage.read_nodes(made_runs.make(tmp_path / "a"))[2]
    again = lineage.read_nodes(made_runs.make(tmp_path / "b"))[2]
    assert first.id == again.id  # the same step from the same model, wherever it lies
    other = made_runs.make(tmp_path / "c", seal=False, **settings)
    config = read_json(other / "config.json")
    if change == "data":
        config["stages"][1]["data"] = "9" * 64
    if change == "code":
        made_runs.write(other / "environment.json", {"code": "0.1.0+bbbb"})
    made_runs.write(other / "config.json", config)
    assert lineage.read_nodes(other)[2].id != first.id


def test_what_was_judged_later_does_not_change_the_id(tmp_path):
    run = made_runs.make(tmp_path / "run")
    before = lineage.read_nodes(run)
    made_runs.write(run / "environment.json", {"code": "newer"})
    evaluation = read_json(before[2].folder / "evaluation.json")
    evaluation["sets"].append(evaluation["sets"][0] | {"name": "city", "task": 2, "value": 0.25})
    made_runs.write(before[2].folder / "evaluation.json", evaluation)
    node.seal(run, before[2].folder)
    after = lineage.read_nodes(run)[2]
    assert (after.id, after.code, after.time) == (before[2].id, before[2].code, before[2].time)
    assert after.metrics["tasks"]["city"] == 0.25 and after.metrics["average"] == before[2].metrics["average"]


def test_a_run_of_an_older_version_is_read(tmp_path):
    """Without node.json the nodes are those that would have been written."""
    sealed, bare = made_runs.make(tmp_path / "a", STAGES), made_runs.make(tmp_path / "b", STAGES, seal=False)
    assert not list(bare.rglob("node.json"))
    assert [each.id for each in lineage.read_nodes(bare)] == [each.id for each in lineage.read_nodes(sealed)]


def test_half_a_stage_is_not_seen(tmp_path):
    run = made_runs.make(tmp_path / "run", STAGES, seal=False)
    (run / "stages/003-city/evaluation.json").unlink()
    assert chain(run) == ["sky", "farm"]
    (run / "stages/002-farm/checkpoint").rename(run / "stages/002-farm/.checkpoint.tmp")
    assert chain(run) == ["sky"]


def test_a_guard_turns_an_update_down(tmp_path):
    run = made_runs.make(tmp_path / "run")
    made_runs.write(run / "stages/002-farm/guard.json", {"promoted": False})
    assert [each.promoted for each in lineage.read_nodes(run)] == [True, True, False]


# names ----------------------------------------------------------------------------------------


def test_a_node_has_four_kinds_of_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = made_runs.make(tmp_path / "runs/prod", STAGES)
    farm = lineage.read_nodes(run)[2]
    moves.tag(farm, "v1", lineage.history())
    for name in (farm.id, farm.id[:4], "v1", "runs/prod:farm"):
        assert lineage.find(name).id == farm.id
    assert lineage.find("runs/prod").stage == "city"
    assert lineage.find("runs/prod:untrained").row == 0


def test_names_that_lead_nowhere(tmp_path):
    made_runs.make(tmp_path / "runs/prod", STAGES)
    (tmp_path / "empty").mkdir()
    for name, folder, words in (
        ("ffff0000", "runs", "no node or tag `ffff0000`"),
        ("abab", "nowhere", "no folder"),
        ("abab", "empty", "no run folder at or below"),
        ("ab", "runs", "too short"),
        (f"{tmp_path}/runs/prod:frm", "runs", "no finished stage `frm`. Did you mean `farm`?"),
        (f"{tmp_path}/nowhere:farm", "runs", "is no run folder"),
        (f"{tmp_path}/runs", "runs", "is no run folder"),
    ):
        with pytest.raises(UserError, match=words.replace("(", "\\(")):
            lineage.find(name, tmp_path / folder)


def test_an_ambiguous_beginning_is_refused(tmp_path, monkeypatch):
    run = made_runs.make(tmp_path / "runs/prod", STAGES)
    for row, id in ((1, "12ab34567890"), (2, "12ab99999999")):
        file = run / f"stages/{row:03d}-{STAGES[row - 1]}/node.json"
        made_runs.write(file, read_json(file) | {"id": id})
    with pytest.raises(UserError, match=r"begins 2 ids: 12ab34567890 \(.*:sky\); 12ab99999999 \(.*:farm\)"):
        lineage.find("12ab", tmp_path / "runs")
    assert lineage.find("12ab9", tmp_path / "runs").stage == "farm"


def test_a_node_of_two_runs_must_be_named_by_its_folder(tmp_path):
    run = made_runs.make(tmp_path / "runs/prod", STAGES)
    farm = lineage.read_nodes(run)[2]
    moves.branch(farm, tmp_path / "runs/other")
    assert lineage.find(farm.id, tmp_path / "runs").id == farm.id
    with pytest.raises(UserError, match="lies in several run folders"):
        lineage.find(farm.id, tmp_path / "runs", alone=True)


@pytest.mark.parametrize("damage", ["{", "[]", '{"id": "x"}'])
def test_a_broken_folder_is_named(tmp_path, damage):
    run = made_runs.make(tmp_path / "run")
    (run / "stages/001-sky/node.json").write_text(damage)
    with pytest.raises(UserError, match="001-sky.* is damaged"):
        lineage.history([run])


# back -----------------------------------------------------------------------------------------


def rows(run):
    return [json.loads(line)["stage"] + 1 for line in (run / "log.jsonl").read_text().splitlines()]


def test_back_and_forth_loses_nothing(tmp_path):
    run = made_runs.make(tmp_path / "run", STAGES)
    made_runs.write(run / "summary.json", {"finished": True})
    root, sky, farm, city = lineage.read_nodes(run)
    before = contents(run)
    assert [each.id for each in moves.revert(sky)] == [farm.id, city.id]
    assert chain(run) == ["sky"] and rows(run) == [1, 1] and rows(run / "aside/001") == [2, 2, 3, 3]
    assert not (run / "summary.json").exists()
    assert {each.id for each in lineage.read_nodes(run)} == {root.id, sky.id, farm.id, city.id}
    assert moves.revert(sky) == []  # it is there already
    back = next(each for each in lineage.read_nodes(run) if each.id == farm.id)
    assert back.aside and moves.revert(back) == []
    assert chain(run) == ["sky", "farm"] and rows(run) == [1, 1, 2, 2]
    moves.revert(next(each for each in lineage.read_nodes(run) if each.id == city.id))
    assert chain(run) == ["sky", "farm", "city"] and rows(run) == [1, 1, 2, 2, 3, 3]
    after = contents(run)
    assert not (run / "aside").exists() or not lineage.aside_folders(run)
    assert {k: v for k, v in after.items() if k != "summary.json"} == {
        k: v for k, v in before.items() if k != "summary.json"
    }


def test_a_stage_in_the_making_is_set_aside_too(tmp_path):
    run = made_runs.make(tmp_path / "run", STAGES)
    (run / "checkpoints/004-000000010").mkdir(parents=True)
    made_runs.write(run / "checkpoints/004-000000010/state.json", {})
    moves.revert(lineage.read_nodes(run)[3])
    assert chain(run) == list(STAGES) and not (run / "checkpoints").exists()
    assert (run / "aside/001/checkpoints/004-000000010/state.json").exists()


@contextmanager
def killed_at(monkeypatch, moment):
    """What is done inside ends before its move of that number, counted from 1."""
    calls, real = [], os.replace

    def replace(source, target):
        calls.append(source)
        if len(calls) == moment:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace)
        yield


@pytest.mark.parametrize("moment", range(1, 6))
def test_killed_on_the_way_back(tmp_path, monkeypatch, moment):
    """After any move the run ends at some stage, no node is lost, and the same revert finishes."""
    run = made_runs.make(tmp_path / "run", STAGES)
    root, sky, *others = lineage.read_nodes(run)
    every = set(ids(run).values())
    with killed_at(monkeypatch, moment):
        moves.revert(sky)
    assert chain(run) == list(STAGES)[: len(chain(run))] and set(ids(run).values()) == every
    moves.revert(sky)
    assert chain(run) == ["sky"] and set(ids(run).values()) == every


@pytest.mark.parametrize("moment", range(1, 8))
def test_killed_on_the_way_forth(tmp_path, monkeypatch, moment):
    """Two stages come back, one goes: whenever it is killed, the configuration names what is there."""
    run = made_runs.make(tmp_path / "run", STAGES)
    city = lineage.read_nodes(run)[3]
    moves.revert(lineage.read_nodes(run)[1])
    made_runs.write(run / "config.json", made_runs.config(("sky", "sea")))
    made_runs.add_stage(run, 2, "sea", ("sky", "sea"), "sea")
    node.seal(run, run / "stages/002-sea")
    every = set(ids(run).values())
    aim = next(each for each in lineage.read_nodes(run) if each.id == city.id)
    with killed_at(monkeypatch, moment):
        moves.revert(aim)
    named = [each["name"] for each in read_json(run / "config.json")["stages"]]
    assert chain(run) == named[: len(chain(run))] and set(ids(run).values()) == every
    moves.revert(next(each for each in lineage.read_nodes(run) if each.id == city.id))
    assert chain(run) == list(STAGES) and set(ids(run).values()) == every


def test_a_run_that_is_being_written_is_left_alone(tmp_path):
    run = made_runs.make(tmp_path / "run", STAGES)
    before, lock = contents(run), Lock(run)
    with pytest.raises(UserError, match="in use by process"):
        moves.revert(lineage.read_nodes(run)[1])
    lock.release()
    assert contents(run) == before
    assert len(lineage.read_nodes(run)) == 4  # readers need no lock


# branch ---------------------------------------------------------------------------------------


def test_a_branch_shares_its_files(tmp_path):
    run = made_runs.make(tmp_path / "run", STAGES)
    farm = lineage.read_nodes(run)[2]
    other = moves.branch(farm, tmp_path / "other")
    assert [each.id for each in lineage.read_nodes(other)] == [each.id for each in lineage.read_nodes(run)][
        :3
    ]
    assert rows(other) == [1, 1, 2, 2]
    assert [each["name"] for each in read_json(other / "config.json")["stages"]] == [
        "sky",
        "farm",
    ]
    weights = "stages/002-farm/checkpoint/state.safetensors"
    assert (other / weights).samefile(run / weights)
    node.seal(other, other / "stages/002-farm")  # written anew, not in place
    made_runs.write(run / "stages/002-farm/checkpoint/more.json", {})
    assert not (other / "stages/002-farm/checkpoint/more.json").exists()
    assert not (other / "stages/002-farm/node.json").samefile(run / "stages/002-farm/node.json")


def test_a_branch_of_what_was_set_aside(tmp_path):
    run = made_runs.make(tmp_path / "run", STAGES)
    root, sky, farm, city = lineage.read_nodes(run)
    moves.revert(sky)
    gone = next(each for each in lineage.read_nodes(run) if each.id == city.id)
    other = moves.branch(gone, tmp_path / "other")
    assert chain(other) == list(STAGES) and rows(other) == [1, 1, 2, 2, 3, 3] and chain(run) == ["sky"]


def test_a_branch_without_links_is_a_copy(tmp_path, monkeypatch):
    run = made_runs.make(tmp_path / "run", STAGES)

    def no_link(*names):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    other = moves.branch(lineage.read_nodes(run)[3], tmp_path / "other")
    weights = "stages/002-farm/checkpoint/state.safetensors"
    assert not (other / weights).samefile(run / weights)
    assert (other / weights).read_bytes() == (run / weights).read_bytes()
    assert [each.id for each in lineage.read_nodes(other)] == [each.id for each in lineage.read_nodes(run)]


def test_where_no_branch_can_grow(tmp_path):
    run = made_runs.make(tmp_path / "run")
    root, sky, _ = lineage.read_nodes(run)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("precious")
    before = contents(tmp_path)
    for each, target in ((sky, tmp_path / "full"), (sky, run), (root, tmp_path / "fresh")):
        with pytest.raises(UserError, match="no empty folder|untrained model"):
            moves.branch(each, target)
    assert contents(tmp_path) == before


# tags and freeing -----------------------------------------------------------------------------


def test_tags(tmp_path):
    run = made_runs.make(tmp_path / "run", STAGES)
    nodes = lineage.read_nodes(run)
    moves.tag(nodes[1], "v1", lineage.history([run]))
    moves.tag(nodes[1], "v1", lineage.history([run]))  # again: nothing to do
    with pytest.raises(UserError, match="already"):
        moves.tag(nodes[2], "v1", lineage.history([run]))
    for name in ("ab12", "a b", "../x", "", "-x", "a/b", "a:b"):
        with pytest.raises(UserError, match="a tag is made of"):
            moves.tag(nodes[2], name, lineage.history([run]))
    with pytest.raises(UserError, match="no tag `v2`.*Did you mean `v1`"):
        moves.untag("v2", lineage.history([run]))
    assert moves.untag("v1", lineage.history([run])) == nodes[1].id
    assert lineage.history([run]).tags == ()


def test_a_tag_of_two_nodes_is_ambiguous(tmp_path):
    for name in ("a", "b"):
        run = made_runs.make(tmp_path / name, weights=(name, name))
        moves.tag(lineage.read_nodes(run)[1], "v1", lineage.history([run]))
    assert lineage.find("v1", tmp_path / "a").run == tmp_path / "a"
    with pytest.raises(UserError, match="tag `v1` names several nodes"):
        lineage.find("v1", tmp_path)
    with pytest.raises(UserError, match="tag `v1` names several nodes"):
        moves.untag("v1", lineage.history([tmp_path]))
    assert len(lineage.history([tmp_path]).tags) == 2


def test_only_what_nothing_reaches_is_freed(tmp_path):
    run = made_runs.make(tmp_path / "run", (*STAGES, "sea"))
    root, sky, farm, city, sea = lineage.read_nodes(run)
    moves.revert(sky)
    moves.tag(farm, "keep", lineage.history([run]))
    before = contents(run)
    known = lineage.history([tmp_path])
    told = moves.garbage(known)
    assert contents(run) == before  # nothing happened yet
    assert [each.id for each in told.nodes] == [city.id, sea.id]
    expected = sum(len(v) for k, v in before.items() if "003-city" in k or "004-sea" in k)
    assert told.num_bytes == expected > 600
    assert moves.free(known).num_bytes == expected
    assert {each.id for each in lineage.read_nodes(run)} == {root.id, sky.id, farm.id}
    moves.untag("keep", lineage.history([run]))
    assert [each.id for each in moves.free(lineage.history([tmp_path])).nodes] == [farm.id]
    assert not (run / "aside").exists() and chain(run) == ["sky"]
    assert moves.free(lineage.history([tmp_path])).folders == []


def test_shared_files_give_nothing_back(tmp_path):
    run = made_runs.make(tmp_path / "run", STAGES)
    root, sky, farm, city = lineage.read_nodes(run)
    moves.branch(farm, tmp_path / "other")
    moves.revert(sky)
    told = moves.garbage(lineage.history([run]))  # the branch is not looked at
    assert [each.id for each in told.nodes] == [farm.id, city.id]
    alone = moves.garbage(lineage.history([tmp_path]))
    assert [each.id for each in alone.nodes] == [city.id]  # the branch's head reaches farm
    assert told.num_bytes == alone.num_bytes > 0
    moves.free(lineage.history([run]))
    assert chain(tmp_path / "other") == ["sky", "farm"]


def test_nothing_is_freed_while_a_run_is_written(tmp_path):
    run = made_runs.make(tmp_path / "run", STAGES)
    moves.revert(lineage.read_nodes(run)[1])
    before, lock = contents(run), Lock(run)
    with pytest.raises(UserError, match="in use by process"):
        moves.free(lineage.history([run]))
    lock.release()
    assert contents(run) == before


# speed ----------------------------------------------------------------------------------------


def test_the_log_of_a_thousand_nodes_opens_at_once(tmp_path):
    """0.5 s is promised (see bench/startup.py); a busy machine gets more here."""
    names = [f"s{i}" for i in range(49)]
    for number in range(20):
        made_runs.make(tmp_path / f"run{number}", names, weights=[f"{number} {name}" for name in names])
    code = (
        "import sys, atexit; sys.argv = ['lifelong', 'log', sys.argv[1]]\n"
        "heavy = lambda: [each for each in ('torch', 'numpy') if each in sys.modules]\n"
        "atexit.register(lambda: sys.stderr.write(str(heavy())))\n"
        "from lifelong.cli.main import main; main()"
    )
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
        seconds.append(time.perf_counter() - begun)
    assert done.returncode == 0 and done.stderr == "[]"
    assert sum("* " in line for line in done.stdout.splitlines()) == 1 + 20 * 49
    assert min(seconds) < 2.0, seconds
