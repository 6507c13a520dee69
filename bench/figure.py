"""One measured figure, and how a measurement is carried out."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch

from lifelong.core.model import Model
from lifelong.models import pretrained


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What was asked, what came out, and the limit that it has to keep."""

    question: str  # a sentence for a reader who does not know the code
    ours: float | None  # None where only `value` says something
    baseline: float | None
    unit: str  # of ours and baseline
    value: float  # what the limit is on: a ratio, seconds, or a number of things
    value_unit: str = "x"
    limit: float | None = None  # None: reported only
    at_most: bool = True  # else at least
    arithmetic: str = ""  # what the figures follow from
    spread: str = ""  # the same from the best repetitions, and how many there were
    details: Mapping[str, float | str] = field(default_factory=dict)  # for who reads the JSON

    @property
    def holds(self) -> bool | None:
        if self.limit is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How thoroughly, and on what."""

    quick: bool = False  # few repetitions: shows that it works, not how fast it is
    device: str = "cpu"
    name: str = os.environ.get("LIFELONG_BENCH_MODEL", "smollm2")
    loaded: Callable[[], Model] | None = None  # instead of `name`

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    def repeats(self, quick: int, full: int) -> int:
        return quick if self.quick else full

    def model(self, dtype: torch.dtype | None = None) -> Model:
        """A fresh copy of the real model, in its stored type unless another is asked for."""
        made = self.loaded() if self.loaded is not None else pretrained.load(self.name)
        made.network.to(self.torch_device)
        if dtype is not None:
            made.network.to(dtype)
        return made


@cache
def title(name: str) -> str:
    """How a table calls a model."""
    return {"smollm2": "SmolLM2 135M"}.get(name, name.rstrip("/").rpartition("/")[2])
