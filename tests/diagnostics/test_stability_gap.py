"""The stability gap: a hand-made curve, and runs that are evaluated in the midst of a stage."""

import html
import json

import pytest
import tiny
import tiny_stream
from looking import context_of

from lifelong import launch
from lifelong.core import discover
from lifelong.core.axes import Context
from lifelong.core.engine import Settings
from lifelong.diagnostics.stability_gap import StabilityGap
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora


def entry(stage, step, **values):
    return {"stage": stage, "step": step, "values": values}


CURVE = [
    entry(0, 1, a=0.2), entry(0, 2, a=0.9),
    entry(1, 1, a=0.3, b=0.4), entry(1, 2, a=0.8, b=0.7),
    entry(2, 1, a=0.5, b=0.1, c=0.5), entry(2, 2, a=0.7, b=0.6, c=0.8),
]  # fmt: skip


def test_a_hand_made_curve():
    found = StabilityGap(window=2).measure(Context(params={}, stage=2, history=CURVE))
    assert found["min_accuracy"] == pytest.approx((0.3 + 0.1) / 2)
    assert found["worst_case_accuracy"] == pytest.approx(0.8 / 3 + 2 / 3 * 0.2)
    assert found["windowed_forgetting"] == pytest.approx((0.6 + 0.6 + 0.0) / 3)
    assert found["windowed_plasticity"] == pytest.approx((0.7 + 0.5 + 0.3) / 3)
    wide = StabilityGap(window=6).measure(Context(params={}, stage=2, history=CURVE))
    assert wide["windowed_plasticity"] == pytest.approx((0.7 + 0.5 + 0.3) / 3)
    assert StabilityGap(window=3).measure(Context(params={}, stage=2, history=CURVE[:2] + CURVE[3:]))[
        "windowed_forgetting"
    ] == pytest.approx((0.4 + 0.6) / 3)


def test_a_gap_that_has_closed_is_seen_only_inside_the_stage():
    ends = [CURVE[1], CURVE[3], CURVE[5]]
    seen = StabilityGap().measure(Context(params={}, stage=2, history=CURVE))
    unseen = StabilityGap().measure(Context(params={}, stage=2, history=ends))
    assert unseen["min_accuracy"] == pytest.approx((0.7 + 0.6) / 2)
    assert unseen["min_accuracy"] > seen["min_accuracy"] + 0.4


def test_the_first_stage_has_no_earlier_task():
    found = StabilityGap().measure(Context(params={}, stage=0, history=CURVE[:2]))
    assert "min_accuracy" not in found and found["worst_case_accuracy"] == 0.9
    assert StabilityGap().measure(context_of("bert")) == {}


class Killed(Exception):
    pass


def train(folder, kill_at=None, tuner=None, **settings):
    def listen(event):
        if (event.kind, event.stage, event.step) == kill_at:
            raise Killed

    stream = tiny_stream.stream(general=False)
    settings = Settings(checkpoint_seconds=0.0, **settings)
    launch.run(tiny.model("llama"), stream, [tuner or Lora(rank=2)], output=folder, settings=settings,
               listen=listen)  # fmt: skip
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kept = [json.loads(path.read_text()) for path in sorted(folder.rglob("diagnostics.json"))]
    return [{k: v for k, v in line.items() if k not in ("seconds", "checksum")} for line in log], kept


FEW = {"skill_localization": {"passes": 1, "num_examples": 4}, "conjugate_prompting": {"num_examples": 2}}
ALL = tuple(discover.load(n, "diagnostics")(**FEW.get(n, {})) for n in discover.names("diagnostics"))


def test_looking_changes_nothing_and_evaluations_are_logged(tmp_path):
    plain, nothing = train(tmp_path / "plain")
    looked, found = train(tmp_path / "looked", diagnostics=ALL, evaluate_steps=2)
    assert [{k: v for k, v in line.items() if k != "values"} for line in looked] == plain and nothing == []
    assert [sorted(line.get("values", ())) for line in looked] == [
        [], ["sky"], [], [], ["farm", "sky"], []]  # fmt: skip
    for name in ("001-sky", "002-farm"):
        left, right = (
            (tmp_path / run / "stages" / name / "checkpoint" / "state.safetensors").read_bytes()
            for run in ("plain", "looked")
        )
        assert left == right
    assert [each["stage"] for each in found] == ["sky", "farm"]
    told = {each["id"]: each["figures"] for each in found[1]["diagnostics"]}
    assert list(told) == list(discover.names("diagnostics")) and all(told.values())
    assert "min_accuracy" in told["stability_gap"]


@pytest.mark.parametrize("tuner", [Lora(rank=2), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("kill_at", [("step", 2, 2), ("evaluation", 1, 1), ("evaluation", 2, 1)])
def test_a_resumed_run_finds_the_same(kill_at, tuner, tmp_path):
    how = {"diagnostics": ALL, "evaluate_steps": 1, "tuner": tuner}
    whole = train(tmp_path / "whole", **how)
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at, **how)
    assert train(tmp_path / "killed", **how) == whole


def test_a_stream_file_names_them_and_the_report_shows_them(tmp_path, capsys):
    from lifelong.cli.tables import print_runs
    from lifelong.report import write_report
    from lifelong.streams import config

    base = tiny.model("llama")
    base.network.save_pretrained(tmp_path / "base")
    base.processor.save_pretrained(tmp_path / "base")
    others = [name for name in discover.names("diagnostics") if name != "rankme"]
    more = {"diagnostics": [*others, {"rankme": {"num_examples": 8}}], "evaluate_steps": 1}
    folder = tiny_stream.project(tmp_path, tmp_path / "base", **more)
    chosen = config.read(folder / "stream.yaml", [f"output={tmp_path / 'out'}"])
    assert config.parse(chosen.resolved(), "again").resolved() == chosen.resolved()
    (run,) = launch.run_config(chosen, folder)
    text = write_report([run.folder], tmp_path / "report.html").read_text()
    assert "Effective rank of features" in text and "Stability gap" in text and "min accuracy" in text
    titles = [discover.load(name, "diagnostics").title for name in discover.names("diagnostics")]
    assert all(html.escape(title) in text for title in titles)
    print_runs([run.folder], tmp_path / "report.html", as_json=True)
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert [each["title"] for each in told["diagnostics"][0]["diagnostics"]][:2] == titles[:2]
    plain = write_report([run.folder], tmp_path / "again.html").read_text()
    assert plain == text and text.count("<h3>Diagnostics</h3>") == 1
