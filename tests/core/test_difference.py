"""What was learned and lost, against counts by hand and scipy."""

import json

import made_runs
import numpy as np
import pytest
from scipy.stats import binomtest

from lifelong.core.difference import compare
from lifelong.errors import UserError
from lifelong.numerics.intervals import paired_interval
from lifelong.store import lineage
from lifelong.store.files import read_json


def lines(name, scores, rows=None, tokens=3, predict=True):
    return [
        {"set": name, "row": i, "id": f"{name}{row}", "score": score, "references": ["yes"], "tokens": tokens,
         "prediction": ("yes" if score else "no") if predict else None, "log_likelihood": -1.0}
        for i, (row, score) in enumerate(zip(rows or range(len(scores)), scores, strict=True))
    ]  # fmt: skip


def write(folder, answers):
    (folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))


@pytest.fixture
def nodes(tmp_path):
    return lineage.read_nodes(made_runs.make(tmp_path / "run"))


def entry(found, name):
    return next(each for each in found["sets"] if each["name"] == name)


def test_flips_interval_and_test(nodes):
    draw = np.random.default_rng(0)
    before, after = (draw.random(60) < 0.5).astype(float), (draw.random(60) < 0.8).astype(float)
    prose = lines("prose", [-3.0] * 4, predict=False)
    write(nodes[1].folder, lines("sky", before.tolist()) + prose)
    write(nodes[2].folder, lines("sky", after.tolist()) + prose)
    found = entry(compare(nodes[1], nodes[2], num_examples=100), "sky")
    better, worse = int((after > before).sum()), int((after < before).sum())
    assert (found["better"], found["worse"], found["rows"]) == (better, worse, 60)
    assert found["difference"] == pytest.approx((after - before).mean())
    assert (found["low"], found["high"]) == paired_interval(after, before, bound=1.0)[1:3]
    assert found["p_value"] == pytest.approx(binomtest(better, better + worse).pvalue)
    assert [e["row"] for e in found["learned"]] == np.flatnonzero(after > before).tolist()
    assert [e["row"] for e in found["lost"]] == np.flatnonzero(after < before).tolist()
    assert all(e["before"] == "no" and e["after"] == "yes" for e in found["learned"])
    back = entry(compare(nodes[2], nodes[1]), "sky")  # control: the other way round
    assert back["difference"] == pytest.approx(-found["difference"]) and back["better"] == worse
    assert len(back["lost"]) == 3


def test_pairing_matters(nodes):
    """The same means, with the answers of other rows: an unpaired interval would be the same."""
    before = [1.0, 0.0] * 50
    for after, width in ((before[:-2] + [1.0, 1.0], 0.05), ([0.0, 1.0] * 49 + [1.0, 1.0], 0.3)):
        write(nodes[1].folder, lines("sky", before))
        write(nodes[2].folder, lines("sky", after))
        found = entry(compare(nodes[1], nodes[2]), "sky")
        assert found["difference"] == pytest.approx(0.01)
        assert (found["high"] - found["low"] > 0.2) == (width > 0.2)


def test_rows_go_by_content(nodes):
    """Another order changes nothing; rows that only one side has are counted and left out."""
    write(nodes[1].folder, lines("sky", [1, 1, 0, 0], rows=[1, 2, 3, 4]))
    write(nodes[2].folder, lines("sky", [0, 1, 1], rows=[4, 3, 9]))
    found = entry(compare(nodes[1], nodes[2]), "sky")
    assert found["rows"] == 2 and (found["better"], found["worse"]) == (1, 0)
    assert (found["before"], found["after"]) == (0.0, 0.5)
    assert found["note"] == "the set has changed: 2 rows are in both, 2 before only, 1 after only"
    write(nodes[2].folder, lines("sky", [1, 1], rows=[7, 8]))
    found = entry(compare(nodes[1], nodes[2]), "sky")
    assert found["note"] == "the set has changed: no row is in both" and "difference" not in found


def test_a_row_that_stands_twice_is_paired_in_order(nodes):
    write(nodes[1].folder, lines("sky", [1, 0, 1], rows=[5, 5, 6]))
    write(nodes[2].folder, lines("sky", [1, 0, 1], rows=[5, 5, 6]))
    found = entry(compare(nodes[1], nodes[2]), "sky")
    assert found["rows"] == 3 and (found["better"], found["worse"]) == (0, 0)


def test_perplexity_weighs_by_tokens(nodes):
    before, after, tokens = [-1.0, -3.0], [-2.0, -1.0], (10, 30)
    for node, scores in ((nodes[1], before), (nodes[2], after)):
        made = lines("prose", scores, predict=False)
        write(node.folder, [line | {"tokens": n} for line, n in zip(made, tokens, strict=True)])
    found = entry(compare(nodes[1], nodes[2]), "prose")
    assert found["before"] == pytest.approx(np.exp(2.5)) and found["after"] == pytest.approx(np.exp(1.25))
    assert found["difference"] == pytest.approx(1.25) and found["general"]


def test_what_a_row_asks_comes_from_the_untrained_model(nodes):
    write(nodes[0].folder, [each | {"input": f"row {i}?"} for i, each in enumerate(lines("sky", [0, 0]))])
    write(nodes[1].folder, lines("sky", [0, 0]))
    write(nodes[2].folder, lines("sky", [0, 1]))
    (example,) = entry(compare(nodes[1], nodes[2]), "sky")["learned"]
    assert example["input"] == "row 1?" and example["references"] == ["yes"]


def test_sets_of_one_side_and_older_answers(nodes):
    evaluation = read_json(nodes[2].folder / "evaluation.json")
    evaluation["sets"].append(evaluation["sets"][0] | {"name": "city"})
    made_runs.write(nodes[2].folder / "evaluation.json", evaluation)
    old = [{k: v for k, v in each.items() if k not in ("score", "id")} for each in lines("sky", [0, 1])]
    write(nodes[1].folder, old)
    write(nodes[2].folder, lines("sky", [0, 1]))
    found = compare(nodes[1], nodes[2])
    assert entry(found, "city")["note"] == "judged after alone"
    assert "no scores of single answers" in entry(found, "sky")["note"]
    assert entry(found, "sky")["before"] == 0.5


def test_missing_and_damaged_answers(nodes):
    with pytest.raises(UserError, match="no answers.jsonl"):
        compare(nodes[1], nodes[2])
    write(nodes[1].folder, lines("sky", [0, 1]))
    (nodes[2].folder / "answers.jsonl").write_text('{"set": "sky"}\n{"se')
    with pytest.raises(UserError, match=r"answers.jsonl:2 is damaged"):
        compare(nodes[1], nodes[2])
