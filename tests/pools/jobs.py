"""What the workers of a pool are given to do."""

import os
import signal
import time
from pathlib import Path


def work(job, kept):
    """A text is a problem; "die" and "exit" end the process; "stubborn FILE" writes FILE and cannot
    be asked to end; "facts" is told about it.
    """
    kept["jobs"] = kept.get("jobs", 0) + 1
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "exit":
        os._exit(3)
    if job.startswith("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(job.split()[1]).touch()
        time.sleep(60)
    if job != "facts":
        return job
    import torch

    return f"{os.getpid()} {kept['jobs']} {torch.get_num_threads()} {os.getcwd()}"
