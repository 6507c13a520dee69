"""Fifteen tasks of Super-NaturalInstructions (Wang et al. 2022, arXiv:2204.07705) in the published selection:
three each of dialogue, extraction, question answering, summaries and sentiment. Judged by ROUGE-L. The
released dev file is the test file, so `judge_on: validation` sets rows of the training split aside.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from lifelong.core.settings import Range
from lifelong.streams.benchmark import Benchmark
from lifelong.streams.config import Source
from lifelong.streams.data import read_rows
from lifelong.streams.scenarios import Part, Rows

ORDERS = {
    1: "1572 363 1290 181 002 1510 639 1729 073 1590 748 511 591 1687 875",
    2: "748 073 1590 639 1572 1687 591 363 1510 1729 181 511 002 1290 875",
}


@dataclass(frozen=True, kw_only=True)
class Superni15(Benchmark):
    """Fifteen instructions to follow, answered in free text."""

    needs: ClassVar[str] = (
        "one folder per task (task002_... and so on) with train.jsonl and test.jsonl (prompt, completion), "
        "and tasks.json (definition of every task)"
    )
    licence: ClassVar[str] = "Apache-2.0"

    order: Annotated[int, Range(1, 2)] = 1  # of the two published ones
    definition: bool = True  # the task's instruction stands before every prompt

    def parts(self, folder: Path) -> list[Part]:
        place = self.local(folder)
        about = place / "tasks.json"
        if self.definition and not about.is_file():
            raise self.lacks("tasks.json")
        told = json.loads(about.read_text(encoding="utf-8")) if self.definition else {}
        return self.limited([self._part(number, place, told) for number in ORDERS[self.order].split()])

    def _part(self, number: str, place: Path, told: dict) -> Part:
        folder = next(iter(sorted(place.glob(f"task{number}_*"))), None)
        if folder is None:
            raise self.lacks(f"folder task{number}_*")
        before = f"{told[folder.name]['definition']}\n\n" if self.definition else ""
        train, test = (self._rows(folder, split, before) for split in ("train", "test"))
        train, test = self.judged(train, test, labelled=False)
        return Part(
            name=folder.name, train=train, tests={folder.name: test}, objective={"sft": {}}, metric="rouge_l"
        )

    def _rows(self, folder: Path, split: str, before: str) -> Rows:
        file = folder / f"{split}.jsonl"
        if not file.is_file():
            raise self.lacks(f"{folder.name}/{file.name}")
        rows = read_rows(Source(path=file.name), folder, f"superni15, {folder.name}")
        return [{**row, "prompt": f"{before}{row['prompt']}\n"} for row in rows]
