"""The command in a process of its own, forked from a server that has the imports done."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["lifelong.launch", "lifelong.report", "transformers.models.llama.modeling_llama", "peft"]
)


def start(folder, *words, inside=None):
    """Start `lifelong <words>` in `folder`; what it says goes to folder/said. `inside` is a context
    manager that the process runs in.
    """
    made = CONTEXT.Process(target=_run, args=(str(folder), words, inside or contextlib.nullcontext()))
    made.start()
    return made


def _run(folder, words, inside):
    from lifelong.cli.main import main

    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open("said", "w", buffering=1) as said:
        sys.stdout = sys.stderr = said
        sys.argv = ["lifelong", *words]
        with inside:
            main()


def wait_for(condition, process, seconds=60):
    """Until `condition()` holds while the process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), "the process ended before it was expected to"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
