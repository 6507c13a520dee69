"""Keep teaching one pretrained model, and say in numbers what it learned and what it lost.

    import lifelong as ll
    run = ll.run("smollm2", "stream.yaml", methods=[ll.tuners.OLora(rank=8), ll.replay.Reservoir(size=500)])
    run.matrix.forgetting, run.matrix.backward_transfer

Nothing heavy is imported until it is used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "run": "lifelong.launch",
    "judge": "lifelong.launch",
    "Run": "lifelong.launch",
    "load": "lifelong.models.restore",
    "export": "lifelong.models.export",
    "wrap": "lifelong.models.parts",
    "context": "lifelong.models.parts",
    "Context": "lifelong.core.axes",
    "Model": "lifelong.core.model",
    "Stage": "lifelong.core.stream",
    "Stream": "lifelong.core.stream",
    "EvalSet": "lifelong.core.stream",
    "Budget": "lifelong.core.stream",
    "Erasure": "lifelong.core.stream",
    "Optimization": "lifelong.core.stream",
    "Guard": "lifelong.core.stream",
    "AccuracyMatrix": "lifelong.core.matrix",
    "Node": "lifelong.store.node",
    "history": "lifelong.store.lineage",
    "find": "lifelong.store.lineage",
    "compare": "lifelong.core.difference",
    "UserError": "lifelong.errors",
    "OverBudget": "lifelong.errors",
}
_AXES = (
    "objectives", "tuners", "penalties", "replay", "mixing", "mergers", "analytic", "unlearning",
    "schedules", "diagnostics", "metrics", "numerics",
)  # fmt: skip

__all__ = ["__version__", *_WHERE, *_AXES]


def __getattr__(name: str) -> Any:
    if name in _AXES:
        return importlib.import_module(f"lifelong.{name}")
    if name in _WHERE:
        module = importlib.import_module(_WHERE[name])
        return getattr(module, "export_run" if name == "export" else name)
    raise AttributeError(f"lifelong has no `{name}`")


def __dir__() -> list[str]:
    return sorted(__all__)
