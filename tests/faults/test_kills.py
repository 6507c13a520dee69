"""Killed at any instant, a run that is begun again ends with the bits of one that was not."""

import random
import shutil
import signal
import time

import injection
import process
import pytest

from lifelong.errors import UserError

KILLS = 13  # of each of the nine recipes, at the least
OWN = {  # places that a recipe is in the list for
    "ewc": "importance", "skill_it": "mixture", "aioli": "mixture", "sema": "expansion by scan",
    "tame": "expansion by jump", "ama": "merge", "o_lora_replay": "memory", "sequential": "report",
    "per_task": "summary",
}  # fmt: skip
LATEST = 0.03  # seconds after a place was entered


def kill_at(run, recipe, output, place, visit, delay):
    """Begin the run and kill it `delay` seconds after a place was entered for the given time."""
    here, there = process.CONTEXT.Pipe(duplex=False)
    started = run.start(recipe, output, injection.Announcing(place, visit, there))
    there.close()
    assert here.poll(60) and here.recv_bytes() == b"here", "the place was not entered"
    time.sleep(delay)
    started.kill()
    started.join()
    return started.exitcode == -signal.SIGKILL  # else it was faster


def kill_after(run, recipe, output, delay):
    started = run.start(recipe, output)
    time.sleep(delay)
    started.kill()
    started.join()
    return started.exitcode == -signal.SIGKILL


def check_resumes(folder, run, recipe, whole):
    injection.check_whole(folder)
    done = run(recipe, folder.name)
    assert done.status == 0, done.said
    assert "damaged" not in done.said
    found = injection.learned(folder)
    assert found.keys() == whole.learned.keys()
    assert [name for name in found if found[name] != whole.learned[name]] == []


def kill_and_resume(run, whole, place, recipe, kills, seed):
    """Kills at every kind of place in turn, at random visits and instants; some again while they resume."""
    draw, done = random.Random(f"{recipe} {seed}"), 0
    places = [name for name in injection.PLACES if whole.counts[name]]
    assert OWN[recipe] in places
    places.sort(key=lambda name: (name != OWN[recipe], draw.random()))
    for number in range(kills):
        target = places[number % len(places)]
        folder = place / f"{recipe}-{seed}-{number}"
        visit = draw.randint(1, whole.counts[target])
        done += kill_at(run, recipe, folder.name, target, visit, draw.uniform(0, LATEST))
        injection.check_whole(folder)
        if draw.random() < 0.4:
            done += kill_after(run, recipe, folder.name, draw.uniform(0, 0.5))
        check_resumes(folder, run, recipe, whole)
    return done


@pytest.mark.parametrize("recipe", ["o_lora_replay", "ama"])
def test_a_few_kills(run, whole, place, recipe):
    assert kill_and_resume(run, whole(recipe), place, recipe, 3, "few") >= 3


@pytest.mark.faults
@pytest.mark.parametrize("recipe", injection.RECIPES)
def test_kills(run, whole, place, recipe):
    assert kill_and_resume(run, whole(recipe), place, recipe, KILLS + 2, "many") >= KILLS


def test_every_kind_of_place_is_met(whole):
    """The recipes together enter all of them."""
    counts = [whole(recipe).counts for recipe in ("o_lora_replay", "ama")]
    met = {name for each in counts for name, count in each.items() if count}
    assert met >= {"step", "evaluation", "checkpoint", "merge", "report", "memory", "record", "summary"}


def kill_at_call(run, whole, place, recipe, number, series):
    folder = place / f"call-{series}-{recipe}-{number}"
    died = run(recipe, folder.name, injection.AtCall(number))
    assert died.status == -signal.SIGKILL
    check_resumes(folder, run, recipe, whole)


def test_killed_at_some_calls(run, whole, place):
    known = whole("sequential")
    for number in random.Random(0).sample(range(1, known.counts["calls"] + 1), 4):
        kill_at_call(run, known, place, "sequential", number, "some")


@pytest.mark.faults
@pytest.mark.parametrize("part", range(4))
def test_killed_at_every_call(run, whole, place, part):
    """Before each call that moves, flushes or removes a file."""
    known = whole("sequential")
    assert known.counts["calls"] > 60
    for number in range(1 + part, known.counts["calls"] + 1, 4):
        kill_at_call(run, known, place, "sequential", number, "every")


def test_a_changed_bit_would_be_seen(whole, tmp_path):
    known = whole("o_lora_replay")
    copy = shutil.copytree(known.folder, tmp_path / "copy")
    assert injection.learned(copy) == known.learned
    for name in ("stages/002-farm/checkpoint/state.safetensors", "stages/001-sky/answers.jsonl"):
        content = bytearray((copy / name).read_bytes())
        content[-3] ^= 1
        (copy / name).write_bytes(content)
        found = injection.learned(copy)
        assert [each for each in found if found[each] != known.learned[each]] == [name]
        (copy / name).write_bytes((known.folder / name).read_bytes())
    torn = copy / "stages/001-sky/evaluation.json"
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(UserError, match="evaluation.json is damaged"):
        injection.check_whole(copy)
