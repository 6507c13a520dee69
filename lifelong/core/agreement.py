"""Do stream, methods and model go together? Asked before anything is trained."""

from collections.abc import Iterator

from lifelong.core import discover
from lifelong.core.axes import Objective
from lifelong.core.composition import Methods, snake
from lifelong.core.model import Model
from lifelong.core.stream import Stage, Stream
from lifelong.errors import UserError, nearest


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


def check_optimizer(stream: Stream, methods: Methods) -> None:
    """Raise UserError where a stage names an optimiser that the tuner does not step with."""
    tuner = methods.tuner
    for stage in stream.stages:
        given = stage.optimization.optimizer
        if given not in tuner.optimizers:
            raise UserError(
                f"stage {stage.name}: optimizer must be {' or '.join(tuner.optimizers)} under "
                f"{snake(tuner)}, which steps by a rule of its own; got {given!r}."
            )


def check_erasure(stream: Stream, methods: Methods) -> None:
    """Raise UserError where a stage erases rows and the methods cannot do it, or would undo it."""
    for index, stage in enumerate(stream.stages):
        if stage.erases is None:
            continue
        where = f"stage {stage.name}"
        earlier = {each.name: each for each in stream.stages[:index] if each.erases is None}
        if stage.erases.stage not in earlier:
            raise UserError(
                f"{where}: erases rows of `{stage.erases.stage}`, which is no earlier stage that trains."
                f"{nearest(stage.erases.stage, earlier)}"
            )
        _check_eraser(where, stage, methods)
        if methods.mixing is not None:
            raise UserError(
                f"{where}: erases rows, and {snake(methods.mixing)} draws from all rows of earlier stages, "
                "the erased ones too. Take a replay memory in its place, which drops them."
            )
        if methods.mergers:
            raise UserError(
                f"{where}: erases rows, and {snake(methods.mergers[0])} takes back a share of what a stage "
                "did, so that a share of the rows would stay. Leave it out."
            )
        target = earlier[stage.erases.stage]
        whole = len(stage.erases.places) == len(target.rows)
        if methods.replay is not None and not whole and target.objective.packed_tokens is not None:
            raise UserError(
                f"{where}: the rows of {target.name} are packed into blocks, so the memory cannot tell which "
                "of them to drop. Set the objective's pack to false, or erase the whole stage."
            )


def _check_eraser(where: str, stage: Stage, methods: Methods) -> None:
    """Raise UserError unless a method can forget the rows of the stage."""
    exact = methods.analytic is not None and methods.analytic.forgets
    if methods.unlearning is None and not exact:
        ways, learners = discover.names("unlearning"), discover.names("analytic")
        learners = [name for name in learners if discover.load(name, "analytic").forgets]
        raise UserError(
            f"{where}: erases rows, which {methods.name} cannot. Add a method that unlearns "
            f"({', '.join(ways)}), or learn with one that can take rows back ({', '.join(learners)})."
        )
    if exact and len(stage.rows) > len(stage.erases.places):
        odd = len(stage.rows) - len(stage.erases.places)
        raise UserError(
            f"{where}: {odd} of {len(stage.rows)} rows to be erased are no rows of {stage.erases.stage}, and "
            f"{snake(methods.analytic)} can only take back what it learned. Leave them out."
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
