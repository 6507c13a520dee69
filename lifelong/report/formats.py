"""Numbers as a reader wants them. What is absent prints as a dash, never as a zero."""

import math

DASH = "\u2013"
MINUS = "\u2212"


def number(value: float | None, decimals: int = 1) -> str:
    """Fixed decimals, thousands apart, a real minus sign, no negative zero."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:,.{decimals}f}".replace(",", "\u2009")
    if text.startswith("-"):
        text = text[1:] if not text.strip("-0.") else MINUS + text[1:]
    return text


def score(value: float | None, percent: bool) -> str:
    """A share as percent with one decimal; any other figure with three."""
    if value is None:
        return DASH
    return number(100 * value) if percent else number(value, 3)


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 59.95:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: float | None) -> str:
    """Binary units: 1 MiB = 2^20 bytes."""
    if num_bytes is None:
        return DASH
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1023.5:
            return f"{number(value, 0 if unit == 'B' or value >= 100 else 1)} {unit}"
        value /= 1024
    return f"{number(value)} TiB"


def count(value: float | None) -> str:
    """Large counts in three digits: 134.5 M."""
    if value is None:
        return DASH
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{number(value / {'G': 1e9, 'M': 1e6, 'k': 1e3}[unit])} {unit}"
    return number(value, 0)
