"""What was learned and what was lost between two nodes, from the answers that they gave. No torch.

Rows are matched by their content, so that a set that has changed is noticed and only rows that both
models answered are compared. For every set: the difference of the means with its paired interval, as a
guard takes it, and the exact sign test (McNemar's, where an answer is right or wrong) on the rows that
became better or worse. P-values are of single sets: with 20 sets one falls below 0.05 by chance.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifelong.errors import UserError
from lifelong.numerics.intervals import paired_interval, sign_test
from lifelong.store.files import read_json
from lifelong.store.node import Node, stage_folders

Line = dict[str, Any]  # one answer


def compare(left: Node, right: Node, num_examples: int = 3) -> dict[str, Any]:
    """Sets that both nodes were judged on, in the order of the newer one, and what single answers became."""
    mine, theirs = _sets(left), _sets(right)
    lines, others = _answers(left), _answers(right)
    inputs = _inputs(left) | _inputs(right)
    found = []
    for name in dict.fromkeys([*theirs, *mine]):
        if name in mine and name in theirs:
            each = _compare_set(mine[name], theirs[name], lines.get(name, []), others.get(name, []))
            for key in ("learned", "lost"):
                each[key] = [_example(*pair, inputs) for pair in each[key][:num_examples]]
        else:
            side = "before" if name in mine else "after"
            each = {"name": name, "note": f"judged {side} alone", "general": (mine | theirs)[name]["general"]}
        found.append(each)
    return {"before": left.to_dict(), "after": right.to_dict(), "sets": found}


def _sets(node: Node) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in read_json(node.folder / "evaluation.json")["sets"]}


def _answers(node: Node) -> dict[str, list[Line]]:
    """Answers by set, in the order of the rows."""
    file, found = node.folder / "answers.jsonl", {}
    if not file.exists():
        raise UserError(f"{node.folder} has no answers.jsonl, so single answers cannot be compared.")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                answer = json.loads(line)
                found.setdefault(answer["set"], []).append(answer)
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{file}:{number} is damaged, since it is no answer.") from None
    return found


def _inputs(node: Node) -> dict[str, str]:
    """What rows ask, by their content; the evaluation of the untrained model keeps it."""
    first = stage_folders(node.run)[:1]
    file = first[0] / "answers.jsonl" if first else Path()
    if not file.is_file():
        return {}
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {each["id"]: each["input"] for each in lines if each.get("input")}


def _compare_set(
    mine: dict[str, Any], theirs: dict[str, Any], lines: Sequence[Line], others: Sequence[Line]
) -> dict[str, Any]:
    found = {"name": theirs["name"], "general": theirs["general"], "metric": theirs["metric"],
             "unit": theirs["unit"], "learned": [], "lost": []}  # fmt: skip
    if mine["metric"] != theirs["metric"]:
        return found | {"note": f"judged by {mine['metric']} before and by {theirs['metric']} after"}
    if not all("score" in each for each in (*lines, *others)):
        note = "an older version kept no scores of single answers"
        return found | {"before": mine["value"], "after": theirs["value"], "note": note}
    pairs = _pairs(lines, others)
    if not pairs:
        return found | {"note": "the set has changed: no row is in both"}
    if len(pairs) < max(len(lines), len(others)):
        found["note"] = (
            f"the set has changed: {len(pairs)} rows are in both, {len(lines) - len(pairs)} before only, "
            f"{len(others) - len(pairs)} after only"
        )
    pooled = theirs["unit"] == ""  # perplexity: rows weigh by their tokens
    weights = [b["tokens"] if pooled else 1 for _, b in pairs]
    scores = [[pair[i]["score"] for pair in pairs] for i in (0, 1)]
    changes = [b - a for a, b in zip(*scores, strict=True)]
    interval = paired_interval(scores[1], scores[0], bound=None if pooled else 1.0, weights=weights)
    low, high = (end if math.isfinite(end) else None for end in interval[1:3])  # one row gives no bound
    moved = sorted((p for p in zip(changes, pairs, strict=True) if p[0]), key=lambda p: -abs(p[0]))
    before, after = (_mean(each, weights) for each in scores)
    better, worse = ([pair for change, pair in moved if side * change > 0] for side in (1, -1))
    return found | {
        "before": math.exp(-before) if pooled else before, "after": math.exp(-after) if pooled else after,
        "difference": after - before, "low": low, "high": high, "rows": len(pairs),
        "better": len(better), "worse": len(worse), "p_value": sign_test(len(better), len(worse)),
        "learned": better, "lost": worse,
    }  # fmt: skip


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _pairs(lines: Sequence[Line], others: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Answers to the same row; a row that stands in a set twice is paired in order."""
    waiting: dict[str, list[Line]] = {}
    for line in reversed(lines):
        waiting.setdefault(line["id"], []).append(line)
    return [(waiting[b["id"]].pop(), b) for b in others if waiting.get(b["id"])]


def _example(before: Line, after: Line, inputs: dict[str, str]) -> dict[str, Any]:
    about = {"row": after["row"], "id": after["id"], "input": inputs.get(after["id"], "")}
    return about | {
        "references": after["references"],
        "before": before["prediction"], "after": after["prediction"],
        "score_before": before["score"], "score_after": after["score"],
    }  # fmt: skip
