"""The embedded stream: five short classification tasks and two sets of general ability.

Its rows are in the folder `embedded/` beside this file; a stream file names one as
`embedded:reviews.train.jsonl`, so that a recorded configuration holds no path of a machine.
"""

from pathlib import Path
from typing import Any

PREFIX = "embedded:"
FOLDER = Path(__file__).resolve().parent / "embedded"

TEMPLATES = {  # the question names the task, never its labels
    "reviews": "Review: {text}\nHow does the writer feel about the product? Answer:",
    "mail": "Mail: {text}\nWhat kind of mail is this? Answer:",
    "author": "Sentence: {text}\nWho wrote it? Answer:",
    "century": "Speech: {text}\nIn which century was it said? Answer:",
    "origin": "Text: {text}\nWhere was it written? Answer:",
}
TWEETS = "Tweet: {text}\nIs the writer positive or negative? Answer:"


def template() -> str:
    """A commented stream file to start from."""
    return Path(__file__).resolve().with_name("template.yaml").read_text(encoding="utf-8")


def demo() -> Path:
    """The stream file of `lifelong demo`."""
    return Path(__file__).resolve().with_name("demo.yaml")


def path(name: str) -> Path:
    """The file that `embedded:<file>` names."""
    return FOLDER / name.removeprefix(PREFIX)


def stages() -> list[dict[str, Any]]:
    """What `stages: embedded` stands for."""
    return [
        {
            "name": name,
            "train": f"{PREFIX}{name}.train.jsonl",
            "eval": f"{PREFIX}{name}.test.jsonl",
            "objective": {"classification": {"template": template}},
        }
        for name, template in TEMPLATES.items()
    ]


def general() -> list[dict[str, Any]]:
    """What `general: embedded` stands for."""
    return [
        {"name": "prose", "data": f"{PREFIX}general_prose.test.jsonl", "objective": "causal_lm"},
        {
            "name": "tweets",
            "data": f"{PREFIX}general_tweets.test.jsonl",
            "objective": {"classification": {"template": TWEETS}},
        },
    ]
