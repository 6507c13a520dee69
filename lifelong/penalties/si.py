"""Synaptic intelligence (SI): importance of a weight = what moving it did for the loss, on the way.

    path_i <- path_i - g_i * (theta_i after - theta_i before)          at every step
    importance_i <- importance_i + max(path_i, 0) / (drift_i^2 + damping)   at the end of a stage
    penalty = strength * sum_i importance_i * (theta_i - anchor_i)^2

Zenke, Poole and Ganguli 2017, arXiv:1703.04200; drift is what the stage changed in the
weight, g the gradient of the task's loss. Here g is taken before penalties on weights are added (so
not the gradient of this one) and before clipping; penalties on answers and a memory that joins the
loss are part of the task. Choice: a path that raised the loss counts as no importance, since a
negative one would push weights away. A parameter that has grown is compared on its old rows; one
that is new is free; frozen weights have no path.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core.axes import Context, Penalty
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.anchor import copied, pull
from lifelong.numerics.swap import leading

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Si(Penalty):
    """Hold weights whose movement lowered the loss of earlier stages near their old values."""

    paper: ClassVar[str] = "Zenke, Poole and Ganguli 2017, arXiv:1703.04200"
    cost: ClassVar[str] = "four copies of the trainable weights, two more inside a step; no extra pass"
    verified: ClassVar[tuple[str, ...]] = (
        "on a quadratic under gradient descent the path is the closed form; small steps give the loss drop",
        "with a finished descent and no damping the penalty is the quadratic itself",
        "its own gradient and clipping do not enter the path; nothing shares memory with the weights",
        "strength 0 changes no bit and measures nothing",
    )
    needs_persistent: ClassVar[bool] = True

    strength: Annotated[float, Range(0)] = 1.0  # c: loss per importance and squared weight; 0 is off
    damping: Annotated[float, Range(0, open_low=True)] = 0.001  # xi: squared weight that keeps drift 0 finite

    def init(self, context: Context) -> State:
        return {"anchor": None, "importance": None, "start": None, "path": None, "step": None}

    def begin_stage(self, context: Context, state: State) -> State:
        if not self.strength:
            return state
        path = {
            name: torch.zeros(p.shape, dtype=torch.float32, device=p.device)
            for name, p in context.params.items()
        }
        return {**state, "start": copied(context.params), "path": path, "step": None}

    def after_backward(self, context: Context, state: State) -> State:
        if not self.strength or not state["path"]:
            return state
        gradients = {
            name: p.grad.detach().clone() for name, p in context.params.items() if p.grad is not None
        }
        before = {name: context.params[name].detach().clone() for name in gradients}
        return {**state, "step": {"gradient": gradients, "before": before}}

    def after_update(self, context: Context, state: State) -> State:
        if not state["step"]:
            return state
        for name, gradient in state["step"]["gradient"].items():
            if name not in context.params or name not in state["path"]:
                continue
            before, path = state["step"]["before"][name], state["path"][name]
            moved = leading(context.params[name], before.shape, name).detach().float() - before.float()
            path.sub_(leading(gradient.float() * moved, path.shape, name))
        return {**state, "step": None}

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.strength or not state["anchor"]:
            return None
        found = pull(context.params, state["anchor"], state["importance"])
        return None if found is None else self.strength * found

    def end_stage(self, context: Context, state: State) -> State:
        if not self.strength or not state["path"]:
            return state
        importance: Tensors = {}
        for name, path in state["path"].items():
            if name not in context.params:
                continue
            start = state["start"][name]
            drift = leading(context.params[name], start.shape, name).detach().float() - start.float()
            importance[name] = path.clamp(min=0) / (drift.square() + self.damping)
            old = (state["importance"] or {}).get(name)
            if old is not None:
                leading(importance[name], old.shape, name).add_(old)
        anchor = {
            name: leading(context.params[name], weight.shape, name).detach().clone()
            for name, weight in importance.items()
        }
        fresh = {"start": None, "path": None, "step": None}
        return {"anchor": anchor, "importance": importance, **fresh}
