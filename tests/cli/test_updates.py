"""A model that is updated every month: extended, compared, turned back, branched; and what is refused."""

import json
import shutil
import time
from pathlib import Path

import made_runs
import process
import pytest
import tiny
import tiny_stream
import yaml
from made_runs import contents
from test_mistakes import refused

from lifelong.store.files import read_json

NAMES = ("sky", "farm", "city")
METHOD = ["o_lora", "orthogonal", "reservoir"]


@pytest.fixture
def months(tmp_path, saved_model, monkeypatch):
    """months(2) writes stream.yaml with the first two stages."""
    monkeypatch.chdir(tmp_path)
    tiny_stream.project(tmp_path, saved_model, names=NAMES, method=METHOD, output="runs/prod")
    content = yaml.safe_load(Path("stream.yaml").read_text())

    def write(count, **changes):
        stages = [each | changes.get(each["name"], {}) for each in content["stages"][:count]]
        Path("stream.yaml").write_text(yaml.safe_dump(content | {"stages": stages}))

    return write


@pytest.fixture(scope="module")
def updated(tmp_path_factory, saved_model):
    """A folder with runs/prod of three stages; tests only read it."""
    from lifelong import launch
    from lifelong.streams import config

    place = tmp_path_factory.mktemp("updated")
    tiny_stream.project(place, saved_model, names=NAMES, method=METHOD)
    launch.run_config(config.read(place / "stream.yaml", [f"output={place / 'runs/prod'}"]), place)
    return place


def nodes(lifelong, *words):
    said = lifelong("log", *words, "--json")
    assert said.status == 0, said
    return {each["stage"] if each["row"] else "untrained": each for each in json.loads(said.out)}


def weights(run):
    return {
        path.parent.parent.name: path.read_bytes()
        for path in run.glob("stages/*/checkpoint/state.safetensors")
    }


def sets(run, row):
    (file,) = run.glob(f"stages/{row:03d}-*/evaluation.json")
    return {each["name"]: each for each in json.loads(file.read_text())["sets"]}


def used(folder):
    """Bytes on the disk; a file with two names counts once."""
    return sum({f.stat().st_ino: f.stat().st_size for f in folder.rglob("*") if f.is_file()}.values())


# extension ------------------------------------------------------------------------------------


def test_a_run_that_was_extended_equals_one_that_was_not(lifelong, months):
    ids = []
    for count in (1, 2, 3):
        months(count)
        said = lifelong("run", "stream.yaml")
        assert said.status == 0, said.err
        ids.append({name: each["id"] for name, each in nodes(lifelong).items()})
    assert lifelong("run", "stream.yaml", "output=whole/run").status == 0
    assert weights(Path("runs/prod")) == weights(Path("whole/run")) and len(weights(Path("whole/run"))) == 3
    for row in range(4):
        mine, theirs = sets(Path("runs/prod"), row), sets(Path("whole/run"), row)
        assert mine == {name: theirs[name] for name in mine}
        missing = {"city"} if row == 1 else set()  # the model of the first month never met it
        assert set(theirs) - set(mine) == missing
    matrix = json.loads(Path("runs/prod/summary.json").read_text())["matrix"]
    assert matrix["values"][0][2] is None and None not in matrix["untrained"]
    assert None not in matrix["values"][1] and None not in matrix["values"][2]
    for earlier, later in zip(ids, ids[1:], strict=False):
        assert earlier.items() <= later.items()  # what was measured later changes no node
    whole = {name: each["id"] for name, each in nodes(lifelong, "whole").items()}
    assert whole == ids[-1]


def test_the_report_shows_what_was_not_measured(lifelong, months):
    for count in (1, 2, 3):
        months(count)
        assert lifelong("run", "stream.yaml").status == 0
    assert lifelong("report", "runs/prod").status == 0


def test_general_sets_may_come_later(lifelong, months):
    months(1)
    assert lifelong("run", "stream.yaml").status == 0
    months(2)
    tiny_stream.write_rows(Path("more.jsonl"), [{"text": "rain on the fern"}, {"text": "a tram"}])
    general = "general=[{name: prose, data: prose.jsonl}, {name: more, data: more.jsonl}]"
    assert lifelong("run", "stream.yaml", general).status == 0
    (prose, more) = json.loads(Path("runs/prod/summary.json").read_text())["matrix"]["general"]
    assert more["name"] == "more" and None not in more["values"] and len(prose["values"]) == 3
    before = contents(Path("runs/prod"))
    refused(lifelong("run", "stream.yaml"), "differs in general")
    assert contents(Path("runs/prod")) == before


def test_what_has_begun_may_not_change(lifelong, months):
    months(2)
    assert lifelong("run", "stream.yaml").status == 0
    before = contents(Path("runs/prod"))
    months(3, farm={"epochs": 2})
    words = ("another configuration", "stages.1.budget.epochs", "up to stage farm", "lifelong revert")
    refused(lifelong("run", "stream.yaml"), *words)
    months(3)
    refused(lifelong("run", "stream.yaml", "seed=1"), "differs in seed")
    months(1)
    refused(lifelong("run", "stream.yaml"), "differs in stages")
    with open("farm.train.jsonl", "a") as file:
        file.write('{"text": "hen", "label": "farm0"}\n')
    months(3)
    refused(lifelong("run", "stream.yaml"), "stages.1.data")
    assert contents(Path("runs/prod")) == before


def test_files_may_move_and_what_has_not_begun_may_change(lifelong, months):
    months(2, farm={"learning_rate": 1e30, "steps": 1, "eval": "sky.test.jsonl", "labels": ["sky0", "sky1",
                    "farm0", "farm1"]})  # fmt: skip
    assert lifelong("run", "stream.yaml").status == 2  # it diverged
    shutil.move("sky.train.jsonl", "old.jsonl")
    months(3, sky={"train": "old.jsonl"}, farm={"steps": 2})
    Path("runs/prod/checkpoints").exists() and shutil.rmtree("runs/prod/checkpoints")
    shutil.rmtree("runs/prod/stages/002-farm", ignore_errors=True)
    said = lifelong("run", "stream.yaml")
    assert said.status == 0, said.err
    matrix = json.loads(Path("runs/prod/summary.json").read_text())["matrix"]
    assert matrix["columns"] == list(NAMES)
    assert matrix["values"][0][1] is not None  # on the new rows, measured again before farm began


def test_before_anything_has_begun_all_may_change(lifelong, months):
    months(2)
    assert lifelong("run", "stream.yaml", "stages.sky.learning_rate=1e30", "stages.sky.steps=1").status == 2
    shutil.rmtree("runs/prod/stages/001-sky", ignore_errors=True)
    kept = Path("runs/prod/stages/000-untrained/evaluation.json")
    stamp = kept.stat().st_mtime_ns
    assert lifelong("run", "stream.yaml", "seed=3", "stages.sky.learning_rate=1e30",
                    "stages.sky.steps=1").status == 2  # fmt: skip
    shutil.rmtree("runs/prod/stages/001-sky", ignore_errors=True)
    assert kept.stat().st_mtime_ns == stamp  # seed and learning rate are nothing to the untrained model
    assert lifelong("run", "stream.yaml", "general=[]", "method=sequential").status == 0
    assert "prose" not in sets(Path("runs/prod"), 0)


def test_a_base_that_moved(lifelong, months, saved_model):
    shutil.copytree(saved_model, "base")
    months(1)
    assert lifelong("run", "stream.yaml", "model=./base").status == 0
    shutil.move("base", "elsewhere")
    before = contents(Path("runs/prod"))
    months(2)
    refused(lifelong("run", "stream.yaml", "model=./base"), "no folder ./base")
    diff = ("diff", "runs/prod:untrained", "runs/prod:sky", "--weights")
    refused(lifelong(*diff), "no folder ./base")
    tiny.save(tiny.model("llama", seed=1), Path("base"))
    refused(lifelong("run", "stream.yaml", "model=./base"), "another configuration", "model.fingerprint")
    refused(lifelong(*diff), "is not the model that", "another fingerprint")
    assert contents(Path("runs/prod")) == before
    assert lifelong("run", "stream.yaml", "model=./elsewhere").status == 0  # the same weights
    assert lifelong(*diff).status == 0


def test_models_per_task_are_extended_too(lifelong, months):
    months(2)
    assert lifelong("run", "stream.yaml", "method=per_task").status == 0
    before = weights(Path("runs/prod/per_task/sky"))
    months(3)
    assert lifelong("run", "stream.yaml", "method=per_task").status == 0
    assert weights(Path("runs/prod/per_task/sky")) == before
    assert len(json.loads(Path("runs/prod/summary.json").read_text())["matrix"]["columns"]) == 3
    assert set(nodes(lifelong)) == {"untrained", *NAMES}
    refused(lifelong("run", "stream.yaml", "method=per_task", "seed=1"), "differs in seed")


# verbs ----------------------------------------------------------------------------------------


def test_log_and_show(lifelong, updated, monkeypatch):
    monkeypatch.chdir(updated)
    said = lifelong("log")
    lines = said.out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("* ") and "untrained" in lines[0]
    assert lines[3].endswith("<- runs/prod") and " city " in lines[3]
    found = nodes(lifelong)
    said = lifelong("show", found["farm"]["id"][:6])
    every = [found[name]["id"] for name in NAMES]
    for word in (*every, "runs/prod:farm", "o_lora {rank: 8", "(not taught yet)", found["farm"]["weights"]):
        assert word in said.out, word
    assert json.loads(lifelong("show", "runs/prod:farm", "--json").out)["id"] == found["farm"]["id"]


def test_a_run_that_has_just_begun(lifelong, tmp_path):
    made_runs.write(tmp_path / "runs/prod/config.json", made_runs.config(NAMES))
    (tmp_path / "runs/prod/stages/000-untrained").mkdir(parents=True)
    assert lifelong("log", tmp_path / "runs").out == "no stage has ended yet\n"
    assert lifelong("log", tmp_path / "runs", "--json").out == "[]\n"
    refused(lifelong("show", f"{tmp_path}/runs/prod"), "holds no finished stage yet")
    assert lifelong("gc", tmp_path / "runs").status == 0


def test_show_of_the_base(lifelong, updated, monkeypatch):
    monkeypatch.chdir(updated)
    said = lifelong("show", "runs/prod:untrained")
    assert said.status == 0 and "fingerprint" in said.out and "parent    -" in said.out


def test_diff_agrees_with_the_evaluations(lifelong, updated, monkeypatch):
    monkeypatch.chdir(updated)
    said = lifelong("diff", "runs/prod:untrained", "runs/prod:city", "--json", "--examples", "99")
    found = {each["name"]: each for each in json.loads(said.out)["sets"]}
    before, after = sets(Path("runs/prod"), 0), sets(Path("runs/prod"), 3)
    assert list(found) == [*NAMES, "prose"]
    for name, each in found.items():
        assert each["before"] == pytest.approx(before[name]["value"])
        assert each["after"] == pytest.approx(after[name]["value"])
        assert len(each["learned"]) == each["better"] and len(each["lost"]) == each["worse"]
    assert found["prose"]["learned"][0]["input"]
    said = lifelong("diff", "runs/prod:untrained", "runs/prod", "--weights")
    assert (
        "model.layers.1" in said.out
        and "interval: paired, over rows" in said.out
        and "learned, prose row" in said.out
    )


@pytest.mark.parametrize(
    "words", [("log",), ("show", "runs/prod:sky"), ("diff", "runs/prod:sky", "runs/prod")]
)
def test_reading_needs_no_torch(updated, words):
    import subprocess
    import sys

    code = (
        "import sys; sys.argv = ['lifelong', *sys.argv[1:]]\nimport atexit\n"
        "atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n"
        "from lifelong.cli.main import main; main()"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=updated, capture_output=True, text=True,
                          env={"PYTHONPATH": root, "PATH": ""})  # fmt: skip
    assert done.returncode == 0 and done.stderr == "False" and done.stdout


def test_turned_back_and_trained_again(lifelong, months):
    """A revert and the same command give the same node; another setting gives a side branch."""
    months(3)
    assert lifelong("run", "stream.yaml").status == 0
    before, first = weights(Path("runs/prod")), nodes(lifelong)
    assert lifelong("tag", "runs/prod:sky", "v1").out.startswith("tag v1 names")
    said = lifelong("revert", "v1")
    assert (
        said.status == 0 and "set aside: farm" in said.out and list(weights(Path("runs/prod"))) == ["001-sky"]
    )
    assert lifelong("run", "stream.yaml").status == 0
    assert weights(Path("runs/prod")) == before
    assert {k: v["id"] for k, v in nodes(lifelong).items()} == {k: v["id"] for k, v in first.items()}
    assert lifelong("revert", "runs/prod:farm").status == 0
    assert lifelong("run", "stream.yaml", "stages.city.epochs=2").status == 0
    drawn = lifelong("log").out.splitlines()
    assert drawn[3] == "|\\" and drawn[4].startswith("| * ") and drawn[4].endswith("set aside")
    assert len(drawn) == 6 and "[v1]" in drawn[1]
    said = lifelong("revert", first["city"]["id"])  # back to the one that was set aside
    assert said.status == 0 and weights(Path("runs/prod")) == before
    assert lifelong("run", "stream.yaml").status == 0 and weights(Path("runs/prod")) == before


def test_a_branch_goes_on_elsewhere(lifelong, months):
    months(3)
    assert lifelong("run", "stream.yaml").status == 0
    before = contents(Path("runs/prod"))
    assert lifelong("branch", "runs/prod:sky", "runs/other").status == 0
    months(2, farm={"epochs": 2})
    said = lifelong("run", "stream.yaml", "output=runs/other")
    assert said.status == 0, said.err
    assert contents(Path("runs/prod")) == before
    assert json.loads(Path("runs/other/stages/002-farm/cost.json").read_text())["steps"] == 6
    assert lifelong("run", "stream.yaml", "output=alone/run").status == 0
    assert weights(Path("runs/other")) == weights(Path("alone/run"))  # as if trained from the start
    assert lifelong("export", "runs/other", "exported", "--adapter").status == 0


def test_gc_tells_first(lifelong, months):
    months(2)
    assert lifelong("run", "stream.yaml").status == 0
    assert lifelong("revert", "runs/prod:sky").status == 0
    before = contents(Path("runs"))
    said = lifelong("gc")
    assert "would free 1 node" in said.out and "--yes" in said.out and contents(Path("runs")) == before
    told = json.loads(lifelong("gc", "--json").out)
    size = used(Path("runs/prod"))
    assert lifelong("gc", "--yes").out.splitlines()[-1].startswith("freed 1 node")
    freed = size - used(Path("runs/prod"))
    assert 60000 < told["bytes"] <= freed < told["bytes"] + 10000  # the rest: config and log beside them
    assert not Path("runs/prod/aside").exists()
    assert "freed 0 nodes" in lifelong("gc", "--yes").out


MISTAKES = {
    "no such node": (("show", "ffff1234"), ["no node or tag `ffff1234`", "lifelong log runs"]),
    "no such stage": (("diff", "runs/prod:sky", "runs/prod:seaa"), ["no finished stage `seaa`", "sky"]),
    "no such run": (("revert", "runs/nowhere:sky"), ["runs/nowhere is no run folder"]),
    "no such folder": (("log", "nowhere"), ["no folder nowhere", "--in"]),
    "nothing there": (("show", "abcd", "--in", "empty"), ["no run folder at or below empty"]),
    "ambiguous": (("revert", "12ab"), ["`12ab` begins 2 ids", "Give more digits"]),
    "too short": (("show", "12"), ["too short", "4 digits"]),
    "branch onto a run": (("branch", "runs/prod:sky", "runs/prod"), ["no empty folder"]),
    "branch of the base": (("branch", "runs/prod:untrained", "runs/new"), ["untrained model"]),
    "tag without name": (("tag", "runs/prod:sky"), ["lifelong tag NODE NAME"]),
    "tag like an id": (("tag", "runs/prod:sky", "beef"), ["a tag is made of"]),
    "tag that is taken": (("tag", "runs/prod:farm", "v1"), ["tag `v1` names", "--delete"]),
    "tag that is not": (("tag", "v9", "--delete"), ["no tag `v9`", "v1"]),
}


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_change_nothing(lifelong, updated, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(updated / "runs", "runs")
    Path("empty").mkdir()
    assert lifelong("tag", "runs/prod:sky", "v1").status == 0
    if words[1].startswith("12"):
        for id, folder in (("12ab34567890", "001-sky"), ("12ab99999999", "002-farm")):
            file = Path(f"runs/prod/stages/{folder}/node.json")
            made_runs.write(file, read_json(file) | {"id": id})
    before = contents(tmp_path)
    refused(lifelong(*words), *told)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("file", ["node.json", "evaluation.json", "answers.jsonl"])
def test_a_broken_folder_is_told(lifelong, updated, tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(updated / "runs", "runs")
    Path(f"runs/prod/stages/002-farm/{file}").write_text('{"broken')
    before = contents(tmp_path)
    refused(lifelong("diff", "runs/prod:farm", "runs/prod:city"), file, "damaged")
    assert contents(tmp_path) == before


# several processes ----------------------------------------------------------------------------


def test_readers_see_whole_stages_only(lifelong, months):
    """`log` and `diff`, again and again while a run is written: never an error, nodes only appear."""
    months(3)
    made = process.start(Path(), "run", "stream.yaml", "checkpoint_seconds=0.01", "defaults.epochs=12")
    process.wait_for(lambda: Path("runs/prod/stages/000-untrained/evaluation.json").exists(), made)
    seen, reads = [], 0
    while made.is_alive():
        found = nodes(lifelong, "runs")
        seen.append(len(found))
        assert all(each["metrics"]["tasks"] and each["weights"] for each in found.values())
        if "sky" in found:
            assert lifelong("diff", "runs/prod:untrained", "runs/prod:sky").status == 0
            reads += 1
        time.sleep(0.005)
    made.join()
    assert made.exitcode == 0, Path("said").read_text()
    assert seen == sorted(seen) and reads > 2 and set(nodes(lifelong, "runs")) == {"untrained", *NAMES}
