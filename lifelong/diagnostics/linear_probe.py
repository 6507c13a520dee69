"""A linear probe of every task so far: is what the model no longer answers forgotten, or hidden?

    probe(task) = answers of a linear discriminant, fitted to the current model's frozen features of rows
                  of the task's training data, judged on the task's evaluation rows
    model(task) = the model's own answers on the same evaluation rows

If the model has fallen and the probe has not, the features still tell the labels apart and a head or
a few rows bring the task back; if both have fallen, it is gone (Davari et al. 2022, arXiv:2203.13381).
Features are of the prompt alone: the last token's (decoders), the mean over tokens (encoders; of an
encoder-decoder the encoder's), the first token's (vision).

It reads training rows of earlier stages, which a method may not have: it measures and teaches nothing.
Those rows are drawn once and are the same after every stage; rows that a stage has erased are never
read. Tasks without a set of labels are left out, and so are sets that a stage erases. The probe
chooses among the labels of its task; the model among those that the stream's `candidates` says, so
that like is compared with like under `candidates: task`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core import head, prompts
from lifelong.core.axes import Answer, Context, Diagnostic, Row
from lifelong.core.matrix import by_ending
from lifelong.core.settings import Range
from lifelong.core.stream import Stage
from lifelong.numerics import class_sums, discriminant


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Diagnostic):
    """Tell what is forgotten from what is hidden, by a probe of the features for every task so far."""

    paper: ClassVar[str] = "Davari et al. 2022, arXiv:2203.13381"
    cost: ClassVar[str] = (
        "a forward pass over num_examples training rows and the evaluation rows of every task so far, after "
        "each stage; grows with the tasks"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "answers as scikit-learn's discriminant analysis on the same features",
        "a model whose answers are turned round keeps its probe; one whose features collapse loses it",
        "reads only the rows that it says; the prompt alone, never the label",
        "changes no bit of a run",
    )
    title: ClassVar[str] = "Linear probe of earlier tasks"
    better: ClassVar[str] = "higher"

    num_examples: Annotated[int, Range(2)] = 256  # training rows of each task, at most
    shrinkage: Annotated[float, Range(0, 1)] = 0.1  # share of the identity in the covariance; 0 is none

    def measure(self, context: Context) -> dict[str, float]:
        figures = context.history[-1]["values"] if context.history else {}
        known, found = context.stream.current(context.stage + 1), {}
        for task in context.stream.tasks(context.stage + 1):
            judged = [each for each in task.evals if each.name in known and each.labels]
            if not task.labels or not judged:
                continue
            weight, bias = self._fitted(context, task)
            for each in judged:
                scores = features(context, task, each.rows) @ weight.T + bias
                found[f"{each.name} probe"] = each.metric.benefit(
                    each.metric.value(_answers(scores, each.rows, task.labels))
                )
                if each.name in figures:
                    found[f"{each.name} model"] = figures[each.name]
        return found

    def brief(self, figures: dict[str, float]) -> dict[str, float]:
        """Means over tasks."""
        return by_ending(figures, "probe", "model")

    def _fitted(self, context: Context, task: Stage) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(task.rows), generator=torch.Generator().manual_seed(0))
        rows = [task.rows[i] for i in order[: self.num_examples].tolist()]
        seen = features(context, task, rows)
        labels = torch.tensor([task.labels.index(str(row["label"])) for row in rows])
        zero = torch.zeros(0, dtype=torch.float64), torch.zeros(0, seen.shape[1], dtype=torch.float64)
        sums = [class_sums.padded(each, len(task.labels)) for each in class_sums.add(*zero, seen, labels)]
        return discriminant.head(*sums, seen.T @ seen, self.shrinkage)


def features(context: Context, task: Stage, rows: Sequence[Row]) -> Tensor:
    """(N, H) float64 on the CPU."""
    model = context.model
    examples = prompts.of_rows(task.objective, rows, model, task.labels)
    with torch.no_grad(), context.autocast():
        found = [
            head.features(model.network, batch, "auto").double().cpu()
            for batch in prompts.batches(examples, model, model.window)
        ]
    return torch.cat(found)


def _answers(scores: Tensor, rows: Sequence[Row], labels: Sequence[str]) -> list[Answer]:
    likelihoods = scores.log_softmax(1)
    return [
        Answer(labels[best], (str(row["label"]),), float(each[labels.index(str(row["label"]))]), 1)
        for row, each, best in zip(rows, likelihoods, scores.argmax(1).tolist(), strict=True)
    ]
