"""All diagnostics together on every kind of stage: joined, free text, instructions, erasing."""

import json
from dataclasses import replace

import pytest
import tiny
import tiny_erasure
import tiny_stream

from lifelong import launch
from lifelong.core import discover
from lifelong.core.engine import Settings
from lifelong.core.stream import joined
from lifelong.metrics.rouge_l import RougeL
from lifelong.objectives.sft import Sft
from lifelong.replay.reservoir import Reservoir
from lifelong.tuners.o_lora import OLora
from lifelong.unlearning.gs_lora import GsLora

ALL = tuple(discover.load(name, "diagnostics")() for name in discover.names("diagnostics"))


def instructions():
    """Prompts with completions, judged by what is generated."""
    made, objective = tiny_stream.stream(general=False), Sft(max_new_tokens=3)

    def asked(rows):
        return [{"prompt": row["text"], "completion": row["label"]} for row in rows]

    stages = [
        replace(
            stage, rows=asked(stage.rows), objective=objective, labels=(),
            evals=tuple(replace(e, rows=asked(e.rows), objective=objective, metric=RougeL(), labels=())
                        for e in stage.evals),
        )
        for stage in made.stages
    ]  # fmt: skip
    return replace(made, stages=tuple(stages))


STREAMS = {
    "joined": lambda: joined(tiny_stream.stream()),
    "text": tiny_stream.text_stream,
    "instructions": instructions,
    "erasing": lambda: tiny_erasure.stream(),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_every_kind_of_stage_is_looked_at(kind, tmp_path):
    stream = STREAMS[kind]()
    methods = [OLora(rank=2), Reservoir(size=5), *([GsLora()] if kind == "erasing" else [])]
    launch.run(
        tiny.model("llama"), stream, methods, output=tmp_path / "run", settings=Settings(diagnostics=ALL)
    )
    told = [json.loads(path.read_text()) for path in sorted((tmp_path / "run").rglob("diagnostics.json"))]
    assert len(told) == len(stream.stages)
    found = {each["id"]: each["figures"] for each in told[-1]["diagnostics"]}
    assert list(found) == list(discover.names("diagnostics"))
    taught = {"joined": ["sky", "farm", "prose"], "text": ["sky", "farm", "prose"]}
    assert list(found["tuco"]) == taught.get(kind, ["sky", "farm"])
    asked = {"joined": set(), "text": set(), "instructions": {"sky"}, "erasing": {"sky", "farm"}}
    assert {name.split()[0] for name in found["conjugate_prompting"]} == asked[kind]
    probed = {"joined": {"sky", "farm"}, "erasing": {"sky", "farm"}}
    assert {name.split()[0] for name in found["linear_probe"]} == probed.get(kind, set())
    assert ("graft" in found["skill_localization"]) == (kind != "erasing")
