"""Conjugate prompting: does a lost ability come back under a prompt unlike the data of tuning?

    plain(set) = figure of the set as it is asked
    mean(set), best(set) = figures over `templates`, each of which is put around what a row asks

Kotha, Springer and Raghunathan 2023, arXiv:2309.10105: tuning teaches above all which task a prompt is
taken for, so a prompt that asks the same but looks unlike the tuning data can bring an earlier ability
back (they translate prompts). Judged are the sets of earlier tasks and the general ones, plain and
wrapped on the same rows, after every stage. A figure that rises under a template was hidden; `best` is
chosen on the rows that it is told of, so that it flatters: look at `mean` beside it, and at the stage
at which the task was taught.

What is wrapped is the column `prompt`, the last user message, or the `text` of a row with a label (inside
the objective's own template). Sets of free text and images ask nothing, and are left out. The templates
here are in French and German and in mark-up, which needs no translator; give your own to say more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch

from lifelong.core.axes import Context, Diagnostic, Row
from lifelong.core.encoding import Template, parse_template
from lifelong.core.evaluation import candidates, judge
from lifelong.core.matrix import by_ending
from lifelong.core.settings import Range
from lifelong.core.stream import EvalSet
from lifelong.errors import UserError

SETTING = "ConjugatePrompting.templates"


@dataclass(frozen=True, kw_only=True)
class ConjugatePrompting(Diagnostic):
    """Ask earlier tasks and general abilities again under prompts unlike the data of tuning."""

    paper: ClassVar[str] = "Kotha et al. 2023, arXiv:2309.10105"
    cost: ClassVar[str] = (
        "an evaluation of num_examples rows of every earlier and general set, once plain and once for each "
        "template, after each stage; grows with the tasks"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "a model that answers under one template only is found out; figures equal hand counts",
        "the template {prompt} gives the plain figure",
        "only what a row asks is wrapped: labels, completions and other turns stay",
        "changes no bit of a run",
    )
    title: ClassVar[str] = "Recovery under other prompts (conjugate prompting)"
    better: ClassVar[str] = "higher"

    num_examples: Annotated[int, Range(1)] = 64  # rows of each evaluation set, at most; always the same
    templates: tuple[str, ...] = (
        "Voici un texte :\n\n{prompt}\n\n",
        "Es folgt ein Text.\n\n{prompt}\n\n",
        "<blockquote>\n{prompt}\n</blockquote>",
    )  # texts that contain {prompt}, which stands for what a row asks

    def __post_init__(self) -> None:
        super().__post_init__()
        for template in self.templates:
            if parse_template(template, SETTING).columns != ["prompt"]:
                raise UserError(f"{SETTING}: each must contain {{prompt}} once; got {template!r}.")
        if not self.templates:
            raise UserError(f"{SETTING} must name at least one text that contains {{prompt}}; got none.")

    def measure(self, context: Context) -> dict[str, float]:
        found = {}
        for each in _asked(context):
            order = torch.randperm(len(each.rows), generator=torch.Generator().manual_seed(0))
            rows = [each.rows[i] for i in sorted(order[: self.num_examples].tolist())]
            wrapped = [
                _figure(context, each, [moved(row, parse_template(template, SETTING)) for row in rows])
                for template in self.templates
            ]
            found[f"{each.name} plain"] = _figure(context, each, rows)
            found[f"{each.name} mean"] = sum(wrapped) / len(wrapped)
            found[f"{each.name} best"] = max(wrapped)
        return found

    def brief(self, figures: dict[str, float]) -> dict[str, float]:
        """Means over sets."""
        return by_ending(figures, "plain", "mean", "best")


def _asked(context: Context) -> list[EvalSet]:
    """Sets of earlier stages, and general ones, whose rows ask something."""
    stream = context.stream
    current = stream.current(context.stage)  # of what is taught before this stage
    kept = stream.current(context.stage + 1)  # and not erased in it
    earlier = [each for _, each in stream.columns() if each.name in current and each.name in kept]
    return [each for each in (*earlier, *stream.general) if all(asks(row, each) for row in each.rows)]


def asks(row: Row, judged: EvalSet) -> bool:
    """Is part of what is read of the row a question, apart from what it is answered with?"""
    read = [names for names in judged.objective.columns if all(name in row for name in names)]
    return any({"prompt", "messages"} & set(names) or {"text", "label"} <= set(names) for names in read)


def moved(row: Row, template: Template) -> Row:
    """The row with the template around what it asks."""
    if "messages" in row:
        last = max(i for i, turn in enumerate(row["messages"]) if turn["role"] == "user")
        turns = [dict(turn) for turn in row["messages"]]
        turns[last]["content"] = template.fill({"prompt": turns[last]["content"]}, SETTING)
        return {**row, "messages": turns}
    column = "prompt" if "prompt" in row else "text"
    return {**row, column: template.fill({"prompt": row[column]}, SETTING)}


def _figure(context: Context, each: EvalSet, rows: Sequence[Row]) -> float:
    labels = candidates(context.stream, each, context.stage + 1)
    with context.autocast():
        return judge(context.model, replace(each, rows=rows), labels)[0]["benefit"]
