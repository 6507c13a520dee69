"""What is written as YAML reads back as it was."""

import pytest

from lifelong.streams import plain_yaml


@pytest.mark.parametrize("text", ["12e34", "1e3", "007", "no", "null", "1.5", "2026-11-01", "1:30", "a: b"])
def test_a_text_that_looks_like_a_value_reads_back_as_a_text(text):
    value = {text: [text, 1e-05, 3, None, True, 0.1 + 0.2]}
    assert plain_yaml.parse(plain_yaml.dump(value), "here") == value


def test_a_list_that_stands_twice_is_written_twice():
    same = ["a"]
    assert plain_yaml.dump({"x": same, "y": same}) == "x:\n- a\ny:\n- a\n"
