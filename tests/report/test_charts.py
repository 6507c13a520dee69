"""Colours, axes, thinning and the way numbers are written."""

import pytest

from lifelong.report import charts, colours, formats


def test_heat_colours_are_readable_and_ordered():
    for stops in (colours.LIGHT, colours.DARK):
        steps = colours.ramp(stops)
        assert len(steps) == colours.STEPS and min(colours.contrast(*pair) for pair in steps) >= 4.5
        light = [colours.luminance(background) for background, _ in steps]
        assert light == sorted(light) or light == sorted(light, reverse=True)
    assert colours.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert [colours.step_of(x) for x in (-1, 0, 0.5, 1, 2)] == [0, 0, 10, 20, 20]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.number(-0.04), "0.0"),
        (formats.number(-12.34), "\u221212.3"),
        (formats.number(12345.6, 0), "12\u2009346"),
        (formats.number(float("nan")), "\u2013"),
        (formats.score(0.8125, True), "81.2"),
        (formats.duration(59.94), "59.9 s"),
        (formats.duration(59.96), "1 min 00 s"),
        (formats.duration(3600 + 119.6), "1 h 02 min"),
        (formats.size(2**20 * 1.5), "1.5 MiB"),
        (formats.size(0), "0 B"),
        (formats.size(1023.9 * 2**20), "1.0 GiB"),
        (formats.count(134515008), "134.5 M"),
        (formats.count(999.0), "999"),
    ],
)
def test_formats(shown, expected):
    assert shown == expected


def test_thinning_and_smoothing_keep_the_mean_and_a_line():
    line = [(float(x), 3.0 * x + 1) for x in range(1000)]
    thinned = charts.thin(line, 400)
    assert len(thinned) <= 400 and all(y == pytest.approx(3 * x + 1) for x, y in thinned)
    assert charts.smooth([y for _, y in line], 40) == pytest.approx([y for _, y in line])
    assert charts.smooth([0.0, 3.0, 0.0], 1) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("values", [(0.3, 0.31), (5.0,), (0.0,), (-3.0, -1.0), (0.1, 0.9)])
def test_axis_holds_its_values(values):
    low, high, step = charts.nice_range(values)
    assert low <= min(values) <= max(values) <= high and low < high and 0 < step <= high - low
