"""A bench on a local Ray of two workers makes the bits that two processes make, and tells failures alike."""

import importlib.util
import json
from pathlib import Path

import pytest
import tiny
import tiny_stream
import yaml

from lifelong import bench
from lifelong.streams import bench_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'lifelong[ray]'"
    ),
]
TIMES = {"time", "seconds", "evaluation_seconds", "tokens_per_second", "peak_memory_bytes", "checksum",
         "output"}  # fmt: skip


@pytest.fixture
def made(tmp_path, monkeypatch):
    """made(name, changes) runs the bench into the folder `name`; paths of the files are relative."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    tiny.save(tiny.model("llama"), tmp_path / "llama")
    tiny_stream.project(tmp_path, "./llama")
    stream = yaml.safe_load((tmp_path / "stream.yaml").read_text())
    methods = {"l2": ["lora", {"l2": {"strength": 1.0}}], "lost": {"lora": {"targets": ["nowhere"]}},
               "dead": ["lora", "dying:Dying"]}  # fmt: skip
    content = {"name": "small", "stream": stream, "seeds": [0, 1], "methods": methods, "workers": 2}
    Path("bench.yaml").write_text(yaml.safe_dump(content))

    def make(name, *changes):
        chosen, told = bench_file.read("bench.yaml", [f"output={name}", *changes]), []
        bench.run(chosen, told.append)
        return chosen, told

    return make


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def bits(folder):
    """What must not differ, by file: bytes, or JSON without times."""
    found = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name, content = str(path.relative_to(folder)), path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            lines = content.splitlines() if path.suffix == ".jsonl" else [content]
            found[name] = [timeless(json.loads(line)) for line in lines]
        elif path.suffix != ".html" and path.name != "lock":
            found[name] = content
    return {
        name: content for name, content in found.items() if not name.endswith("manifest.json")
    }  # of times


def test_ray_makes_the_bits_of_processes(made, capfd):
    here, told = made("here")
    capfd.readouterr()
    there, again = made("there", "ray=local")
    assert capfd.readouterr().out == ""  # a program reads it
    assert len(told) == len(again) == 12
    expected, found = bits(Path("here")), bits(Path("there"))
    assert sum(name.endswith(".safetensors") for name in expected) >= 14
    assert found.keys() == expected.keys()
    failed = {name for name in expected if name.endswith("failed.json")}
    assert len(failed) == 4 and [n for n in expected if n not in failed and found[n] != expected[n]] == []
    assert any(
        expected[n] != expected[n.replace("seed0", "seed1")] for n in expected if "l2/order0-seed0" in n
    )
    for one, other in zip(here.cells, there.cells, strict=True):
        problems = bench.problem_of(one), bench.problem_of(other)
        assert bench.finished(one) == bench.finished(other) == (one.label not in ("lost", "dead"))
        if one.label == "dead":
            assert all(text.startswith("its process died (") for text in problems)
        else:
            assert problems[0] == problems[1] and ("nowhere" in problems[0]) == (one.label == "lost")
    assert made("there", "ray=local", "methods={l2: [lora, {l2: {strength: 1.0}}]}")[1] == []  # all is done
