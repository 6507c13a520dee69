"""DMT: counts, the limit k = 0, and a subset that stays."""

import json

import pytest
import tiny_stream
from mixed import drawn_rows, log_of, train

from lifelong.core.stream import Budget
from lifelong.mixing.dmt import Dmt
from lifelong.mixing.power_law_replay import PowerLawReplay


def test_counts():
    assert Dmt(share=0.25).take([100, 8, 40]) == [25, 2, 40]
    assert Dmt(share=0.0).take([100, 8, 40]) == [0, 0, 40]
    assert Dmt().take([256000, 80000]) == [1000, 80000]


def test_share_0_is_plain_training_bit_for_bit(tmp_path):
    plain = log_of(train(tmp_path / "plain"))
    assert log_of(train(tmp_path / "off", Dmt(share=0.0))) == plain
    assert log_of(train(tmp_path / "on", Dmt(share=0.5))) != plain


@pytest.mark.parametrize("epochs", [1, 2])
def test_an_epoch_visits_new_rows_and_the_subset_once_each(epochs, tmp_path, monkeypatch):
    seen = drawn_rows(monkeypatch)
    stream = tiny_stream.stream(general=False, stages=("sky", "farm", "city"), budget=Budget(epochs=epochs))
    train(tmp_path / "run", Dmt(share=0.25), stream=stream)
    subsets = []
    for stage in range(3):
        rows = [row for s, _, rows in seen for row in rows if s == stage]
        assert len(rows) == epochs * (12 + 3 * stage)
        assert all(rows.count(row) == epochs for row in rows)
        assert len({row for row in rows if row[0] == stage}) == 12
        subsets.append({row for row in rows if row[0] == 0})
    assert len(subsets[1]) == 3 and subsets[1] == subsets[2]
    assert len(subsets[0]) == 12


def test_what_is_kept_of_the_past_is_the_subset_or_for_mixings_that_draw_every_row(tmp_path):
    stages = ("sky", "farm", "city")

    def kept(name, *methods):
        run = train(tmp_path / name, *methods, stream=tiny_stream.stream(general=False, stages=stages))
        return [json.loads(file.read_text())["memory_bytes"]
                for file in sorted((run.folder / "stages").glob("*/cost.json"))]  # fmt: skip

    whole = kept("drawn", PowerLawReplay())
    assert whole[0] > 12 * 4 and whole[1] > whole[0] + 12 * 4 and whole[2] > whole[1] + 12 * 4
    assert kept("all", Dmt(share=1.0)) == whole
    quarter = kept("quarter", Dmt(share=0.25))
    assert all(0.15 < part / every < 0.35 for part, every in zip(quarter, whole, strict=True))
    assert kept("none", Dmt(share=0.0)) == kept("plain") == [0, 0, 0]
