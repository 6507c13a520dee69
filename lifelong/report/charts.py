"""Inline SVG. Text stands beside the drawing, as HTML, so that it keeps its size on any screen.

Line plots are drawn in a 100 x 100 box that stretches; strokes do not stretch with it
(`vector-effect`), and a dot is a stroke of no length with round ends.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

Point = tuple[float, float]
WIDE = 50  # ratio of the largest value to the smallest from which on an axis goes by powers
APART = 12.0  # percent of such an axis that are left to 0


@dataclass(frozen=True, kw_only=True)
class Line:
    points: tuple[Point, ...]
    kind: str  # CSS class: "raw", "main"
    title: str = ""  # what the pointer says


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One panel. `low` and `high` are the ends of the vertical axis, x runs over `span`."""

    title: str
    label: str  # what a screen reader says
    lines: tuple[Line, ...]
    low: float
    high: float
    span: tuple[float, float]
    ticks: tuple[str, str]  # text at `high` and at `low`
    note: str = ""
    less_is_better: bool = False
    bands: tuple[tuple[float, float, float], ...] = ()  # (x, low, high): interval of the main line
    boundaries: tuple[float, ...] = ()  # x where a stage ends
    highlight: tuple[float, float] | None = None  # x from, to: the stage that teaches
    dots: tuple[Point, ...] = ()
    sections: tuple[tuple[str, float], ...] = field(default=())  # (stage, share of the width)

    def svg(self) -> Markup:
        parts = [Markup('<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{}">')]
        parts[0] = parts[0].format(self.label)
        if self.highlight:
            left, right = (self._x(x) for x in self.highlight)
            parts.append(
                Markup('<rect class="taught" x="{}" y="0" width="{}" height="100"/>').format(
                    _round(left), _round(right - left)
                )
            )
        for x in self.boundaries:
            parts.append(Markup('<path class="edge" d="M{0} 0V100"/>').format(_round(self._x(x))))
        if len(self.bands) > 1:
            upper = [(x, high) for x, _, high in self.bands]
            lower = [(x, low) for x, low, _ in reversed(self.bands)]
            parts.append(Markup('<path class="band" d="{}Z"/>').format(self._path([*upper, *lower])))
        for line in self.lines:
            if line.points:
                end = Markup("><title>{}</title></path>").format(line.title) if line.title else Markup("/>")
                made = Markup('<path class="{}" d="{}"{}')
                parts.append(made.format(line.kind, self._path(line.points), end))
        for x, y in self.dots:
            parts.append(Markup('<path class="dot" d="M{} {}h0"/>').format(*self._place((x, y))))
        return Markup("").join([*parts, Markup("</svg>")])

    def _x(self, x: float) -> float:
        left, right = self.span
        return 100 * (x - left) / (right - left) if right > left else 50.0

    def _place(self, point: Point) -> tuple[str, str]:
        share = (point[1] - self.low) / (self.high - self.low)
        return _round(self._x(point[0])), _round(100 - 100 * min(max(share, 0.0), 1.0))

    def _path(self, points: Sequence[Point]) -> str:
        end = "h0" if len(points) == 1 else ""  # seen where ends are round
        return "M" + "L".join(" ".join(self._place(point)) for point in points) + end


def track(
    *,
    label: str,
    start: float | None,
    end: float,
    spread: tuple[float, float] | None,
    marks: Sequence[float],
    bound: bool,
) -> Markup:
    """One row of the comparison; all places in percent of the width. Hollow: right after teaching;
    solid: at the end; the line between them is what was lost (or won).
    """
    parts = [
        Markup('<svg class="track{}" width="100%" height="36" role="img" aria-label="{}">').format(
            " bound" if bound else "", label
        )
    ]
    parts += [
        Markup('<line class="mark" x1="{0}%" x2="{0}%" y1="0" y2="36"/>').format(_round(m)) for m in marks
    ]
    if start is not None:
        parts.append(
            Markup('<line class="gap" x1="{}%" x2="{}%" y1="18" y2="18"/>').format(_round(start), _round(end))
        )
    if spread is not None and spread[1] > spread[0]:
        parts.append(
            Markup('<line class="spread" x1="{}%" x2="{}%" y1="29" y2="29"/>').format(*map(_round, spread))
        )
    if start is not None:
        parts.append(Markup('<circle class="start" cx="{}%" cy="18" r="5"/>').format(_round(start)))
    parts.append(Markup('<circle class="end" cx="{}%" cy="18" r="6.5"/></svg>').format(_round(end)))
    return Markup("").join(parts)


def nice_range(
    values: Sequence[float], within: tuple[float, float] | None = None
) -> tuple[float, float, float]:
    """(low, high, step): round ends around `values` with 3 to 6 steps between them."""
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(spread / 2))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if 1.2 * spread / s <= 5)
    low, high = (
        step * math.floor((low - 0.06 * spread) / step),
        step * math.ceil((high + 0.06 * spread) / step),
    )
    if within:
        low, high = max(low, within[0]), min(high, within[1])
    return low, high, step


Scale = tuple[Callable[[float], float], list[tuple[float, str]]]  # value -> percent of the length; ticks


def scale(values: Sequence[float], base: float, text: Callable[[float], str], least: float = 0.0) -> Scale:
    """An axis from 0, for values >= 0. Where they differ by more than WIDE it goes by powers of `base`, and 0
    stands apart at the left end; what lies between 0 and `least` is drawn at `least`.
    """
    known, most = [max(value, least) for value in values if value > 0], max(values)
    if not known or most <= WIDE * min(known):
        unit = base ** math.floor(math.log(most, base)) if known else 1.0
        _, high, step = nice_range([0.0, most / unit], (0.0, math.inf))
        ticks = [(100 * i * step / high, text(i * step * unit)) for i in range(round(high / step) + 1)]
        return lambda value: 100 * value / unit / high, ticks
    first, last = math.floor(math.log(min(known), base)), math.ceil(math.log(most, base))
    start = APART if len(known) < len(values) else 0.0

    def place(value: float) -> float:
        if value <= 0:
            return 0.0
        return start + (100 - start) * (math.log(max(value, least), base) - first) / (last - first)

    powers = [base**k for k in range(first, last + 1, math.ceil((last - first) / 5))]
    return place, [(place(value), text(value)) for value in ([0.0] if start else []) + powers]


def thin(points: Sequence[Point], limit: int) -> list[Point]:
    """At most `limit` points: means of equal runs of neighbours."""
    run = math.ceil(len(points) / limit)
    if run <= 1:
        return list(points)
    pieces = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(x for x, _ in p) / len(p), math.fsum(y for _, y in p) / len(p)) for p in pieces]


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Moving average over up to `reach` neighbours on either side; fewer, but as many on both
    sides, near the ends.
    """
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    found = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        found.append((sums[i + near + 1] - sums[i - near]) / (2 * near + 1))
    return found


def _round(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
