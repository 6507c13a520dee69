"""A run folder holds whole files only, one writer, one configuration."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from lifelong.errors import UserError
from lifelong.store import files
from lifelong.store.run import RunFolder, find_runs, read_run

CONFIG = {"name": "x", "seed": 0, "stages": [{"name": "a"}, {"name": "b"}]}


def opened(path, **changes):
    return RunFolder(path, {**CONFIG, **changes}, ["a", "b"])


def test_checkpoints_come_back_and_the_newest_wins(tmp_path):
    run = opened(tmp_path / "run")
    assert run.latest() is None
    run.save(0, 5, {"w": torch.ones(2)}, {"k": 1})
    run.save(0, 9, {"w": torch.ones(2) * 2}, {"k": 2})
    position = run.latest()
    assert (position.stage, position.step) == (0, 9)
    tensors, tree = run.load(position)
    assert tree == {"k": 2} and torch.equal(tensors["w"], torch.ones(2) * 2)
    run.save(0, None, {"w": torch.zeros(2)}, {"k": 3})
    assert (run.latest().stage, run.latest().step) == (0, None)
    assert list((run.path / "checkpoints").iterdir()) == []
    run.save(1, 3, {"w": torch.zeros(2)}, {"k": 4})
    assert (run.latest().stage, run.latest().step) == (1, 3)


def test_only_so_many_inner_checkpoints_are_kept(tmp_path):
    run = opened(tmp_path / "run")
    for step in range(1, 6):
        run.save(0, step, {"w": torch.ones(1)}, {})
    assert len(list((run.path / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("part", ["state.safetensors", "state.json", "manifest.json"])
def test_a_flipped_byte_is_found_and_the_one_before_is_used(tmp_path, part):
    run = opened(tmp_path / "run")
    run.save(0, 5, {"w": torch.ones(64)}, {"k": 1})
    run.save(0, 9, {"w": torch.ones(64)}, {"k": 2})
    damaged = run.latest().folder / part
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(bytes(content))
    assert run.latest().step == 5
    assert "damaged" in run.notices[0]


def test_a_second_writer_is_refused(tmp_path):
    run = opened(tmp_path / "run")
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        opened(tmp_path / "run")
    run.close()
    opened(tmp_path / "run").close()


def test_another_configuration_is_refused_and_named(tmp_path):
    run = opened(tmp_path / "run")
    run.save(0, None, {"w": torch.ones(2)}, {})
    run.close()
    with pytest.raises(UserError, match=r"differs in seed"):
        opened(tmp_path / "run", seed=1)
    opened(tmp_path / "run").close()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="no run folder"):
        opened(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "summary.json"
    files.write_json(target, {"old": 1})

    def fail(*args):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="no space is left"):
        files.write_json(target, {"new": 2})
    assert json.loads(target.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_an_interrupted_checkpoint_leaves_nothing(tmp_path, monkeypatch):
    run = opened(tmp_path / "run")
    run.save(0, 5, {"w": torch.ones(2)}, {"k": 1})

    def fail(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(UserError, match="no space is left"):
        run.save(0, 6, {"w": torch.ones(2)}, {"k": 2})
    assert run.latest().step == 5


def test_log_lines_after_the_checkpoint_are_dropped(tmp_path):
    run = opened(tmp_path / "run")
    for stage, step in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]:
        run.log({"stage": stage, "step": step})
    run.flush_log()
    with (run.path / "log.jsonl").open("a") as file:
        file.write('{"stage": 1, "st')
    run.close()
    run = opened(tmp_path / "run")
    run.cut_log(1, 1)
    assert [(r["stage"], r["step"]) for r in read_run(run.path)["log"]] == [(0, 0), (0, 1), (1, 0)]


def test_runs_are_found_below_a_folder(tmp_path):
    for name in ("one", "two"):
        opened(tmp_path / name).close()
    (tmp_path / "two" / "part").mkdir()
    opened(tmp_path / "two" / "part").close()
    assert [p.name for p in find_runs(tmp_path)] == ["one", "two"]
    with pytest.raises(UserError, match="no run folder"):
        find_runs(tmp_path / "one" / "stages" if (tmp_path / "one" / "stages").exists() else _empty(tmp_path))


def _empty(path):
    folder = path / "empty"
    folder.mkdir()
    return folder


# what killed processes leave ---------------------------------------------------------------


def died_at(work, number):
    """Do `work` in a process that dies before its `number`-th move; True if it did."""
    process = os.fork()
    if process == 0:
        real, left = os.replace, [number]

        def replace(*args):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            real(*args)

        os.replace = replace
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


def write_folder(path, text):
    with files.whole_folder(path) as folder:
        (folder / "content").write_text(text)


def test_a_folder_that_was_moved_aside_is_not_lost(tmp_path):
    """Killed before each move of a replacement: the old or the new folder is there afterwards."""
    target, found = tmp_path / "run" / "folder", []
    for number in (1, 2, 3):
        write_folder(target, "old")
        died = died_at(lambda: write_folder(target, "new"), number)
        found.append((died, target.exists()))
        files.sweep(tmp_path)
        assert (target / "content").read_text() == ("old" if died else "new")
        assert [p.name for p in target.parent.iterdir()] == ["folder"]
    assert found == [(True, True), (True, False), (False, True)]


def test_a_failed_move_puts_the_old_folder_back(tmp_path, monkeypatch):
    write_folder(tmp_path / "folder", "old")
    real, calls = os.replace, []

    def replace(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.EIO, "input/output error")
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(UserError, match="input/output error"):
        write_folder(tmp_path / "folder", "new")
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "content"]
    assert (tmp_path / "folder/content").read_text() == "old"


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path):
    run = opened(tmp_path / "run")
    run.close()
    assert died_at(lambda: files.write_text(run.path / "stages/001-a/cost.json", "{}"), 1)
    assert died_at(lambda: files.write_text(run.path / "report.html", "<html>"), 1)
    assert died_at(lambda: write_folder(run.path / "checkpoints/001-000000005", "x"), 1)
    living = run.path / f".report.html.{os.getppid()}.abcdefgh"
    other = run.path / ".gitignore"
    for each in (living, other):
        each.write_text("")
    assert len([*run.path.rglob(".*")]) == 5
    opened(tmp_path / "run").close()
    assert {*run.path.rglob(".*")} == {living, other}


def test_checkpoints_inside_a_stage_that_has_ended_are_removed(tmp_path):
    run = opened(tmp_path / "run")
    run.save(0, 5, {"w": torch.ones(2)}, {})
    inner = (run.path / "checkpoints").rename(tmp_path / "kept")
    run.save(0, None, {"w": torch.ones(2)}, {})
    inner.rename(run.path / "checkpoints")  # as if it had been killed before it removed them
    assert run.latest().step is None and not list((run.path / "checkpoints").iterdir())


def test_inside_a_stage_that_is_trained_again_checkpoints_count(tmp_path):
    """Its old end is damaged: progress since then is not lost."""
    run = opened(tmp_path / "run")
    for stage in (0, 1):
        run.save(stage, None, {"w": torch.ones(2)}, {})
    (run.path / "stages/002-b/checkpoint/manifest.json").write_text("{")
    assert (run.latest().stage, run.latest().step) == (0, None)
    run.save(1, 4, {"w": torch.ones(2)}, {})
    assert (run.latest().stage, run.latest().step) == (1, 4)


# checksums ---------------------------------------------------------------------------------


def test_a_record_that_was_changed_is_known(tmp_path):
    file = tmp_path / "cost.json"
    value = {"seconds": 0.1 + 0.2, "name": "caf\u00e9", "none": None, "list": [1, 2.5, float("inf")]}
    files.write_json(file, files.sealed(value))
    assert files.read_json(file) == value
    text = file.read_text()
    file.write_text(text.replace("2.5", "3.5"))
    with pytest.raises(UserError, match=r"cost.json is damaged \(it has another checksum\)"):
        files.read_json(file)
    file.write_text(text.replace("\n", "\n "))  # white space means nothing
    assert files.read_json(file) == value


def test_damaged_answers_are_damaged_figures(tmp_path):
    run = opened(tmp_path / "run")
    run.write_evaluation(1, {"sets": []}, [{"prediction": "a"}, {"prediction": "b"}])
    assert run.judged(1) and not run.judged(2) and not run.notices
    answers = run.stage(1) / "answers.jsonl"
    answers.write_text(answers.read_text().replace('"b"', '"a"'))
    assert not run.judged(1)
    assert run.notices == [f"{answers} is damaged (it has another checksum)."]
    run.forget(1)
    assert not run.has(1, "evaluation.json")


def test_a_damaged_line_of_the_log_is_left_out_and_told(tmp_path):
    run = opened(tmp_path / "run")
    for step in range(4):
        run.log({"stage": 0, "step": step, "loss": 1.5 + step})
    run.flush_log()
    file = run.path / "log.jsonl"
    file.write_text(file.read_text().replace("2.5", "9.5"))
    with pytest.raises(UserError, match=r"log.jsonl, line 2 is damaged"):
        read_run(run.path)
    run.cut_log(0, 3)
    assert run.notices == [f"{file}, line 2 is damaged (it has another checksum) and left out."]
    assert [each["step"] for each in read_run(run.path)["log"]] == [0, 2]


def test_a_damaged_configuration_is_mended_where_checkpoints_know_it(tmp_path):
    run = opened(tmp_path / "run")
    file = run.path / "config.json"
    whole = file.read_bytes()
    run.close()
    file.write_bytes(whole.replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(UserError, match="config.json is damaged"):
        opened(run.path)
    file.write_bytes(whole)
    run = opened(run.path)
    run.save(0, None, {"w": torch.ones(2)}, {})
    run.close()
    file.write_bytes(whole.replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(UserError, match="config.json is damaged"):
        opened(run.path, seed=5)
    run = opened(run.path)
    assert file.read_bytes() == whole and "config.json is damaged" in run.notices[0]


def test_a_full_disk_under_log_and_lock_is_one_message(tmp_path, monkeypatch):
    run = opened(tmp_path / "run")
    run._log.file = open("/dev/full", "a")
    run.log({"stage": 0, "step": 0})
    with pytest.raises(UserError, match="no space is left"):
        run.flush_log()
    run.close()

    def fail(*args):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(UserError, match=r"cannot write .*lock: no space is left"):
        opened(tmp_path / "run")


def test_a_folder_that_is_no_run_is_not_swept(tmp_path):
    own = tmp_path / ".notes.1234567.abcdefgh"
    own.write_text("precious")
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="no run folder"):
        opened(tmp_path)
    assert own.exists()
