"""A context at the end of a stage, as diagnostics get it."""

import tiny
import tiny_stream

from lifelong.core import batching
from lifelong.core.axes import Context
from lifelong.numerics.twin import twin


def context_of(architecture, model=None, **more):
    model = model or tiny.model(architecture)
    base = twin(model.network, share=False)
    stream = tiny_stream.stream(vision=architecture == "vit", general=False)
    stage = stream.stages[0]
    stage.objective.begin_stage(model, stage.labels, 0)
    return Context(
        params=model.params(), model=model, objective=stage.objective, base=base, stream=stream,
        examples=stage.objective.encode(stage.rows, model, stage.labels).examples,
        batches=lambda rows: iter([batching.part(stage.objective, rows, model, model.device).batch]), **more,
    )  # fmt: skip
