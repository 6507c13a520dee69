"""What the README says runs as printed."""

import re
from pathlib import Path

import pytest
import tiny
import yaml

from lifelong import launch
from lifelong.streams import config

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def stream_file():
    return re.search(r"<!-- stream file -->\n```yaml\n(.*?)```", README, re.DOTALL)[1]


def test_the_first_screen_has_one_sentence_and_two_commands():
    first = README.split("## ")[0]
    assert first.splitlines()[2].count(". ") == 0
    assert re.search(r"^make demo\b.*\n^make test\b", first, re.MULTILINE)


def test_the_stream_file_runs_with_a_tiny_model(tmp_path):
    model = tiny.model("llama")
    model.network.save_pretrained(tmp_path / "model")
    model.processor.save_pretrained(tmp_path / "model")
    (tmp_path / "stream.yaml").write_text(stream_file())
    changes = [f"model={tmp_path / 'model'}", f"output={tmp_path / 'run'}", "defaults.steps=2"]
    (run,) = launch.run_config(config.read(tmp_path / "stream.yaml", changes), tmp_path)
    assert run.summary["finished"] and run.matrix.columns == ("reviews", "mail")


@pytest.mark.slow
def test_the_stream_file_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stream.yaml").write_text(stream_file())
    (run,) = launch.run_config(config.read("stream.yaml"), tmp_path)
    assert run.matrix.average_accuracy > 0.5 and run.summary["finished"]


def test_the_verbs_of_the_table_exist():
    from typer.main import get_command

    from lifelong.cli.main import app

    verbs = set(get_command(app).commands)
    assert set(re.findall(r"^\| `lifelong (\w+)", README, re.MULTILINE)) == verbs


def test_every_listed_method_exists_and_every_method_is_listed():
    from lifelong.core import discover

    table = README.split("## What there is")[1].split("## ")[0]
    for axis in (axis for axis in discover.AXES if axis != "metrics"):
        line = next(line for line in table.splitlines() if f"| {axis} |" in line)
        assert tuple(sorted(re.findall(r"`(\w+)`", line))) == discover.names(axis)
    assert yaml.safe_load(stream_file())["method"] in discover.names("recipes")
