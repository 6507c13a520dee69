"""A part of the stream file, and the choice of the model."""

from typing import Annotated, Any, get_origin

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from lifelong.core.settings import Range, misfit
from lifelong.errors import UserError
from lifelong.streams import mistakes

MADE = ("hidden_sizes", "num_inputs", "seed")
LOADED = ("revision", "gguf_file", "adapter", "allow_pickle", "trust_remote_code")


class Part(BaseModel):
    """Frozen, refuses unknown keys, and checks every plain value against its annotation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _fits(cls, value: Any, info: Any) -> Any:
        hint = mistakes.hints(cls)[info.field_name]
        lists = isinstance(value, (list, tuple)) or get_origin(mistakes.bare(hint)) is tuple  # pydantic's
        problem = None if lists else misfit(value, hint)
        if problem:
            raise UserError(f"must be {problem}; got {mistakes.shown(value)}.")
        return value


class ModelChoice(Part):
    name: str  # embedded name, Hub name or folder
    revision: str | None = None  # of a Hub name
    gguf_file: str | None = None  # inside the folder or repository
    adapter: str | None = None  # peft adapter that is merged in first
    allow_pickle: bool = False
    trust_remote_code: bool = False
    hidden_sizes: tuple[int, ...] | None = None  # of a perceptron, which is made
    num_inputs: Annotated[int, Range(1)] | None = None
    seed: Annotated[int, Range(0)] | None = None

    @property
    def is_drawn(self) -> bool:
        """Are its weights drawn anew by the seed of each run?"""
        return self.name == "perceptron" and self.seed is None

    @model_validator(mode="after")
    def _one_kind(self) -> "ModelChoice":
        made = self.name == "perceptron"
        given = self.model_dump(exclude_defaults=True)
        for key in LOADED if made else MADE:
            if key in given:
                own, other = ("made", "loaded") if made else ("loaded", "made")
                raise UserError(
                    f"`{key}` is for a model that is {other}; `{self.name}` is {own}. Leave it out."
                )
        if self.hidden_sizes is not None and min(self.hidden_sizes, default=0) < 1:
            raise UserError(f"hidden_sizes must be at least 1, one or more; got {list(self.hidden_sizes)}.")
        return self
