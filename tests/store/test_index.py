"""The index is a cache: with it, without it and with garbage in its place, all is told alike."""

import json
import os
import sqlite3
from pathlib import Path

import made_runs
import pytest

from lifelong.cli.lineage import print_log, print_node
from lifelong.store import index, lineage, moves
from lifelong.store.files import read_json

STAGES = ("sky", "farm", "city")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs; one stage was set aside, one turned down."""
    monkeypatch.setattr(index, "WORTH", 1)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        made_runs.make(tmp_path / "runs" / name, STAGES, seed=ord(name))
    moves.revert(lineage.find("runs/a:farm"))
    made_runs.write(tmp_path / "runs/b/stages/002-farm/guard.json", {"promoted": False})
    return tmp_path / "runs"


def told(capsys):
    """All that `log` and `show` say."""
    for as_json in (False, True):
        print_log([Path("runs")], as_json)
    for each in sorted(each.id for each in lineage.history().nodes):
        print_node(each, Path("runs"), True)
    return capsys.readouterr().out


def records(monkeypatch):
    """Counts the records that are read from now on."""
    read, real = [], lineage.read_record

    def count(run, folder, parent=None):
        read.append(folder)
        return real(run, folder, parent)

    monkeypatch.setattr(lineage, "read_record", count)
    return read


def garbage(file):
    file.write_bytes(b"no database at all" * 100)


def torn(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flipped(file):
    """In the text of a record: the database itself notices nothing."""
    content = bytearray(file.read_bytes())
    content[content.index(b'"stage": "city"') + 11] ^= 1
    file.write_bytes(content)


def other_version(file):
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")


def other_table(file):
    file.unlink()
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE nodes (folder, stamp, record, checksum)")
        database.execute("INSERT INTO nodes VALUES (1, 2, 3, 4)")
        database.execute(f"PRAGMA user_version = {index.VERSION}")


def a_folder(file):
    file.unlink()
    file.mkdir()


def gone(file):
    file.unlink()


WAYS = (garbage, torn, flipped, other_version, other_table, a_folder, gone)


def test_unchanged_nodes_are_not_read_again(runs, monkeypatch):
    first = lineage.history()
    read = records(monkeypatch)
    assert lineage.history() == first and len(first.nodes) == 8
    assert read == []
    os.utime(runs / "b/stages/002-farm/node.json")  # control
    assert lineage.history() == first and len(read) == 1


@pytest.mark.parametrize("way", WAYS)
def test_every_answer_is_the_same_without_it_and_with_garbage(runs, way, capsys, monkeypatch):
    lineage.history()
    with_index = told(capsys)
    way(runs / index.NAME)
    assert told(capsys) == with_index
    read = records(monkeypatch)
    assert told(capsys) == with_index and bool(read) == (way is a_folder)  # else it was made anew
    monkeypatch.setattr(index.Index, "find", lambda self, stage: None)
    assert told(capsys) == with_index


def test_what_changed_is_seen_at_once(runs):
    lineage.history()
    node = lineage.find("runs/b:city")
    record = read_json(node.folder / "node.json")
    made_runs.write(node.folder / "node.json", record | {"code": "other"})
    made_runs.write(runs / "b/stages/002-farm/guard.json", {"promoted": True})
    made_runs.write(runs / "b/stages/001-sky/guard.json", {"promoted": False})
    found = {each.stage: each for each in lineage.history().nodes if each.run.name == "b"}
    assert found["city"].code == "other" and found["farm"].promoted and not found["sky"].promoted
    moves.revert(lineage.find("runs/b:sky"))
    assert [each.aside for each in lineage.history().nodes].count(True) == 3
    (runs / "a/stages/001-sky/node.json").write_text("{")
    with pytest.raises(Exception, match="001-sky.* is damaged"):
        lineage.history()


def test_a_reader_does_not_wait_for_a_writer(runs, capsys, monkeypatch):
    lineage.history()
    with_index, content = told(capsys), (runs / index.NAME).read_bytes()
    with sqlite3.connect(runs / index.NAME, isolation_level=None) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        read = records(monkeypatch)
        assert told(capsys) == with_index and read
    writer.close()
    assert (runs / index.NAME).read_bytes() == content


def test_a_folder_that_cannot_be_written_is_read(runs, capsys, monkeypatch):
    with_index = told(capsys)
    (runs / index.NAME).unlink()

    def refuse(*args, **kwargs):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(index.sqlite3, "connect", refuse)
    assert told(capsys) == with_index and not (runs / index.NAME).exists()


def test_stages_that_are_gone_are_dropped_and_a_run_alone_has_none(runs):
    lineage.history()
    moves.free(lineage.history())
    lineage.history()
    with sqlite3.connect(runs / index.NAME) as database:
        kept = {folder for (folder,) in database.execute("SELECT folder FROM nodes")}
    database.close()
    assert kept == {str(each.folder)[len("runs/") :] for each in lineage.history().nodes} and len(kept) == 7
    lineage.history(["runs/a"])
    assert not list((runs / "a").glob(".*"))


def test_a_small_history_is_not_worth_one(runs, monkeypatch):
    monkeypatch.undo()
    lineage.history([runs])
    assert not (runs / index.NAME).exists()
    assert json.dumps(lineage.summary(lineage.history([runs])))
