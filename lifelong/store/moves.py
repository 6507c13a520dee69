"""Going back, branching off, naming and freeing. Nothing but `free` deletes a stage.

A stage folder is moved in one step, the last one first on the way out and the first one first on the
way back, so that a process that is killed in between leaves a run that ends at some stage.
"""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from lifelong.errors import UserError, nearest
from lifelong.store import node as nodes
from lifelong.store.checkpoint import link
from lifelong.store.configuration import configuration
from lifelong.store.content import digest
from lifelong.store.files import Lock, read_json, remove_folder, whole_folder, write_record, write_text
from lifelong.store.lineage import History, aside_folders, history, read_nodes
from lifelong.store.log import parse_line, raw_lines
from lifelong.store.node import Node, row_of, stage_folders


class Held:
    """A run folder that nobody else writes."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def __enter__(self) -> None:
        self.lock = Lock(self.run)

    def __exit__(self, *rest: Any) -> None:
        self.lock.release()


# back ---------------------------------------------------------------------------------------


def revert(node: Node) -> list[Node]:
    """The run folder of a node ends at it; what came later, or instead, is set aside. A node that was
    set aside comes back with the stages before it. Returns the nodes that were set aside.
    """
    run = node.run
    with Held(run):
        for folder in stage_folders(run):
            if nodes.is_finished(folder) and not (folder / nodes.FILE).exists():
                nodes.seal(run, folder)
        known = read_nodes(run)
        if node.id not in {each.id for each in known}:
            raise UserError(f"the node {node.id} is no longer in {run}.")
        chain = _chain(known, node.id)
        kept = {each.id for each in chain}
        leaving = [each for each in known if not each.aside and each.id not in kept]
        staying = {each.id for each in known if not each.aside and each.id in kept}
        coming = [each for each in chain if each.id not in staying]
        if not leaving and not coming and not _half_done(run, node.row):
            return []
        home = _set_aside(run, len(staying) - 1)
        if coming:  # before the stages that it names
            write_record(run / "config.json", read_json(coming[-1].home / "config.json"))
        for each in coming:
            _bring_back(run, each)
        for left in (home, *{each.home for each in coming}):
            _drop_if_empty(left)
    return leaving


def _chain(known: Sequence[Node], id: str | None) -> list[Node]:
    """From the untrained model to a node; places that are not set aside first."""
    by_id: dict[str, Node] = {}
    for each in known:
        if each.id not in by_id or by_id[each.id].aside:
            by_id[each.id] = each
    found: list[Node] = []
    while id is not None and id in by_id:
        found.insert(0, by_id[id])
        id = by_id[id].parent
    return found


def _half_done(run: Path, row: int) -> bool:
    return any((run / "checkpoints").glob("[0-9]*")) or any(row_of(p) > row for p in stage_folders(run))


def _set_aside(run: Path, row: int) -> Path:
    """Move all after `row` to aside/NNN, with the lines of the log, and a configuration to read it by."""
    number = max([0, *(int(each.name) for each in aside_folders(run))]) + 1
    home = run / "aside" / f"{number:03d}"
    write_record(home / "config.json", read_json(run / "config.json"))
    if (run / "environment.json").exists():
        link(run / "environment.json", home / "environment.json")
    _move_log(run, home, row)
    for name in ("summary.json", "checkpoints"):
        if (run / name).exists():
            os.replace(run / name, home / name)
    (home / "stages").mkdir()
    for folder in reversed(stage_folders(run)):
        if row_of(folder) > row:
            os.replace(folder, home / "stages" / folder.name)
    return home


def _bring_back(run: Path, node: Node) -> None:
    place = node.home
    _move_log(place, run, node.row - 1, node.row)
    os.replace(node.folder, run / "stages" / node.folder.name)


def _move_log(source: Path, target: Path, after: int, until: int | None = None) -> None:
    """Move the lines of the stages `after` < row <= `until` to the end of another log."""
    moved, kept = _log_lines(source, after, until)
    if moved:
        there = target / "log.jsonl"
        before = there.read_text(encoding="utf-8") if there.exists() else ""
        write_text(there, before + "".join(moved))
        write_text(source / "log.jsonl", "".join(kept))


def _log_lines(run: Path, after: int, until: int | None) -> tuple[list[str], list[str]]:
    """Lines of the stages `after` < row <= `until`, and the others. A damaged line stays where it is: the
    next run tells it.
    """
    inside, outside = [], []
    for line in raw_lines(run / "log.jsonl"):
        try:
            row = parse_line(line)["stage"] + 1
        except ValueError:
            outside += [line] if line.endswith("\n") else []  # else the last line of a killed process
            continue
        (inside if row > after and (until is None or row <= until) else outside).append(line)
    return inside, outside


def _drop_if_empty(home: Path) -> None:
    """Away with a folder below `aside` that holds no stage and no half of one."""
    if not stage_folders(home) and not any((home / "checkpoints").glob("[0-9]*")):
        shutil.rmtree(home)
        if not aside_folders(home.parent.parent):
            shutil.rmtree(home.parent)


# branch -------------------------------------------------------------------------------------


def branch(node: Node, target: Path) -> Path:
    """A new run folder that ends at `node` and shares its files with the old one."""
    target = Path(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists and is no empty folder; name another one.")
    if not node.row:
        raise UserError(
            f"{node.place} is the untrained model: there is nothing to share. A run with another `output` "
            "starts from it."
        )
    chain = _chain(read_nodes(node.run), node.id)
    config = dict(configuration(node.home))
    config["stages"] = config["stages"][: node.row]
    config["fingerprint"] = digest({k: v for k, v in config.items() if k not in ("name", "fingerprint")})
    with whole_folder(target) as folder:
        write_record(folder / "config.json", config)
        if (node.home / "environment.json").exists():
            link(node.home / "environment.json", folder / "environment.json")
        log: list[str] = []
        for each in chain:
            there = folder / "stages" / each.folder.name
            _link_tree(each.folder, there)
            log += _log_lines(each.home, each.row - 1, each.row)[0]
            if not (there / nodes.FILE).exists():
                nodes.seal(folder, there)
        write_text(folder / "log.jsonl", "".join(log))
    return target


def _link_tree(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for each in source.iterdir():
        if each.name.startswith("."):  # being written, or left by a killed process
            continue
        if each.is_dir():
            _link_tree(each, target / each.name)
        else:
            link(each, target / each.name)


# tags ---------------------------------------------------------------------------------------


def tag(node: Node, name: str, known: History) -> None:
    """Give a node a name of its own. A tagged node is never freed."""
    if not re.fullmatch(r"[^\W_][\w.-]*", name) or re.fullmatch("[0-9a-f]{4,12}", name):
        raise UserError(
            f"a tag is made of letters, digits, `.`, `-` and `_`, and is no beginning of an id; got `{name}`."
        )
    old = known.tag(name)
    if old is not None and old.id != node.id:
        raise UserError(
            f"tag `{name}` names the node {old.id} already. Remove it first: lifelong tag {name} --delete"
        )
    write_text(node.run / "tags" / name, node.id + "\n")


def untag(name: str, known: History) -> str:
    """Take a tag away; returns the id that it named."""
    if known.tag(name) is None:
        told = nearest(name, [each.name for each in known.tags])
        raise UserError(f"no tag `{name}` below {', '.join(map(str, known.folders))}.{told}")
    found = [each for each in known.tags if each.name == name]
    for each in found:
        (each.run / "tags" / name).unlink()
    return found[0].id


# free ---------------------------------------------------------------------------------------


class Freed(NamedTuple):
    """What nothing reaches any more."""

    nodes: list[Node]
    folders: list[Path]  # stages, and halves of stages
    num_bytes: int  # that the disk gets back; files that others share do not count


def garbage(known: History) -> Freed:
    """Stages that were set aside and that no tag and no head of a run folder leads to."""
    reached = known.reached()
    lost = [each for each in known.nodes if each.aside and each.id not in reached]
    halves = []
    for home in (home for run in {each.run for each in known.nodes} for home in aside_folders(run)):
        halves += home.glob("checkpoints/[0-9]*")
        halves += [stage for stage in stage_folders(home) if not nodes.is_finished(stage)]
    folders = [each.folder for each in lost] + sorted(halves)
    return Freed(lost, folders, _num_bytes(folders))


def free(known: History) -> Freed:
    """Delete what `garbage` names, children before their parents."""
    runs = sorted(run for run in {each.run for each in known.nodes} if aside_folders(run))
    with ExitStack() as held:
        for run in runs:
            held.enter_context(Held(run))
        found = garbage(history(known.folders))
        for folder in reversed(found.folders):
            remove_folder(folder)
        for run in runs:
            for home in aside_folders(run):
                _drop_if_empty(home)
    return found


def _num_bytes(folders: Sequence[Path]) -> int:
    """What deleting the folders gives back: files all of whose names go."""
    names: dict[tuple[int, int], int] = {}
    found = 0
    for file in (file for folder in folders for file in folder.rglob("*") if file.is_file()):
        about = file.stat()
        key = (about.st_dev, about.st_ino)
        names[key] = names.get(key, 0) + 1
        found += about.st_size if names[key] == about.st_nlink else 0
    return found
