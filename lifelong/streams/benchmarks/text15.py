"""The 15 text tasks of the long benchmark of language models, and the 4 of the standard one.

Orders 1-3 have four tasks (Zhang et al. 2015), orders 4-6 fifteen (Razdaibiedina et al. 2023,
arXiv:2301.12314; Wang et al. 2023, arXiv:2310.14152). The prompt is the one of those releases: it lists the
labels, and names the data set unless `dataset_name` is false, so that the task is visible at test time. They
select and report on the same rows; here `judge_on: validation` sets rows of the training split aside. A
task whose split is not the published one has `_adapted` in its name: never put it beside a
published figure unsaid.
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

TASKS = {  # name: (group, name in the prompt)
    "dbpedia": ("TC", "dbpedia"), "amazon": ("SC", "amazon"), "yahoo": ("TC", "yahoo"),
    "agnews": ("TC", "agnews"), "yelp": ("SC", "yelp"), "mnli": ("NLI", "MNLI"), "cb": ("NLI", "CB"),
    "rte": ("NLI", "RTE"),
    "qqp": ("QQP", "QQP"), "wic": ("WiC", "WiC"), "copa": ("COPA", "COPA"), "boolqa": ("BoolQA", "BoolQA"),
    "multirc": ("MultiRC", "MultiRC"), "imdb": ("SC", "IMDB"), "sst-2": ("SC", "SST-2"),
}  # fmt: skip
ORDERS = {
    1: "dbpedia amazon yahoo agnews",
    2: "dbpedia amazon agnews yahoo",
    3: "yahoo amazon agnews dbpedia",
    4: "mnli cb wic copa qqp boolqa rte imdb yelp amazon sst-2 dbpedia agnews multirc yahoo",
    5: "multirc boolqa wic mnli cb copa qqp rte imdb sst-2 dbpedia agnews yelp amazon yahoo",
    6: "yelp amazon mnli cb copa qqp rte imdb sst-2 dbpedia agnews yahoo multirc boolqa wic",
}
QUESTIONS = {  # COPA's rows ask by themselves
    "TC": "What is the topic of the following paragraph?",
    "SC": "What is the sentiment of the following paragraph?",
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"?',
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning?',
    "BoolQA": "According to the following passage, is the question true or false?",
    "MultiRC": "According to the following passage and question, is the candidate answer true or false?",
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both sentence?",
}


@dataclass(frozen=True, kw_only=True)
class Text15(Benchmark):
    """Fifteen text classification tasks in a published order."""

    needs: ClassVar[str] = (
        "one folder per task with train.jsonl and test.jsonl (text, label), or the folder CL_Benchmark of "
        "the repository cmnfriend/O-LoRA (GROUP/TASK/train.json, test.json or dev.json)"
    )
    licence: ClassVar[str] = "of the sources, research use"

    order: Annotated[int, Range(1, 6)] = 1  # 1-3: four tasks; 4-6: fifteen
    dataset_name: bool = True  # name the data set in the prompt

    def parts(self, folder: Path) -> list[Part]:
        place = self.local(folder)
        about = place / "tasks.json"
        told = json.loads(about.read_text(encoding="utf-8"))["tasks"] if about.is_file() else {}
        return self.limited(
            [self._part(name, place, told.get(name, {})) for name in ORDERS[self.order].split()]
        )

    def _part(self, name: str, place: Path, told: dict) -> Part:
        train, test = (self._rows(name, place, split) for split in ("train", "test"))
        found = {row["label"] for row in (*train, *test)}
        labels = tuple(told["labels"]) if found <= set(told.get("labels", ())) else tuple(sorted(found))
        train, test = self.judged(train, test)
        adapted = "_adapted" if str(told.get("split", "")).startswith("adapted") else ""
        objective = {"classification": {"template": template(name, labels, self.dataset_name)}}
        return Part(
            name=name + adapted, train=train, tests={name + adapted: test}, labels=labels, objective=objective
        )

    def _rows(self, name: str, place: Path, split: str) -> Rows:
        group, shown = TASKS[name]
        released = place / group / shown
        splits = ("test", "dev") if split == "test" else (split,)  # the released dev file is its test file
        for file in (place / name / f"{split}.jsonl", *(released / f"{each}.json" for each in splits)):
            if file.is_file():
                columns = {} if file.suffix == ".jsonl" else {"text": "sentence"}
                rows = read_rows(
                    Source(path=str(file.relative_to(place)), columns=columns), place, f"text15, {name}"
                )
                return [row for row in rows if row["label"] != "-"]  # MNLI: rows that nobody labelled
        raise self.lacks(f"{name}/{split}.jsonl")


def template(name: str, labels: tuple[str, ...], dataset_name: bool) -> str:
    """Prompt of one task; braces are doubled, as templates want them."""
    group, shown = TASKS[name]
    lines = [f"Task:{group}"] + [f"Dataset:{shown}"] * dataset_name
    if group in QUESTIONS:
        lines += [f"{QUESTIONS[group]} Choose one from the option.", f"Option: {', '.join(labels)} "]
    return "\n".join(lines).replace("{", "{{").replace("}", "}}") + "\n{text}\nAnswer:"
