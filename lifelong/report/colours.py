"""Colours of the heat map: one hue, lightness says the value, so colour vision does not matter.

Every step carries its own text colour, with a WCAG contrast of at least 4.5.
"""

STEPS = 21
PLACES = (0.0, 0.5, 0.62, 1.0)  # of the stops; steep where the text changes between black and white
LIGHT = ("#f4f7fc", "#8fb2e3", "#3f6cb4", "#143a7c")
DARK = ("#1b2230", "#35619f", "#7aa4de", "#c9defc")
INK = ("#000000", "#ffffff")  # the better of the two has at least 4.58 on any colour


def ramp(stops: tuple[str, str, str, str]) -> list[tuple[str, str]]:
    """(background, text) for each of STEPS steps, from low to high."""
    found = []
    for step in range(STEPS):
        place = step / (STEPS - 1)
        index = max(i for i in range(len(PLACES) - 1) if PLACES[i] <= place)
        left, right = PLACES[index : index + 2]
        background = _mix(stops[index], stops[index + 1], (place - left) / (right - left))
        found.append((background, max(INK, key=lambda ink, b=background: contrast(ink, b))))
    return found


def step_of(share: float) -> int:
    """Step of the ramp for a place in [0, 1]; beyond the ends, the end."""
    return round(min(max(share, 0.0), 1.0) * (STEPS - 1))


def contrast(left: str, right: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours, in [1, 21]."""
    low, high = sorted((luminance(left), luminance(right)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance in [0, 1]."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in map(_unit, _parts(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _parts(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _unit(part: int) -> float:
    return part / 255


def _mix(left: str, right: str, share: float) -> str:
    mixed = [round(a + (b - a) * share) for a, b in zip(_parts(left), _parts(right), strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)
