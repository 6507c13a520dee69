"""The command as a user meets it, called in this process for speed."""

import signal
import sys
import warnings
from typing import NamedTuple

import pytest
import tiny
import tiny_stream

from lifelong.cli.main import main


class Said(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def lifelong(monkeypatch, capfd):
    """lifelong("run", "stream.yaml") -> exit status, stdout, stderr of the whole process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*words):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["lifelong", *map(str, words)])
        with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
            main()
        return Said(stop.value.code or 0, *capfd.readouterr())

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    return tiny.save(tiny.model("llama"), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def project(tmp_path, saved_model, monkeypatch):
    """The current folder: stream.yaml of two stages, with its data."""
    monkeypatch.chdir(tmp_path)
    return tiny_stream.project(tmp_path, saved_model)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, saved_model):
    """A finished run of `project`; tests only read it."""
    from lifelong import launch
    from lifelong.streams import config

    folder = tiny_stream.project(tmp_path_factory.mktemp("finished"), saved_model)
    chosen = config.read(folder / "stream.yaml", [f"output={folder / 'out'}"])
    launch.run_config(chosen, folder)
    return folder / "out"
