"""What is printed where: progress on stderr, figures on stdout, and nothing heavy for light verbs."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from lifelong.cli import progress
from lifelong.core.engine import Event

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "xterm"}


def in_terminal(folder, *words):
    """What a person sees whose terminal is stdout and stderr of the real command."""
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "lifelong", *words]
    made = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        ready, _, _ = select.select([mine], [], [], 60)
        try:
            chunk = os.read(mine, 65536) if ready else b""
        except OSError:  # the other side is closed
            chunk = b""
        if not chunk:
            break
        seen += chunk
    os.close(mine)
    assert made.wait(60) == 0, seen
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())


def test_terminal(project):
    seen = in_terminal(project, "run", "stream.yaml", "stages.farm.steps=100")
    assert "loading the model" in seen
    live = re.findall(r"stage 2/2 farm \S+ (\d+)/100 loss \d\.\d{3}  \d+ tokens/s  \d+:\d\d left", seen)
    assert len(live) >= 2 and live == sorted(live, key=int)  # the line moves
    assert re.search(r"stage 1/2 sky  step 3/3  loss \d\.\d{3}  \d+ tokens/s  0:00 left\r?\n", seen)
    assert "judged after farm on 3 sets" in seen
    assert seen.rstrip().endswith("report: out/report.html")


def test_plain_lines(lifelong, project):
    said = lifelong("run", "stream.yaml")
    pattern = "\n".join(
        [
            r"judged the untrained model on 3 sets",
            *(
                rf"stage {i}/2 {name}  step 3/3  loss \d\.\d{{3}}  \d+ tokens/s  0:00 left\n"
                rf"judged after {name} on 3 sets"
                for i, name in enumerate(("sky", "farm"), start=1)
            ),
        ]
    )
    assert re.fullmatch(pattern + "\n", said.err), said.err
    assert "\x1b" not in said.out + said.err and "\r" not in said.out + said.err


def test_table_fits_eighty_columns(lifelong, project, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = lifelong("run", "stream.yaml", "method=o_lora_replay")
    head = said.out.splitlines()[0]
    assert len(head) <= 80 and head.split() == [
        "method", "seed", "accuracy", "forgetting", "backward", "learned", "general", "minutes", "GiB",
    ]  # fmt: skip
    assert said.out.splitlines()[1].startswith("o_lora_replay  ")


@pytest.mark.parametrize("verb", ["run", "report", "eval", "export", "methods", "doctor"])
def test_json_is_one_document(lifelong, project, finished, verb):
    words = {
        "run": ["stream.yaml"], "report": [finished, "--output", "page.html"],
        "eval": [finished, "stream.yaml"], "export": [finished, "exported"], "methods": [], "doctor": [],
    }[verb]  # fmt: skip
    said = lifelong(verb, *words, "--json")
    assert said.status == 0 and said.out.count("\n") == 1
    json.loads(said.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert said.err == ""


def test_json_of_a_mistake(lifelong, project):
    said = lifelong("run", "stream.yaml", "seed=x", "--json")
    assert said.status == 2 and said.out == "" and said.err.startswith("error: ")


LIGHT = (
    ["--help"], ["run", "--help"], ["methods"], ["methods", "ewc"], ["methods", "o_lora_replay"], ["report"],
    ["report", "--json"], ["run", "stream.yaml", "epoch=1"],
)  # fmt: skip


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_no_torch(project, finished, words):
    """A light verb, and a mistake in the stream file, are answered without torch and transformers."""
    words = [*words, str(finished)] if words[0] == "report" else words
    program = (
        "import sys\nfrom lifelong.cli.main import main\n"
        f"sys.argv = {['lifelong', *words]!r}\n"
        "try:\n    main()\n"
        "finally:\n    print({'torch', 'transformers'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "set()", done.stderr


def test_help_is_quick():
    def seconds():
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lifelong", "--help"], check=True, capture_output=True)
        return time.perf_counter() - begun

    assert min(seconds() for _ in range(3)) < 0.5


def test_help_names_every_verb(lifelong):
    said = lifelong("--help")
    for verb in ("demo", "init", "run", "eval", "report", "export", "methods", "doctor"):
        assert re.search(rf"\b{verb}\b", said.out)
        assert "Usage" in lifelong(verb, "--help").out


def test_version(lifelong):
    from lifelong import __version__

    assert lifelong("--version").out == f"lifelong {__version__}\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0:00"), (61, "1:01"), (3599, "59:59"), (3660, "1 h 01 min"), (float("nan"), "?")],
)
def test_clock(seconds, text):
    assert progress.clock(seconds) == text


def test_stages_without_names():
    event = Event("step", 2, 1, 3, 0.5, 100.0, 4.0)
    assert progress.where(event, ()) == "stage 2"
    assert progress.where(event, ("sky", "farm")) == "stage 2/2 farm"
    assert progress.after(event._replace(stage=0), ()) == "the untrained model"


def test_a_warning_is_told_though_quiet(capsys):
    with progress.watching(quiet=True) as listen:
        listen(Event("step", 1, 1, 3))
        listen(Event("notice", 1, text="the checkpoint is damaged"))
    said = capsys.readouterr()
    assert said.out == "" and said.err == "note: the checkpoint is damaged\n"
