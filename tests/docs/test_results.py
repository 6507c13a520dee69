"""The bench files of docs/results are ones that `lifelong bench` takes, and their tables are of them."""

import csv
import re
from pathlib import Path

import pytest
import yaml

from lifelong.core import discover
from lifelong.streams import bench_file

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FILES = sorted(file for file in RESULTS.glob("*.yaml") if not file.name.endswith(".tuned.yaml"))
LEARNS = (
    "tuners",
    "penalties",
    "replay",
    "mixing",
    "mergers",
    "analytic",
    "unlearning",
    "schedules",
    "recipes",
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_bench_file_is_taken(file):
    found = bench_file.read(file, freeze=False)
    assert found.settings.name == file.stem and len(found.cells) >= 2 * len(found.settings.methods)


TABLES = sorted(file for file in RESULTS.glob("*.csv") if not file.stem.endswith(".diagnostics"))


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_a_table_has_the_lines_of_its_bench_file_and_all_their_runs(file):
    content = yaml.safe_load(file.with_suffix(".yaml").read_text())
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert {row["label"] for row in rows} >= set(content["methods"])
    assert all(row["runs"] == row["planned"] != "0" and not row["problem"] for row in rows)


def test_every_method_that_learns_has_a_line():
    text = "".join(yaml.safe_dump(yaml.safe_load(file.read_text())["methods"]) for file in FILES)
    for axis in LEARNS:
        for name in set(discover.names(axis)) - {"linear"}:  # the schedule of all other lines
            assert re.search(rf"\b{name}\b", text), f"{axis}: {name}"
