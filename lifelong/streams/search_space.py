"""What `search` of a bench file means: the settings that are tried, as overrides of a stream file.

    {defaults.learning_rate: [1e-4, 1e-3], method.ewc.strength: {low: 1, high: 1e4, log: true}}

Lists alone make a grid, of which `trials` may draw a part. With a range every trial is drawn: evenly, or
evenly in the logarithm (`log`), in three digits; between whole numbers it is a whole number.
"""

import json
import math
from itertools import product
from random import Random
from typing import Any

from lifelong.errors import UserError, nearest
from lifelong.streams.mistakes import shown

PLACES = ("method.", "defaults.")  # what may be searched: nothing that changes the rows
ENDS = ("low", "high", "log")
Search = dict[str, Any]  # dotted setting: list of values, or {low, high, log}


def checked(search: Any) -> Search:
    """The search, every range with its `log`; UserError where it means nothing."""
    if not isinstance(search, dict):
        raise UserError(f"must map settings to what is tried; got {shown(search)}.")
    return {key: _options(key, value) for key, value in search.items()}


def _options(key: Any, value: Any) -> Any:
    if not isinstance(key, str) or not key.startswith(PLACES):
        near = nearest(str(key).split(".")[0] + ".", PLACES)
        raise UserError(f"`{key}` cannot be searched: write method.NAME.SETTING or defaults.SETTING.{near}")
    if isinstance(value, dict):
        return _range(key, value)
    if not isinstance(value, list) or not value:
        raise UserError(f"{key}: give a list of values, or {{low, high, log}}; got {shown(value)}.")
    if len({json.dumps(each, sort_keys=True) for each in value}) < len(value):
        raise UserError(f"{key}: give no value twice; got {shown(value)}.")
    return value


def _range(key: str, value: Search) -> Search:
    for name in value:
        if name not in ENDS:
            raise UserError(f"{key}: unknown key `{name}`.{nearest(str(name), ENDS)}")
    low, high, log = (value.get(name, False) for name in ENDS)
    ends = [each for each in (low, high) if isinstance(each, (int, float)) and not isinstance(each, bool)]
    if len(ends) < 2 or not all(map(math.isfinite, ends)) or not isinstance(log, bool):
        raise UserError(f"{key}: low and high must be numbers, log true or false; got {shown(value)}.")
    if low >= high:
        raise UserError(f"{key}: low must be below high; got {low} and {high}.")
    if log and low <= 0:
        raise UserError(f"{key}: with log, low must be above 0; got {low}.")
    return {"low": low, "high": high, "log": log}


def trials(search: Search, count: int | None, seed: str) -> list[tuple[str, ...]]:
    """The overrides of every trial, all different; a larger `count` with a range keeps the first ones."""
    draw = Random(seed)
    if any(isinstance(options, dict) for options in search.values()):
        if count is None:
            raise UserError("a range is drawn from: say under `tune` how many `trials`.")
        found = [tuple(_drawn(options, draw) for options in search.values()) for _ in range(count)]
    else:
        found = list(product(*search.values()))
        if count is not None and count < len(found):
            found = [found[i] for i in sorted(draw.sample(range(len(found)), count))]
    texts = [
        tuple(f"{key}={json.dumps(value)}" for key, value in zip(search, each, strict=True)) for each in found
    ]
    return list(dict.fromkeys(texts))


def _drawn(options: Any, draw: Random) -> Any:
    """One value of a list or of a range."""
    if isinstance(options, list):
        return options[draw.randrange(len(options))]
    low, high = options["low"], options["high"]
    whole = isinstance(low, int) and isinstance(high, int)
    if options["log"]:
        value = math.exp(draw.uniform(math.log(low), math.log(high)))
    else:
        value = draw.randint(low, high) if whole else draw.uniform(low, high)
    return min(max(round(value) if whole else float(f"{value:.3g}"), low), high)
