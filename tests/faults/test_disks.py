"""A full or read-only disk, flipped bytes: told in one message, and nothing that was whole is lost."""

import errno
import os
import random
import shutil
import subprocess
from types import SimpleNamespace

import injection
import pytest

from lifelong.store.run import find_runs

RECIPE = "o_lora_replay"
FEW = 3


def refused(done, *words):
    assert done.status == 2, done.said
    assert "Traceback" not in done.said and done.said.count("error: ") == 1, done.said
    for word in words:
        assert word in done.said, done.said


def check_same(done, folder, whole):
    assert done.status == 0, done.said
    found = injection.learned(folder)
    assert found.keys() == whole.learned.keys()
    assert [name for name in found if found[name] != whole.learned[name]] == []


@pytest.fixture
def small_disk(place):
    """A file system of its own, where mounting is allowed: folder, resize(options)."""
    folder = place / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("needs the right to mount a small file system")

    def change(options):
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

    yield SimpleNamespace(folder=folder, change=change)
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def size_of(folder):
    return sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in folder.rglob("*"))


def test_a_full_disk_then_a_read_only_one(run, whole, place, small_disk):
    """Filled at several moments in one life, which goes on after each."""
    known, folder = whole(RECIPE), place / "disk/out"
    full = 0
    for share in (0.1, 0.4, 0.7, 1.0, 1.2):
        small_disk.change(f"size={int(share * size_of(known.folder)) // 4096 * 4096}")
        done = run(RECIPE, "disk/out")
        if done.status:
            refused(done, "cannot write disk/out", "no space is left on the disk")
            full += 1
        if folder.exists():
            injection.check_whole(folder)
    assert full >= 2
    small_disk.change("size=50m,ro")
    refused(run(RECIPE, "disk/out"), "cannot write disk/out", "read-only")
    small_disk.change("rw")
    check_same(run(RECIPE, "disk/out"), folder, known)
    small_disk.change("ro")
    refused(run(RECIPE, "disk/out"), "cannot write disk/out", "read-only")
    assert find_runs(folder) == [folder]  # readers need no right to write


def fail_at(run, whole, place, number, error, words):
    folder = place / f"failing-{error}-{number}"
    refused(run(RECIPE, folder.name, injection.Failing(number, error)), f"cannot write {folder.name}", words)
    if folder.exists():
        assert not [p for p in folder.rglob(".*")]
        injection.check_whole(folder)
    check_same(run(RECIPE, folder.name), folder, whole)


WORDS = {
    errno.ENOSPC: "no space is left on the disk", errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "input/output error", errno.EROFS: "read-only",
}  # fmt: skip


def some_calls(count, error):
    return random.Random(error).sample(range(1, 60), count)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_calls_that_fail(run, whole, place, error):
    for number in some_calls(2, error):
        fail_at(run, whole(RECIPE), place, number, error, WORDS[error])


@pytest.mark.faults
@pytest.mark.parametrize("error", WORDS)
def test_many_calls_that_fail(run, whole, place, error):
    for number in some_calls(15, error)[2:]:
        fail_at(run, whole(RECIPE), place, number, error, WORDS[error])


@pytest.mark.faults
@pytest.mark.parametrize("num_bytes", [2000, 5000, 20_000, 80_000])
def test_files_may_not_grow(run, whole, place, num_bytes):
    """Whatever writes them, in Python or below it."""
    folder = place / f"small-{num_bytes}"
    done = run(RECIPE, folder.name, injection.SmallFiles(num_bytes))
    refused(done, f"cannot write {folder.name}", "files may not grow so large here")
    if folder.exists():
        injection.check_whole(folder)
    check_same(run(RECIPE, folder.name), folder, whole(RECIPE))


# flipped bytes --------------------------------------------------------------------------------

FINISHED = (
    "stages/002-farm/checkpoint/state.safetensors", "stages/002-farm/checkpoint/state.json",
    "stages/002-farm/checkpoint/manifest.json", "stages/000-untrained/evaluation.json",
    "stages/000-untrained/answers.jsonl", "stages/001-sky/evaluation.json", "stages/001-sky/answers.jsonl",
    "stages/001-sky/cost.json", "stages/002-farm/evaluation.json", "stages/002-farm/answers.jsonl",
    "stages/002-farm/cost.json", "stages/001-sky/node.json", "config.json", "log.jsonl", "summary.json",
    "environment.json",
)  # fmt: skip


def flip(file, offset, bit):
    content = bytearray(file.read_bytes())
    content[offset] ^= 1 << bit
    file.write_bytes(content)


def same_but_for_lost_lines(found, known):
    """A line of the log that was damaged cannot come back; all others must be there."""
    lost = [line for line in known["log.jsonl"] if line not in found["log.jsonl"]]
    return len(lost) <= 2 and all(line in known["log.jsonl"] for line in found["log.jsonl"])


def flip_and_run(run, whole, place, name, seed, where=None):
    draw = random.Random(f"{name} {seed}")
    folder = place / f"flipped-{name.replace('/', '-')}-{seed}"
    shutil.copytree(whole.folder, folder)
    size = (folder / name).stat().st_size
    offset = draw.randrange(size) if where is None else where
    flip(folder / name, offset, draw.randrange(8))
    done = run(RECIPE, folder.name)
    if done.status:
        refused(done, f"{name} is damaged" if "checkpoint" not in name else "is damaged")
        return "refused"
    found = injection.learned(folder)
    different = [each for each in found if found[each] != whole.learned[each]]
    if name == "log.jsonl":
        assert different in ([], [name]) and same_but_for_lost_lines(found, whole.learned)
        assert not different or "log.jsonl, line" in done.said and "left out" in done.said
    else:
        assert found.keys() == whole.learned.keys() and different == [], done.said
    return "told" if "is damaged" in done.said else "silent"


def test_some_flipped_bytes(run, whole, place):
    known = whole(RECIPE)
    for name in ("stages/002-farm/checkpoint/state.safetensors", "stages/001-sky/evaluation.json"):
        assert flip_and_run(run, known, place, name, "few") == "told"
    assert flip_and_run(run, known, place, "config.json", "few", where=40) == "told"


@pytest.mark.faults
@pytest.mark.parametrize("name", FINISHED)
def test_flipped_bytes(run, whole, place, name):
    """Silence is right where nothing that means anything has changed, as white space in JSON."""
    found = [flip_and_run(run, whole(RECIPE), place, name, seed) for seed in range(6)]
    if name.endswith((".safetensors", "answers.jsonl", "checkpoint/state.json")):
        assert found == ["told"] * 6
    elif name not in ("summary.json", "environment.json"):  # these are written at every start
        assert found.count("silent") < 6


@pytest.mark.faults
@pytest.mark.parametrize("part", ["state.safetensors", "state.json", "manifest.json"])
def test_flipped_bytes_inside_a_stage(run, whole, place, part):
    """In the newest checkpoint of a run that was killed: the one before it is used."""
    known = whole(RECIPE)
    for seed in range(4):
        draw = random.Random(f"{part} {seed}")
        folder = place / f"inside-{part}-{seed}"
        for number in range(known.counts["calls"] * 2 // 3, 0, -1):
            run(RECIPE, folder.name, injection.AtCall(number))
            found = sorted(folder.glob("checkpoints/002-*"))
            if len(found) == 2:
                break
            shutil.rmtree(folder)
        file = found[-1] / part
        flip(file, draw.randrange(8 if part == "state.safetensors" and seed == 0 else file.stat().st_size), 3)
        done = run(RECIPE, folder.name)
        assert f"{found[-1].name} is damaged" in done.said or part == "manifest.json"
        check_same(done, folder, known)
