"""The history of models for people: the tree, one node, the difference of two. No torch."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lifelong.store import lineage, moves
from lifelong.store.node import Node

Entry = dict[str, Any]
LEVEL = 0.05  # of the paired test


def print_log(folders: Sequence[Path], as_json: bool) -> None:
    """Every node once, below its parent."""
    found = lineage.summary(lineage.history(folders))
    if as_json:
        print(json.dumps(found))
        return
    if not found:
        print("no stage has ended yet")
        return
    lines = list(graph({each["id"]: each for each in found}))
    table = [(f"{drawn}{entry['id'] if entry else ''}", _columns(entry)) for drawn, entry in lines]
    left = max(len(text) for text, _ in table)
    widths = [max(len(cells[i]) for _, cells in table) for i in range(4)]
    for text, cells in table:
        shown = [cell.rjust(width) if i else cell.ljust(width)
                 for i, (cell, width) in enumerate(zip(cells, widths, strict=False))]  # fmt: skip
        print(f"{text:<{left}}  {'  '.join(shown)}  {cells[4]}".rstrip())


def graph(entries: dict[str, Entry]) -> Iterator[tuple[str, Entry | None]]:
    """(what is drawn left of a node, the node), parents first. Of several children the one that leads to
    a head goes on in the same column; the others are drawn before it, one column to the right.
    """
    alive = {id for id, each in entries.items() if each["heads"]}
    for id in list(alive):
        while (id := entries[id]["parent"]) in entries and id not in alive:
            alive.add(id)
    roots = [id for id, each in entries.items() if each["parent"] not in entries]
    left: list[tuple[str, str, bool]] = [("", root, False) for root in reversed(roots)]
    while left:
        prefix, id, forks = left.pop()
        if forks:
            yield f"{prefix[:-2]}|\\", None
        yield f"{prefix}* ", entries[id]
        children = sorted(entries[id]["children"], key=lambda each: (each in alive, entries[each]["time"]))
        if children:
            left.append((prefix, children[-1], False))
            left += [(f"{prefix}| ", each, True) for each in reversed(children[:-1])]


def _columns(entry: Entry | None) -> list[str]:
    """Stage, average, time of training, date; then what is special about a node."""
    if entry is None:
        return [""] * 5
    average, seconds = entry["metrics"]["average"], entry["cost"].get("seconds")
    marks = [f"[{name}]" for name in entry["tags"]] + [f"<- {head}" for head in entry["heads"]]
    marks += ["not promoted"] * (not entry["promoted"]) + ["set aside"] * entry["aside"]
    return [
        entry["stage"] if entry["row"] else f"untrained {entry['stage']}",
        "" if average is None else f"{100 * average:.1f} %",
        "" if seconds is None else duration(seconds),
        entry["time"][:10] if entry["row"] else "",
        "  ".join(marks),
    ]


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def print_node(name: str, folder: Path, as_json: bool) -> None:
    """All that is known of one node."""
    node = lineage.find(name, folder)
    entry = next(e for e in lineage.summary(lineage.around(node, folder)) if e["id"] == node.id)
    entry |= node.to_dict()
    if as_json:
        print(json.dumps(entry))
        return
    facts = {
        "node": entry["id"], "parent": entry["parent"] or "-",
        "children": ", ".join(entry["children"]) or "-",
        "stage": entry["stage"], "lies in": ", ".join(dict.fromkeys(entry["places"])),
        "tags": ", ".join(entry["tags"]) or "-", "head of": ", ".join(entry["heads"]) or "-",
        "promoted": "yes" if entry["promoted"] else "no", "time": entry["time"], "code": entry["code"] or "-",
        "data": entry["data"] or "-", "weights": entry["weights"],
    }  # fmt: skip
    for key, value in facts.items():
        print(f"{key:<9} {value}")
    _print_configuration(entry["configuration"])
    _print_figures(entry)


def _print_configuration(about: Entry) -> None:
    if "model" in about:
        print(f"model     {_plain(about['model'])}")
    for each in about.get("methods", ()):
        print(f"{each['axis']:<9} {each['name']} {_plain(each['settings'])}")
    stage = about.get("stage", {})
    for key in ("objective", "budget", "optimization"):
        if key in stage:
            print(f"{key:<9} {_plain(stage[key])}")
    for key in ("seed", "precision", "candidates"):
        if key in about:
            print(f"{key:<9} {about[key]}")


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace('"', "")


def _print_figures(entry: Entry) -> None:
    metrics = entry["metrics"]
    for kind, sets in (("task", metrics["tasks"]), ("general", metrics["general"])):
        for name, value in sets.items():
            unit = metrics["units"][name]
            known = "" if kind == "general" or name in metrics["taught"] else "  (not taught yet)"
            print(f"{kind:<9} {name:<20} {_figure(value, unit)}{known}")
    for key, value in entry["cost"].items():
        if key != "name":
            print(
                f"cost      {key:<20} {value:.4g}"
                if isinstance(value, float)
                else f"cost      {key:<20} {value}"
            )


def _figure(value: float, unit: str) -> str:
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.2f}"


def print_difference(left: Node, right: Node, num_examples: int, weights: bool, as_json: bool) -> None:
    """What was learned and what was lost, per set and per example; with `weights` where they moved."""
    from lifelong.core.difference import compare

    found = compare(left, right, num_examples)
    if weights:
        from lifelong.models.movement import movement

        found["weights"] = movement(left, right)
    if as_json:
        print(json.dumps(found))
        return
    print(f"before  {left.id}  {left.place}")
    print(f"after   {right.id}  {right.place}\n")
    _print_sets(found["sets"])
    for each in found["sets"]:
        for key in ("learned", "lost"):
            for example in each.get(key, ()):
                _print_example(each, key, example)
    if weights:
        _print_movement(found["weights"])


def verdict(each: Entry) -> str:
    """In a word: better or worse where the interval and the test both say so."""
    if not each["better"] and not each["worse"]:
        return "same"
    known = each["low"] is not None
    sure = known and each["p_value"] < LEVEL and not each["low"] <= 0 <= each["high"]
    return "unclear" if not sure else "better" if each["difference"] > 0 else "worse"


def _print_sets(sets: Sequence[Entry]) -> None:
    width = max([4, *(len(each["name"]) for each in sets)])
    print(f"{'set':<{width}} {'before':>8} {'after':>8} {'change':>8}  {'95 % interval':<18} "
          f"{'better':>6} {'worse':>6} {'p':>8}  {'rows':>5}")  # fmt: skip
    for each in sets:
        if "before" not in each:
            print(f"{each['name']:<{width}} {each['note']}")
            continue
        unit = each["unit"]
        before, after = (_figure(each[key], unit) for key in ("before", "after"))
        text = f"{each['name']:<{width}} {before:>8} {after:>8}"
        if "difference" in each:
            factor = 100 if unit == "%" else 1
            ends = [change_text(factor * each[end], unit) for end in ("low", "high") if each[end] is not None]
            interval = f"[{', '.join(ends)}]" if ends else "-"
            change = change_text(factor * each["difference"], unit)
            text += f" {change:>8}  {interval:<18} {each['better']:>6} {each['worse']:>6}"
            text += f" {each['p_value']:>8.2g}  {each['rows']:>5}  {verdict(each)}"
        print(text + (f"  ({each['note']})" if "note" in each else ""))
    print(
        "\nchange: points of a share, or nats per token (more is better); interval: paired, over rows;"
        "\np: exact sign test on rows that became better or worse (McNemar), each set by itself."
    )


def change_text(value: float, unit: str) -> str:
    return f"{value:+.1f}" if unit == "%" else f"{value:+.3f}"


def _print_example(each: Entry, key: str, example: Entry) -> None:
    asked = f": {example['input']}" if example["input"] else ""
    print(f"\n{key}, {each['name']} row {example['row']}{asked}")
    if example["before"] is None:  # likelihood alone
        print(f"  {example['score_before']:.3f} -> {example['score_after']:.3f} nats per token")
    else:
        print(f"  {example['before']} -> {example['after']}   (right: {', '.join(example['references'])})")


def _print_movement(found: Entry) -> None:
    rows = [*found["layers"], found["total"]]
    width = max(len(each["name"]) for each in rows)
    print(f"\n{'layer':<{width}} {'norm':>10} {'relative':>9} {'rank':>7} {'moved':>8}  parameters")
    for each in rows:
        relative = "-" if each["relative"] is None else f"{100 * each['relative']:.3f} %"
        rank = "-" if each["effective_rank"] is None else f"{each['effective_rank']:.1f}"
        print(f"{each['name']:<{width}} {each['norm']:>10.4g} {relative:>9} {rank:>7} "
              f"{100 * each['moved']:>6.1f} %  {each['size']}")  # fmt: skip
    print("norm: of the change; relative: to the untrained weights; rank: effective rank of the change, mean "
          "over matrices;\nmoved: share of the parameters that differ.")  # fmt: skip


def print_revert(name: str, folder: Path, as_json: bool) -> None:
    node = lineage.find(name, folder, alone=True)
    left = moves.revert(node)
    if as_json:
        print(json.dumps({"run": str(node.run), "node": node.id, "set_aside": [each.id for each in left]}))
        return
    stages = ", ".join(f"{each.stage} ({each.id})" for each in left)
    print(f"{node.run} is at {node.id} ({node.stage})" + (f"; set aside: {stages}" if left else ""))
    print("The next `lifelong run` goes on from there. Nothing was deleted: `lifelong revert` to a node that "
          "was set aside brings it back, `lifelong gc` frees what no tag holds.")  # fmt: skip


def print_branch(name: str, target: Path, folder: Path, as_json: bool) -> None:
    node = lineage.find(name, folder)
    moves.branch(node, target)
    if as_json:
        print(json.dumps({"folder": str(target), "node": node.id}))
    else:
        print(f"{target} is at {node.id} ({node.stage}) and shares its files with {node.home}; go on with: "
              f"lifelong run STREAM_FILE output={target}")  # fmt: skip


def print_tag(name: str, label: str | None, delete: bool, folder: Path, as_json: bool) -> None:
    if delete:
        id, label = moves.untag(label or name, lineage.history([folder])), label or name
    else:
        node = lineage.find(name, folder)
        moves.tag(node, label, lineage.around(node, folder))
        id = node.id
    if as_json:
        print(json.dumps({"tag": label, "node": id, "deleted": delete}))
    else:
        print(f"tag {label} removed from {id}" if delete else f"tag {label} names {id}")


def print_garbage(folders: Sequence[Path], yes: bool, as_json: bool) -> None:
    known = lineage.history(folders)
    found = moves.free(known) if yes else moves.garbage(known)
    if as_json:
        told = [{"id": each.id, "folder": str(each.folder)} for each in found.nodes]
        print(json.dumps({"freed": yes, "nodes": told, "folders": list(map(str, found.folders)),
                          "bytes": found.num_bytes}))  # fmt: skip
        return
    for each in found.folders:
        ids = [node.id for node in found.nodes if node.folder == each]
        print(f"{ids[0] if ids else 'unfinished':<12}  {each}")
    verb = "freed" if yes else "would free"
    what = f"{len(found.nodes)} node{'s' * (len(found.nodes) != 1)}, {size(found.num_bytes)}"
    print(f"{verb} {what}" + ("" if yes or not found.folders else "; add --yes to do it"))


def size(num_bytes: int) -> str:
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.1f} KiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.2f} GiB"
