"""Ranges stand in the annotation and are enforced in words."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from lifelong.core.settings import Range, build, check
from lifelong.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Example:
    strength: Annotated[float, Range(0)] = 1.0
    decay: Annotated[float, Range(0, 1, open_high=True)] = 0.5
    steps: Annotated[int, Range(1)] | None = None
    form: Literal["a", "b"] = "a"
    targets: tuple[str, ...] = ("x",)
    flag: bool = False

    def __post_init__(self):
        check(self)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strength": -1}, ["strength", r"\[0, inf\)", "-1"]),
        ({"strength": float("nan")}, ["strength", "finite", "nan"]),
        ({"decay": 1.0}, ["decay", r"\[0, 1\)", "1.0"]),
        ({"steps": 0}, ["steps", r"\[1, inf\)", "0"]),
        ({"steps": 2.5}, ["steps", "whole number", "2.5"]),
        ({"steps": True}, ["steps", "whole number", "True"]),
        ({"form": "c"}, ["form", "'a', 'b'", "'c'"]),
        ({"targets": [1]}, ["targets", "list of", "1"]),
        ({"flag": 1}, ["flag", "true or false", "1"]),
        ({"strenght": 1}, ["strenght", "Did you mean `strength`"]),
    ],
)
def test_bad_values_name_setting_range_and_value(values, words):
    for word in words:
        with pytest.raises(UserError, match=word):
            build(Example, values, "here")


def test_good_values_pass_unchanged():
    made = build(Example, {"strength": 0, "targets": ["q", "v"], "steps": 3}, "here")
    assert made == Example(strength=0, targets=("q", "v"), steps=3)
