"""A project of two short stages, and one uninterrupted run of each recipe."""

import json
from functools import cache
from types import SimpleNamespace

import injection
import process
import pytest
import tiny
import tiny_stream
from transformers.utils import logging

COMMON = ("run", "stream.yaml", "checkpoint_seconds=0.001", "stages.sky.steps=5", "stages.farm.steps=7")


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    logging.disable_progress_bar()
    model = tiny.model("llama")
    model.network.save_pretrained(folder / "model")
    model.processor.save_pretrained(folder / "model")
    return tiny_stream.project(folder, folder / "model")


@pytest.fixture(scope="session")
def run(place):
    """run(recipe, output, inside=...) -> exit status and all that was said."""

    def made(recipe, output, inside=None):
        started = start(recipe, output, inside)
        started.join(120)
        return SimpleNamespace(status=started.exitcode, said=(place / "said").read_text())

    def start(recipe, output, inside=None):
        words = (*COMMON, f"method={injection.RECIPES[recipe]}", f"output={output}")
        return process.start(place, *words, inside=inside)

    made.start = start
    return made


@pytest.fixture(scope="session")
def whole(place, run):
    """whole(recipe) -> folder, what was learned, and how often each place was visited."""

    @cache
    def made(recipe):
        done = run(recipe, f"whole-{recipe}", injection.Counting())
        assert done.status == 0, done.said
        folder = place / f"whole-{recipe}"
        counts = json.loads((place / "counts.json").read_text())
        return SimpleNamespace(folder=folder, learned=injection.learned(folder), counts=counts)

    return made
