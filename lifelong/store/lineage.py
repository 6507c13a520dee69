"""The history of models below a folder: which nodes there are, and which one a user means.

Everything is said by the run folders as they are; `index` only saves reading again what has not changed.
Readers take no lock: a stage appears when it is finished.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lifelong.errors import UserError, nearest
from lifelong.store.configuration import configuration
from lifelong.store.files import read_json
from lifelong.store.index import Index
from lifelong.store.node import FILE, UNTRAINED, Node, is_finished, read_record, stage_folders

DEFAULT = Path("runs")
SHORTEST = 4  # hex digits of an id that a user may give


class Tag(NamedTuple):
    """A name that a user gave to a node."""

    name: str
    id: str
    run: Path  # run folder that keeps it


@dataclass(frozen=True, kw_only=True)
class History:
    """All nodes below some folders. A node may lie in several places: branches share stages."""

    nodes: tuple[Node, ...]  # every place, parents first within a run
    tags: tuple[Tag, ...]
    folders: tuple[Path, ...]  # where was looked

    def places(self, id: str) -> list[Node]:
        """Where a node lies, places that are set aside last."""
        return sorted((each for each in self.nodes if each.id == id), key=lambda each: each.aside)

    def heads(self) -> dict[Path, Node]:
        """The last finished stage of every run folder."""
        return {each.run: each for each in self.nodes if not each.aside}

    def ancestors(self, ids: Iterable[str]) -> set[str]:
        """The ids themselves, their parents, and so on."""
        parents, found, left = {each.id: each.parent for each in self.nodes}, set(), list(ids)
        while left:
            id = left.pop()
            if id is not None and id not in found:
                found.add(id)
                left.append(parents.get(id))
        return found

    def reached(self) -> set[str]:
        """Nodes that a tag or the head of a run folder leads to."""
        heads = [each.id for each in self.heads().values()]
        return self.ancestors([*heads, *(tag.id for tag in self.tags)])

    def tag(self, name: str) -> Tag | None:
        """The tag of a name. UserError where run folders use the name for different nodes."""
        found = [tag for tag in self.tags if tag.name == name]
        if len({tag.id for tag in found}) > 1:
            told = ", ".join(f"{tag.id} in {tag.run}" for tag in found)
            raise UserError(f"tag `{name}` names several nodes: {told}. Give the id, or a folder with --in.")
        return found[0] if found else None


def history(folders: Sequence[Path | str] = (DEFAULT,)) -> History:
    """Read all runs at or below the folders; works while they are written."""
    folders = tuple(map(Path, folders))
    found: dict[Path, Path] = {}  # run folder: where it was looked for
    for folder in folders:
        for run in run_folders(folder):
            found.setdefault(run, folder)
    runs, nodes = list(found), []
    indexes = {folder: Index(folder) for folder in folders if not is_run(folder)}
    for run, folder in found.items():
        nodes += read_nodes(run, indexes.get(folder))
    for index in indexes.values():
        index.save()
    tags = tuple(Tag(name, id, run) for run in runs for name, id in read_tags(run).items())
    return History(nodes=tuple(nodes), tags=tags, folders=folders)


def run_folders(folder: Path) -> list[Path]:
    """Run folders at or below a folder, sorted. The parts of a run with a model for every stage stand
    for it. UserError where there are none.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}. Name one that holds run folders (`--in`, or after `log`).")
    found = [run for each in _runs(folder) for run in (_runs(each / "per_task") or [each])]
    if not found:
        raise UserError(f"no run folder at or below {folder}.")
    return found


def is_run(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _runs(folder: Path) -> list[Path]:
    if is_run(folder):
        return [folder] if (folder / "stages").is_dir() else []  # else a model's folder
    if not folder.is_dir():
        return []
    inner = sorted(e.path for e in os.scandir(folder) if e.is_dir(follow_symlinks=False) and e.name[0] != ".")
    return [run for each in inner for run in _runs(Path(each))]


def read_nodes(run: Path, index: Index | None = None) -> list[Node]:
    """Finished stages of a run folder, then those that were set aside."""
    places = [(run, False), *((each, True) for each in aside_folders(run))]
    found = []
    for place, aside in places:
        parent = None
        for folder in stage_folders(place):
            try:
                kept = index and index.find(folder)
                if kept or is_finished(folder):
                    kept = kept or _read(place, folder, parent, index)
                    found.append(Node(**kept, folder=folder, aside=aside))
                    parent = found[-1].id
            except FileNotFoundError:  # moved by another process just now
                continue
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{folder} is damaged: a file lacks what it must have ({type(error).__name__}: {error}). "
                    "Put a good copy back."
                ) from None
    return found


def aside_folders(run: Path) -> list[Path]:
    """What `revert` set aside, oldest first."""
    return sorted((run / "aside").glob("[0-9]*"), key=lambda path: int(path.name))


def _read(run: Path, folder: Path, parent: str | None, index: Index | None) -> dict[str, Any]:
    stamp = index.stamp(folder) if index else ""
    record = read_record(run, folder, parent) | {"promoted": promoted(folder)}
    if stamp.startswith(FILE):  # else the record is derived, from other files
        index.add(folder, stamp, record)
    return record


def promoted(folder: Path) -> bool:
    """False where a guard turned the update of a stage down."""
    guard = folder / "guard.json"
    return read_json(guard).get("promoted", True) if guard.exists() else True


def read_tags(run: Path) -> dict[str, str]:
    """Tag: id of the node that it names."""
    files = sorted((run / "tags").glob("[!.]*"))
    return {file.name: file.read_text(encoding="utf-8").strip() for file in files}


def find(name: str, folder: Path | str = DEFAULT, alone: bool = False) -> Node:
    """The node that a user means: id or its beginning, tag, or `RUN_FOLDER[:stage]`.

    Raises UserError where there is none, or several; with `alone` also where it lies in several runs.
    """
    place = _place(name)
    if place is not None:
        return place
    known = history([folder])
    tag = known.tag(name)
    if tag is not None:
        found = known.places(tag.id)
        if not found:
            raise UserError(f"tag `{name}` of {tag.run} names the node {tag.id}, which is gone.")
        return min(found, key=lambda each: each.run != tag.run)
    digits = re.fullmatch("[0-9a-f]+", name)
    ids = sorted({each.id for each in known.nodes if digits and each.id.startswith(name)})
    if len(name) < SHORTEST and ids:
        raise UserError(f"`{name}` is too short for a node's id: give at least {SHORTEST} digits.")
    if len(ids) > 1:
        told = "; ".join(f"{id} ({known.places(id)[0].place})" for id in ids[:5])
        raise UserError(f"`{name}` begins {len(ids)} ids: {told}. Give more digits.")
    if not ids:
        near = nearest(name, [each.name for each in known.tags])
        raise UserError(
            f"no node or tag `{name}` below {folder}.{near} `lifelong log {folder}` lists them; other "
            "folders are named with --in, and RUN_FOLDER:stage is a node too."
        )
    places = known.places(ids[0])
    if alone and len({each.run for each in places}) > 1:
        told = ", ".join(each.place for each in places)
        raise UserError(f"the node {ids[0]} lies in several run folders; name one: {told}.")
    return places[0]


def names_node(name: str, folder: Path | str = DEFAULT) -> bool:
    """Is `name` RUN_FOLDER:stage, or the id or a tag of a node below `folder`? A folder of that name comes
    first.
    """
    if Path(name).exists() or not (":" in name or _runs(Path(folder))):
        return False
    if ":" in name:
        return True
    known = history([folder])
    digits = re.fullmatch(f"[0-9a-f]{{{SHORTEST},}}", name)
    ids = {each.id for each in known.nodes if digits and each.id.startswith(name)}
    return bool(ids) or any(tag.name == name for tag in known.tags)


def _place(name: str) -> Node | None:
    """The node that `RUN_FOLDER[:stage]` names; None where `name` names no run folder."""
    folder, colon, stage = name.rpartition(":")
    if not colon:
        folder, stage = name, ""
    run = Path(folder)
    if not is_run(run):
        if colon or "/" in name:
            raise UserError(f"{folder} is no run folder (it has no config.json).")
        return None
    if configuration(run)["stream"] == "per_task":
        names = [each["name"] for each in configuration(run)["stages"]]
        if stage not in names:
            raise UserError(f"{run} has a model for every stage; name one: {run}:{names[0]}.")
        run = run / "per_task" / stage
    aside = run.parent.name == "aside"
    every = read_nodes(run.parent.parent if aside else run)
    nodes = [each for each in every if each.aside == aside and each.home == run]
    if not nodes:
        raise UserError(f"{run} holds no finished stage yet; run it first.")
    if not stage:
        return nodes[-1]
    known = {each.stage if each.row else UNTRAINED: each for each in nodes}
    if stage not in known:
        raise UserError(f"{run} has no finished stage `{stage}`.{nearest(stage, known)}")
    return known[stage]


def pair(left: str, right: str, folder: Path | str = DEFAULT) -> tuple[Node, Node]:
    """Two nodes; where one lies in several run folders, that of the other if possible, since it was
    judged on the same sets there.
    """
    found = [find(left, folder), find(right, folder)]
    for i, j in ((0, 1), (1, 0)):
        if found[0].run != found[1].run:
            near = [each for each in read_nodes(found[j].run) if each.id == found[i].id]
            found[i] = near[0] if near else found[i]
    return found[0], found[1]


def around(node: Node, folder: Path | str = DEFAULT) -> History:
    """The history of a node's run, and of all below `folder`."""
    return history([*([folder] if _runs(Path(folder)) else ()), node.run])


def summary(known: History) -> list[dict[str, Any]]:
    """Every node once, with its places, tags and children."""
    heads = {run: node.id for run, node in known.heads().items()}
    found: dict[str, dict[str, Any]] = {}
    for each in sorted(known.nodes, key=lambda node: node.aside):
        entry = found.setdefault(
            each.id,
            each.to_dict() | {"places": [], "tags": [], "heads": [], "children": []},
        )
        entry["places"].append(each.place)
    for tag in known.tags:
        if tag.id in found and tag.name not in found[tag.id]["tags"]:
            found[tag.id]["tags"].append(tag.name)
    for run, id in heads.items():
        found[id]["heads"].append(str(run))
    for entry in found.values():
        if entry["parent"] in found:
            found[entry["parent"]]["children"].append(entry["id"])
    return list(found.values())
