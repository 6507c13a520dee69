"""Both pools keep one contract: every job ends once with its problem, and a dead worker stops no other."""

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from jobs import work

from lifelong import pools
from lifelong.errors import UserError
from lifelong.pools import processes

HAS_RAY = importlib.util.find_spec("ray") is not None
on_ray = pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install 'lifelong[ray]'")
POOLS = [
    pytest.param("", id="processes"),
    pytest.param("local", id="ray", marks=[on_ray, pytest.mark.slow]),
]


@pytest.fixture(autouse=True)
def reachable(monkeypatch):
    """Workers import the module of `work`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def done(pool, jobs):
    """[(job, problem)] in the order of the ends, all workers busy."""
    jobs, found, busy = list(jobs), [], 0
    while jobs or busy:
        while jobs and pool.num_free:
            pool.begin(jobs.pop(0))
            busy += 1
        found.append(pool.end())
        busy -= 1
    return found


@pytest.mark.parametrize("cluster", POOLS)
def test_jobs_end_once_and_the_dead_are_told(cluster):
    with pools.opened(work, 2, 1, cluster) as pool:
        assert pool.num_free == 2
        jobs = ["", "it failed", "die", "", "exit", "it failed again", ""]
        found = done(pool, jobs)
        assert sorted(job for job, _ in found) == sorted(jobs) and pool.num_free == 2
        for job, problem in found:
            if job in ("die", "exit"):
                assert problem.startswith("its process died (")
            else:
                assert problem == job
        again = done(pool, ["facts"] * 6)  # on the workers that took the place of the dead
        assert all(not problem.startswith("its process") for _, problem in again)
        threads, folders = zip(*(problem.split()[2:] for _, problem in again), strict=True)
        assert set(threads) == {"1"} and set(folders) == {os.getcwd()}
        assert max(int(problem.split()[1]) for _, problem in again) > 1  # what was kept is found again
        assert len({problem.split()[0] for _, problem in again} - {str(os.getpid())}) <= 2


@pytest.mark.parametrize("cluster", POOLS)
def test_threads_are_those_asked_for(cluster):
    with pools.opened(work, 1, 2, cluster) as pool:
        ((_, problem),) = done(pool, ["facts"])
    assert problem.split()[2] == "2"


def test_without_ray_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'lifelong\[ray\]'"), pools.opened(work, 1, 1, "local"):
        pass


@on_ray
@pytest.mark.slow
@pytest.mark.parametrize("address", ["auto", "127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_told(address):
    with pytest.raises(UserError, match=f"ray: `{address}` must be"), pools.opened(work, 1, 1, address):
        pass


def test_a_job_that_does_not_end_is_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "CLOSING_SECONDS", 0.1)
    monkeypatch.setattr(processes, "SAVING_SECONDS", 0.1)
    begun = tmp_path / "begun"
    with pools.opened(work, 1, 1, "") as pool:
        pool.begin(f"stubborn {begun}")
        while not begun.exists():
            time.sleep(0.01)
        left = time.perf_counter()
    assert time.perf_counter() - left < 5.0
