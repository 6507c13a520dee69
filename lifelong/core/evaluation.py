"""Judging a model on all evaluation sets, and the numbers that follow."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch

from lifelong.core import discover
from lifelong.core.axes import Answer, AnswerMetric, Diagnostic, MatrixMetric, Row
from lifelong.core.composition import snake
from lifelong.core.encoding import place
from lifelong.core.life import Life
from lifelong.core.matrix import AccuracyMatrix, GeneralSet
from lifelong.core.stream import EvalSet, Stream
from lifelong.errors import UserError
from lifelong.numerics.intervals import bootstrap_interval
from lifelong.numerics.swap import evaluating
from lifelong.store.content import digest, row_digest, rows_digest
from lifelong.store.files import read_json
from lifelong.store.run import RunFolder

VISIBLE = {
    "task": "Each row was answered among the labels of its own task: the task's identity was visible at "
    "test time.",
    "seen": "Each row was answered among the labels of all stages trained so far (never fewer than its own "
    "task's): the task's identity was visible only through the wording of its prompt.",
    "none": "No row had candidates to choose from: answers are free text, and the task's identity was "
    "visible as far as the prompts tell it.",
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


@contextmanager
def answering(life: Life) -> Iterator[None]:
    """The model as its tuner means it to be used; features are kept where the tuner keeps the body."""
    model = life.model
    with life.autocast(), life.serving():
        model.still = life.methods.tuner.keeps_body
        try:
            yield
        finally:
            model.still = False


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


def identity(each: EvalSet) -> str:
    """Fingerprint of a set: its rows, how they are asked and how answers are judged."""
    asked = [[snake(part), asdict(part)] for part in (each.objective, each.metric)]
    return digest([rows_digest(each.rows), *asked, list(each.labels)])[:16]


def entry_of(name: str, data: str, evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """What an evaluation says of a set of this identity; None where none like it was judged."""
    found = next((entry for entry in evaluation["sets"] if entry["name"] == name), None)
    return found if found and found.get("data", data) == data else None


def so_far(folder: RunFolder, row: int) -> dict[str, Any]:
    """The evaluation of a row; no sets where there is none, or a damaged one."""
    done = folder.judged(row)
    return read_json(folder.stage(row) / "evaluation.json") if done else {"seconds": 0.0, "sets": []}


def lacking(stream: Stream, evaluation: dict[str, Any]) -> list[tuple[int | None, EvalSet]]:
    """Evaluation sets that a model was not judged on, with their tasks: all of them at first, later those
    that came with an extension of the stream.
    """
    sets = [*stream.columns(), *((None, each) for each in stream.general)]
    return [(task, each) for task, each in sets if entry_of(each.name, identity(each), evaluation) is None]


def is_due(stream: Stream, folder: RunFolder, row: int) -> bool:
    """Is there a set that the model of a row has yet to be judged on?"""
    return not folder.judged(row) or bool(lacking(stream, so_far(folder, row)))


def measure(
    life: Life, folder: RunFolder, row: int, listen: Any, diagnostics: Sequence[Diagnostic] = ()
) -> None:
    """Judge the model as it stands, on what it was not judged on yet: row 0 before training, row k after
    stage k.
    """
    stream, begun, cost = life.stream, time.perf_counter(), {}
    known = so_far(folder, row)
    sets = lacking(stream, known)
    again = {each.name for _, each in sets}
    found = [each for each in known["sets"] if each["name"] not in again]
    lines = [each for each in (folder.read_answers(row) if found else ()) if each["set"] not in again]
    life.accelerator.wait_for_everyone()  # nobody still asks what the folder holds
    if row:
        cost = {"name": stream.stages[row - 1].name, **life.spent, **life.sizes()}
        folder.write(row, "cost.json", cost)
    for number, (task, each) in enumerate(sets):
        with answering(life):
            result, answers = judge(life.model, each, candidates(stream, each, row))
        found.append(result | {"task": task, "general": task is None, "data": identity(each)})
        lines += _lines(each, answers, row)
        listen(_event(row, number + 1, len(sets), each.name))
    if row and diagnostics and not (known["sets"] and folder.has(row, "diagnostics.json")):
        told = diagnose(life, diagnostics, history(stream, folder, row, found))
        folder.write(row, "diagnostics.json", told)
    seconds = known["seconds"] + time.perf_counter() - begun
    if row:
        folder.write(row, "cost.json", cost | {"evaluation_seconds": seconds})
    about = {"stage": cost.get("name"), "seconds": seconds, "labels": len(stream.labels())}
    folder.write_evaluation(row, about | {"sets": found}, lines)
    folder.seal(row)
    life.accelerator.wait_for_everyone()  # it is there for all


def _lines(each: EvalSet, answers: Sequence[Answer], row: int) -> list[dict[str, Any]]:
    """One line per answer. Rows go by their content; what was asked stands in row 0 alone."""
    scores = each.metric.scores(answers)
    found = []
    for i, (asked, answer, score) in enumerate(zip(each.rows, answers, scores, strict=True)):
        about = {"set": each.name, "row": i, "id": row_digest(asked), "score": score}
        about |= {} if row else {"input": glimpse(asked)}
        found.append(about | plain(answer))
    return found


def glimpse(row: Row) -> str:
    """The beginning of what a row asks, for people who look at single answers."""
    text = row.get("prompt", row.get("text", ""))
    if "messages" in row:
        asked = [each["content"] for each in row["messages"] if each["role"] == "user"]
        text = asked[-1] if asked else ""
    return " ".join(text.split())[:160] if isinstance(text, str) else ""


def glance(life: Life) -> dict[str, float]:
    """Figures, more is better, of the sets whose stage has begun, in the midst of a stage; not of those
    that are being erased or have been.
    """
    stream, row = life.stream, life.stage + 1
    current = stream.current(row)
    with answering(life):
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
    context = replace(life.context(boundary=True), history=evaluations, stream=life.stream)
    found = []
    for each in diagnostics:
        with evaluating(life.network), life.serving():
            figures = each.measure(context)
        about = {"id": snake(each), "title": each.title, "better": each.better}
        found.append(about | {"figures": figures, "brief": each.brief(figures)})
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
    table = zip(*(_figures(each, evaluations, "benefit") for _, each in columns), strict=True)
    table = list(table) or [()] * len(evaluations)
    general = [
        GeneralSet(name=each.name, metric=snake(each.metric), better=direction(each.metric),
                   values=tuple(_figures(each, evaluations, "value")))
        for each in stream.general
    ]  # fmt: skip
    return AccuracyMatrix(
        columns=tuple(each.name for _, each in columns),
        values=tuple(table[1:]),
        untrained=table[0],
        taught=tuple(task for task, _ in columns),
        erased=tuple(stream.erased_from(each) for _, each in columns),
        sizes=tuple(len(each.rows) for _, each in columns),
        units=tuple(each.metric.unit for _, each in columns),
        general=tuple(general),
    )


def _figures(each: EvalSet, evaluations: Sequence[dict[str, Any]], key: str) -> list[float | None]:
    """One figure of a set from every evaluation; None where it was not judged, or with other rows."""
    data = identity(each)
    entries = [entry_of(each.name, data, evaluation) for evaluation in evaluations]
    return [None if entry is None else entry[key] for entry in entries]


def metrics_of(matrix: AccuracyMatrix) -> list[dict[str, Any]]:
    """Every matrix metric there is, with its formula."""
    found = []
    for name in discover.names("metrics"):
        cls = discover.load(name, "metrics")
        if issubclass(cls, MatrixMetric):
            found.append({"id": name, "title": cls.title, "value": cls().value(matrix),
                          "formula": cls.formula, "better": cls.better})  # fmt: skip
    return found


def visible(stream: Stream, evaluations: Sequence[dict[str, Any]]) -> str:
    """What an answer could be told from."""
    if not any(each.labels for stage in stream.stages for each in stage.evals):
        return VISIBLE["none"]
    text = VISIBLE[stream.candidates]
    if stream.candidates == "all" and len({each.get("labels") for each in evaluations}) > 1:
        text += " The stream was extended: stages before that were judged among the labels that it had then."
    return text


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
        "visible": visible(stream, evaluations),
        "matrix": matrix.to_dict(),
        "metrics": metrics_of(matrix),
    }
    folder.write_summary(summary)
    return summary
