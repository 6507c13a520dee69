"""Judging any model on the evaluation sets of a stream."""

from typing import Any

from lifelong.core import evaluation
from lifelong.core.model import Model
from lifelong.core.stream import Stream
from lifelong.models import compute


def judge_stream(model: Model, stream: Stream, precision: str) -> list[dict[str, Any]]:
    """One entry per evaluation set, in stream order, then the general ones. The candidates of a
    labelled set are those of a model that has seen the whole stream.
    """
    found = []
    for task, each in [*stream.columns(), *((None, g) for g in stream.general)]:
        labels = evaluation.candidates(stream, each, len(stream.stages))
        with compute.autocast(model.device, precision):
            result, _ = evaluation.judge(model, each, labels)
        found.append(result | {"task": task, "general": task is None})
    return found
