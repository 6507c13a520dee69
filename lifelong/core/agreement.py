"""Do stream, methods and model go together? Asked before anything is trained."""

from collections.abc import Iterator

from lifelong.core.axes import Objective
from lifelong.core.composition import Methods, snake
from lifelong.core.model import Model
from lifelong.core.stream import Stream
from lifelong.errors import UserError


def check_objectives(stream: Stream, methods: Methods) -> None:
    """Raise UserError where an objective and a penalty or memory cannot work together."""
    for stage in stream.stages:
        packs = any(part.objective.packed_tokens is not None for part in (stage.parts or (stage,)))
        if methods.replay is not None and methods.replay.keep == "text" and packs:
            raise UserError(
                f"stage {stage.name}: rows are packed into blocks, so the memory cannot keep them as text. "
                "Set the memory's keep to tokens, or the objective's pack to false."
            )
        if not stage.objective.hides_old_labels:
            continue
        for penalty in methods.penalties:
            if penalty.needs_outputs:
                raise UserError(
                    f"stage {stage.name}: {snake(penalty)} compares answers for old labels, which the "
                    "objective hides on new rows (mask_old). Set mask_old to false, or leave the penalty out."
                )


def check_kinds(stream: Stream, model: Model, trains: bool = True) -> None:
    """Raise UserError where an objective asks for what this kind of model cannot do. With `trains`
    false only the evaluation sets count.
    """
    for where, objective in _objectives(stream, trains):
        if model.kind not in objective.kinds:
            kinds = ", ".join(kind.replace("_", "-") for kind in objective.kinds)
            kind = model.kind.replace("_", "-")
            raise UserError(
                f"{where}: {snake(objective)} works with these kinds of models: {kinds}; "
                f"{model.name or 'this one'} is of the kind {kind}. Take another objective or model."
            )


def check_head(stream: Stream, methods: Methods, model: Model) -> None:
    """Raise UserError where a learner in closed form has no linear head to write."""
    if methods.analytic is None:
        return
    for stage in stream.stages:
        for part in stage.parts or (stage,):
            if not part.objective.has_linear_head(model):
                raise UserError(
                    f"stage {part.name}: {snake(methods.analytic)} computes a linear head, which "
                    f"{snake(part.objective)} on {model.name or 'this model'} does not decide by. Use "
                    "classification with head: linear."
                )


def _objectives(stream: Stream, trains: bool) -> Iterator[tuple[str, Objective]]:
    for stage in stream.stages if trains else ():
        for part in stage.parts or (stage,):
            yield f"stage {part.name}", part.objective
    for _, each in stream.columns():
        yield f"evaluation set {each.name}", each.objective
    for each in stream.general:
        yield f"general set {each.name}", each.objective
