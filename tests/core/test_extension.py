"""A run that goes on next month, where records are damaged, an old task is guarded or rows are erased."""

from dataclasses import replace

import guarding
import pytest
import tiny
import tiny_erasure
import tiny_stream

from lifelong import launch
from lifelong.core.composition import compose
from lifelong.core.engine import Settings
from lifelong.errors import UserError
from lifelong.store.files import read_json
from lifelong.store.lineage import read_nodes
from lifelong.tuners.lora import Lora
from lifelong.tuners.o_lora import OLora
from lifelong.unlearning.gs_lora import GsLora

NAMES = ("sky", "farm", "city")


def train(folder, stream, methods=None, notices=None, architecture="bert"):
    def hear(event):
        if event.kind == "notice" and notices is not None:
            notices.append(event.text)

    methods = compose(methods or [Lora(rank=2)], Lora(rank=2))
    return launch.run(
        tiny.model(architecture), stream, methods, output=folder, settings=Settings(), listen=hear
    )


def first(stream, count):
    return replace(stream, stages=stream.stages[:count])


def test_a_damaged_configuration_is_known_after_stages_were_added(tmp_path):
    made, notices = tiny_stream.stream(stages=NAMES, general=False), []
    run = train(tmp_path / "run", first(made, 1))
    file = run.folder / "config.json"
    train(tmp_path / "run", first(made, 2))
    file.write_text(file.read_text()[:100])
    other = replace(made.stages[1], rows=made.stages[1].rows[1:])
    with pytest.raises(UserError, match="config.json is damaged"):
        train(tmp_path / "run", replace(made, stages=(made.stages[0], other, made.stages[2])))
    assert train(tmp_path / "run", made, notices=notices).summary["finished"]
    assert any("config.json is damaged" in each for each in notices)
    assert len(read_json(file)["stages"]) == 3


def test_a_damaged_node_is_made_again(tmp_path):
    made, notices = tiny_stream.stream(general=False), []
    run = train(tmp_path / "run", made)
    before = read_nodes(run.folder)
    file = before[1].folder / "node.json"
    file.write_text(file.read_text().replace('"row": 1', '"row": 2'))
    with pytest.raises(UserError, match=r"node.json is damaged"):
        read_nodes(run.folder)
    train(tmp_path / "run", made, notices=notices)
    assert read_nodes(run.folder) == before and "node.json is damaged" in notices[0]


def test_a_guard_counts_from_rows_that_judged_the_set(tmp_path):
    """city comes after two stages: the row between was never judged on it, and is no reference."""
    budget = guarding.guard(allowed_drop_fraction=1.0, general_drop_fraction=None, otherwise="keep")
    made = tiny_stream.stream(stages=NAMES, general=False)
    farm = made.stages[1]
    sea = replace(farm, name="sea", evals=(replace(farm.evals[0], name="sea"),))
    made = replace(made, stages=(*made.stages, sea), guard=budget)
    for count in (2, 3, 4):
        run = train(tmp_path / "run", first(made, count))
    values = run.matrix.values
    assert values[0][2] is None and values[1][2] is not None
    told = read_json(next(run.folder.glob("stages/004-*/guard.json")))["sets"]
    assert [each["name"] for each in told] == list(NAMES)
    assert next(each for each in told if each["name"] == "city")["reference"] == "003-city"


def test_rows_may_be_erased_from_a_run_that_has_finished(tmp_path):
    """The request splits the set that judged sky: its parts are judged anew where the model still is."""
    whole = tiny_erasure.stream()
    learned = tiny_stream.stream(stages=("sky", "farm"), general=False)
    methods = [OLora(rank=2), GsLora()]
    run = train(tmp_path / "run", learned, methods)
    before = [node.id for node in read_nodes(run.folder)]
    grown = train(tmp_path / "run", whole, methods)
    assert grown.summary["finished"] and grown.matrix.erased == (None, 2, None)
    assert [node.id for node in read_nodes(run.folder)][:3] == before
    at = grown.matrix.columns.index("sky.forget")
    assert [row[at] is None for row in grown.matrix.values] == [True, False, False]
    changed = replace(whole.stages[1].evals[0], rows=whole.stages[1].evals[0].rows[1:])
    stages = (whole.stages[0], replace(whole.stages[1], evals=(changed,)), *whole.stages[2:])
    with pytest.raises(UserError, match=r"differs in stages.1"):  # control: another set of farm may not
        train(tmp_path / "run", replace(whole, stages=stages), methods)


def test_sets_that_come_inside_a_stage_are_judged_on_the_last_finished_one(tmp_path):
    made = tiny_stream.stream(stages=NAMES, general=False)

    class Killed(Exception):
        pass

    def listen(event):
        if (event.kind, event.stage, event.step) == ("step", 2, 2):
            raise Killed

    settings = Settings(checkpoint_seconds=0.0)
    common = dict(output=tmp_path / "run", settings=settings)
    methods = compose([Lora(rank=2)], Lora(rank=2))
    with pytest.raises(Killed):
        launch.run(tiny.model("bert"), first(made, 2), methods, listen=listen, **common)
    run = launch.run(tiny.model("bert"), made, methods, **common)
    assert None not in [cell for row in run.matrix.values for cell in row]
    whole = launch.run(tiny.model("bert"), made, methods, output=tmp_path / "whole", settings=settings)
    assert run.matrix.values == whole.matrix.values
