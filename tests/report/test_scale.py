"""The axis of a cost: from 0, and by powers where costs differ widely."""

import pytest

from lifelong.report import formats
from lifelong.report.charts import APART, scale


def test_like_values_go_from_zero_by_even_steps():
    place, ticks = scale([0.5, 1.0, 3.8], 10.0, "{:g}".format)
    assert [text for _, text in ticks] == ["0", "1", "2", "3", "4", "5"] and ticks[0][0] == 0
    assert place(0.0) == 0 and place(2.0) == pytest.approx(2 * place(1.0))
    assert place(5.0) == pytest.approx(ticks[-1][0]) == pytest.approx(100)


def test_like_sizes_have_round_binary_ticks():
    place, ticks = scale([0.0, 3 * 2**20, 9 * 2**20], 1024.0, formats.size)
    assert ticks[0][1] == "0 B" and all(text.endswith(" MiB") for _, text in ticks[1:])
    assert place(9 * 2**20) == pytest.approx(3 * place(3 * 2**20))


def test_unlike_values_go_by_powers_and_zero_stands_apart():
    place, ticks = scale([0.0, 8.0, 2**21], 1024.0, formats.size)
    assert [text for _, text in ticks] == ["0 B", "1 B", "1.0 KiB", "1.0 MiB", "1.0 GiB"]
    assert place(0.0) == 0 and place(1.0) == APART and place(2.0**30) == pytest.approx(100)
    assert place(2.0**15) - place(2.0**10) == pytest.approx(place(2.0**25) - place(2.0**20))
    place, ticks = scale([0.0, 0.8, 2.0**21], 1024.0, formats.size, least=1.0)
    assert [text for _, text in ticks][:2] == ["0 B", "1 B"] and place(0.8) == place(1.0) == APART
    place, ticks = scale([0.1, 20.0], 10.0, "{:g}".format)
    assert [text for _, text in ticks] == ["0.1", "1", "10", "100"] and place(0.1) == pytest.approx(0)


def test_nothing_but_zeros_has_an_axis():
    place, ticks = scale([0.0, 0.0], 10.0, "{:g}".format)
    assert place(0.0) == 0 and len(ticks) > 1
