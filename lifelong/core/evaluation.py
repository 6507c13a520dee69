"""Judging a model on all evaluation sets, and the numbers that follow."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lifelong.core import discover
from lifelong.core.axes import Answer, AnswerMetric, Diagnostic, MatrixMetric
from lifelong.core.composition import snake
from lifelong.core.encoding import place
from lifelong.core.life import Life
from lifelong.core.matrix import AccuracyMatrix, GeneralSet
from lifelong.core.stream import EvalSet, Stream
from lifelong.errors import UserError
from lifelong.numerics.intervals import bootstrap_interval
from lifelong.numerics.swap import evaluating
from lifelong.store.files import read_json
from lifelong.store.run import RunFolder

VISIBLE = {
    "task": "Each row was answered among the labels of its own task: the task's identity was visible at "
    "test time.",
    "seen": "Each row was answered among the labels of all stages trained so far (never fewer than its own "
    "task's): the task's identity was visible only through the wording of its prompt.",
    "all": "Each row was answered among all labels of the stream, also those of stages still to come: the "
    "task's identity was visible only through the wording of its prompt.",
}


def candidates(stream: Stream, each: EvalSet, row: int) -> tuple[str, ...]:
    """Labels that an answer is chosen from, after `row` stages."""
    if not each.labels or stream.candidates == "task":
        return each.labels
    if any(each is general for general in stream.general):  # labels of its own, never taught
        return each.labels
    known = stream.labels(row) if stream.candidates == "seen" else stream.labels()
    return tuple(dict.fromkeys((*known, *each.labels)))


def judge(model: Any, each: EvalSet, labels: Sequence[str]) -> tuple[dict[str, Any], list[Answer]]:
    """Figure, interval and answers of one evaluation set."""
    training = model.network.training
    model.network.eval()
    try:
        with torch.no_grad():
            answers = model.answers(each.objective, each.rows, labels)
    finally:
        model.network.train(training)
    for number, answer in enumerate(answers):
        if math.isnan(answer.log_likelihood):
            raise UserError(
                f"evaluation set {each.name}, {place(each.rows[number], number)}: the model's answer has the "
                "likelihood nan, so the model has diverged. Lower the learning rate; what earlier stages "
                "learned is kept."
            )
    value = each.metric.value(answers)
    scores = each.metric.scores(answers)
    by_tokens = each.metric.unit == ""  # perplexity: rows weigh by their tokens
    low, high = bootstrap_interval(scores, seed=0, weights=[a.tokens for a in answers] if by_tokens else None)
    if by_tokens:
        low, high = sorted((math.exp(-low), math.exp(-high)))
    return {
        "name": each.name, "metric": snake(each.metric), "unit": each.metric.unit, "value": value,
        "benefit": each.metric.benefit(value), "count": len(answers), "low": low, "high": high,
    }, answers  # fmt: skip


def measure(
    life: Life, folder: RunFolder, row: int, listen: Any, diagnostics: Sequence[Diagnostic] = ()
) -> None:
    """Write the evaluation of the model as it stands: row 0 before training, row k after stage k."""
    life.accelerator.wait_for_everyone()  # nobody still asks what the folder holds
    stream, cost = life.stream, {}
    if row:
        cost = {"name": stream.stages[row - 1].name, **life.spent, **life.sizes()}
        folder.write(row, "cost.json", cost)
    sets = [(task, each) for task, each in stream.columns()] + [(None, each) for each in stream.general]
    begun, found, lines = time.perf_counter(), [], []
    for number, (task, each) in enumerate(sets):
        with life.autocast(), life.serving():
            result, answers = judge(life.model, each, candidates(stream, each, row))
        found.append(result | {"task": task, "general": task is None})
        scores = each.metric.scores(answers)
        lines += [
            {"set": each.name, "row": i, "score": score, **plain(answer)}
            for i, (answer, score) in enumerate(zip(answers, scores, strict=True))
        ]
        listen(_event(row, number + 1, len(sets), each.name))
    if row and diagnostics:
        told = diagnose(life, diagnostics, history(stream, folder, row, found))
        folder.write(row, "diagnostics.json", told)
    seconds = time.perf_counter() - begun
    if row:
        folder.write(row, "cost.json", cost | {"evaluation_seconds": seconds})
    folder.write_evaluation(row, {"stage": cost.get("name"), "seconds": seconds, "sets": found}, lines)
    life.accelerator.wait_for_everyone()  # it is there for all


def glance(life: Life) -> dict[str, float]:
    """Figures, more is better, of the sets whose stage has begun, in the midst of a stage; not of those
    that are being erased or have been.
    """
    stream, row = life.stream, life.stage + 1
    current = stream.current(row)
    with life.autocast(), life.serving():
        return {
            each.name: judge(life.model, each, candidates(stream, each, row))[0]["benefit"]
            for _, each in stream.columns()
            if each.name in current
        }


def history(
    stream: Stream, folder: RunFolder, rows: int, last: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Evaluations of the first `rows` stages, as diagnostics see them; `last` are the newest sets."""
    log, found = folder.read_log(), []
    for index in range(rows):
        sets = last if index == rows - 1 else read_json(folder.stage(index + 1) / "evaluation.json")["sets"]
        steps = read_json(folder.stage(index + 1) / "cost.json")["steps"]
        for line in log:
            if line["stage"] == index and "values" in line and line["step"] + 1 < steps:
                found.append({"stage": index, "step": line["step"] + 1, "values": line["values"]})
        current = stream.current(index + 1)
        values = {s["name"]: s["benefit"] for s in sets if not s["general"] and s["name"] in current}
        found.append({"stage": index, "step": steps, "values": values})
    return found


def diagnose(
    life: Life, diagnostics: Sequence[Diagnostic], evaluations: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What every diagnostic says of the model as it stands."""
    life.ensure_rows()
    context = replace(life.context(boundary=True), history=evaluations)
    found = []
    for each in diagnostics:
        with evaluating(life.network), life.serving():
            figures = each.measure(context)
        found.append({"id": snake(each), "title": each.title, "better": each.better, "figures": figures})
    return {"stage": life.stream.stages[life.stage].name, "diagnostics": found}


def plain(answer: Answer) -> dict[str, Any]:
    """An answer as JSON keeps it: an impossible reference has no finite likelihood."""
    finite = math.isfinite(answer.log_likelihood)
    return answer._asdict() | {"log_likelihood": answer.log_likelihood if finite else None}


def _event(row: int, done: int, total: int, text: str) -> Any:
    from lifelong.core.engine import Event

    return Event("evaluation", row, done, total, text=text)


def direction(metric: AnswerMetric) -> str:
    """Is more of the figure better?"""
    return "higher" if metric.benefit(2.0) > metric.benefit(1.0) else "lower"


def matrix_of(stream: Stream, evaluations: Sequence[dict[str, Any]]) -> AccuracyMatrix:
    """The accuracy matrix of the evaluations so far; the first is the untrained model's."""
    columns = stream.columns()
    table = [[entry["benefit"] for entry in e["sets"] if not entry["general"]] for e in evaluations]
    general = [
        GeneralSet(name=each.name, metric=snake(each.metric), better=direction(each.metric),
                   values=tuple(e["sets"][len(columns) + i]["value"] for e in evaluations))
        for i, each in enumerate(stream.general)
    ]  # fmt: skip
    return AccuracyMatrix(
        columns=tuple(each.name for _, each in columns),
        values=tuple(tuple(row) for row in table[1:]),
        untrained=tuple(table[0]),
        taught=tuple(task for task, _ in columns),
        erased=tuple(stream.erased_from(each) for _, each in columns),
        sizes=tuple(len(each.rows) for _, each in columns),
        units=tuple(each.metric.unit for _, each in columns),
        general=tuple(general),
    )


def metrics_of(matrix: AccuracyMatrix) -> list[dict[str, Any]]:
    """Every matrix metric there is, with its formula."""
    found = []
    for name in discover.names("metrics"):
        cls = discover.load(name, "metrics")
        if issubclass(cls, MatrixMetric):
            found.append({"id": name, "title": cls.title, "value": cls().value(matrix),
                          "formula": cls.formula, "better": cls.better})  # fmt: skip
    return found


def lost(folder: RunFolder, row: int) -> UserError:
    return UserError(
        f"{folder.stage(row)} has lost its evaluation, though later stages have theirs. Remove it and the "
        "folders of all later stages, and run the same command again."
    )


def summarise(stream: Stream, folder: RunFolder) -> dict[str, Any]:
    """Write and return summary.json from the evaluations in the folder."""
    done = [row for row in range(len(stream.stages) + 1) if folder.has(row, "evaluation.json")]
    for row, next_row in zip(done, done[1:], strict=False):
        if next_row > row + 1:
            raise lost(folder, row + 1)
    evaluations = [read_json(folder.stage(row) / "evaluation.json") for row in done]
    if not evaluations:
        raise UserError(f"{folder.path} holds no evaluation yet.")
    matrix = matrix_of(stream, evaluations)
    summary = {
        "finished": len(evaluations) == len(stream.stages) + 1,
        "visible": VISIBLE[stream.candidates],
        "matrix": matrix.to_dict(),
        "metrics": metrics_of(matrix),
    }
    folder.write_summary(summary)
    return summary
