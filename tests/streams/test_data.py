"""Reading rows: formats, places, columns, labels, and files that are wrong."""

import csv
import json
import os

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from lifelong.errors import UserError
from lifelong.streams.config import Source
from lifelong.streams.data import read_rows

ROWS = [
    {"text": 'one, "two"\nthree', "label": "a"},
    {"text": "caf\u00e9", "label": "b"},
    {"text": "", "label": "a"},
]


def read(folder, path, **keys):
    return read_rows(Source(path=path, **keys), folder, "stage x, train")


def plain(rows):
    return [{key: value for key, value in row.items() if key != "__source__"} for row in rows]


def complaint(folder, path, **keys):
    with pytest.raises(UserError) as caught:
        read(folder, path, **keys)
    assert str(caught.value).startswith("stage x, train: ")
    return str(caught.value)


def write(folder, name, rows):
    path = folder / name
    if name.endswith("jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif name.endswith("json"):
        path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
    elif name.endswith("parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if name.endswith("csv") else "\t")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    "name, lines",
    [
        ("d.jsonl", [1, 2, 3]),
        ("d.json", [2, 6, 10]),
        ("d.csv", [2, 4, 5]),  # the first text has a line end in it
        ("d.tsv", [2, 4, 5]),
        ("d.parquet", [1, 2, 3]),
    ],
)
def test_every_format_gives_the_same_rows_and_their_lines(tmp_path, name, lines):
    write(tmp_path, name, ROWS)
    rows = read(tmp_path, name)
    assert plain(rows) == ROWS
    assert [row["__source__"] for row in rows] == [f"{name}:{line}" for line in lines]


def test_format_may_be_named_and_paths_may_be_absolute(tmp_path):
    path = write(tmp_path, "d.jsonl", ROWS)
    path.rename(tmp_path / "data.txt")
    assert "unknown ending; set `format`" in complaint(tmp_path, "data.txt")
    assert plain(read(tmp_path, str(tmp_path / "data.txt"), format="jsonl")) == ROWS


def test_json_lines_in_a_json_file_blank_lines_and_byte_order_mark(tmp_path):
    (tmp_path / "d.json").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "b"}')
    assert [row["__source__"] for row in read(tmp_path, "d.json")] == ["d.json:1", "d.json:3"]
    (tmp_path / "d.csv").write_bytes(b"\xef\xbb\xbftext,label\r\na,b\r\n\r\nc,d\r\n")
    rows = read(tmp_path, "d.csv")
    assert plain(rows) == [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]
    assert rows[1]["__source__"] == "d.csv:4"


def test_columns_are_renamed_and_others_kept(tmp_path):
    write(tmp_path, "d.jsonl", [{"review": "r", "stars": 4, "text": "old", "id": 9}])
    (row,) = read(tmp_path, "d.jsonl", columns={"text": "review", "label": "stars"})
    assert row == {"text": "r", "label": "4", "id": 9, "__source__": "d.jsonl:1"}
    text = complaint(tmp_path, "d.jsonl", columns={"label": "star"})
    assert "d.jsonl:1: no column `star`. Did you mean `stars`?" in text


def test_columns_may_change_places(tmp_path):
    write(tmp_path, "d.jsonl", [{"text": "l", "label": "t"}])
    assert plain(read(tmp_path, "d.jsonl", columns={"text": "label", "label": "text"})) == [
        {"text": "t", "label": "l"}
    ]


def test_labels_become_text(tmp_path):
    write(tmp_path, "d.jsonl", [{"text": "t", "label": each} for each in (3, True, "x")])
    assert [row["label"] for row in read(tmp_path, "d.jsonl")] == ["3", "true", "x"]
    for wrong, shown in ((None, "nothing"), ("", "nothing"), (1.5, "1.5"), (["a"], "['a']")):
        write(tmp_path, "d.jsonl", [{"text": "t", "label": "a"}, {"text": "t", "label": wrong}])
        assert f"d.jsonl:2: label must be a text or a whole number; got {shown}." in complaint(
            tmp_path, "d.jsonl"
        )


def test_a_judgement_beside_a_completion_is_no_class(tmp_path):
    write(tmp_path, "d.jsonl", [{"prompt": "p", "completion": "c", "label": True}])
    assert read(tmp_path, "d.jsonl")[0]["label"] is True


def test_text_must_be_text(tmp_path):
    write(tmp_path, "d.jsonl", [{"text": None}])
    assert "d.jsonl:1: text must be a text; got None." in complaint(tmp_path, "d.jsonl")


def test_limit_reads_no_further(tmp_path):
    path = write(tmp_path, "d.jsonl", ROWS)
    path.write_text(path.read_text() + "broken\n")
    assert plain(read(tmp_path, "d.jsonl", limit=3)) == ROWS
    assert "d.jsonl:4: not valid JSON" in complaint(tmp_path, "d.jsonl")


def test_shuffle_is_a_permutation_that_the_seed_fixes(tmp_path):
    write(tmp_path, "d.jsonl", [{"text": str(i)} for i in range(50)])
    orders = {seed: [r["text"] for r in read(tmp_path, "d.jsonl", shuffle_seed=seed)] for seed in (0, 1)}
    assert orders[0] == [r["text"] for r in read(tmp_path, "d.jsonl", shuffle_seed=0)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(map(str, range(50)))
    assert [r["text"] for r in read(tmp_path, "d.jsonl", shuffle_seed=0, limit=7)] == orders[0][:7]
    assert [r["text"] for r in read(tmp_path, "d.jsonl", shuffle_seed=0, skip=7, limit=9)] == orders[0][7:16]


def test_rows_can_be_left_out(tmp_path):
    write(tmp_path, "d.jsonl", ROWS)
    assert plain(read(tmp_path, "d.jsonl", skip=2)) == ROWS[2:]
    assert plain(read(tmp_path, "d.jsonl", skip=1, limit=1)) == ROWS[1:2]
    assert f"d.jsonl has no rows after the {len(ROWS)} that" in complaint(tmp_path, "d.jsonl", skip=len(ROWS))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("d.jsonl", b'{"text": "a"}\n{"text": "b', "d.jsonl:2: not valid JSON (Unterminated string"),
        ("d.jsonl", b'{"text": "a"}\n{"text": "b', "the file may be cut off"),
        ("d.jsonl", b'{"text": "a"}\n{"text": }\n', "d.jsonl:2: not valid JSON (Expecting value, char"),
        ("d.jsonl", b'{"text": "a"}\n["b"]\n', 'd.jsonl:2: a row must be an object with columns; got ["b"].'),
        ("d.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', "d.jsonl:2: not UTF-8 text (byte 14 of"),
        ("d.jsonl", b'\xff\xfe{\x00', "d.jsonl:1: not UTF-8 text (byte 1"),
        ("d.jsonl", b"", "d.jsonl has no rows."),
        ("d.jsonl", b"\n \n", "d.jsonl has no rows."),
        ("d.json", b"[]", "d.json has no rows."),
        ("d.json", b'[\n{"text": "a"},\n{"text": "b"}\n', "d.json:4: not valid JSON (a comma or ]"),
        ("d.json", b'[\n{"text": "a"},\n{"text": "b', "d.json:3: not valid JSON (Unterminated string"),
        ("d.json", b'[\n{"text": "a"},\n\n3]', "d.json:4: a row must be an object"),
        ("d.csv", b"text,label\n", "d.csv has no rows."),
        ("d.csv", b"text,label\na,b\nc\n", "d.csv:3: 1 cells, but the header names 2 columns."),
        ("d.csv", b'text,label\na,b\n"c,d\n', "d.csv:3: cannot be read as a table (unexpected end of data)."),
        ("d.csv", b"text,text\na,b\n", "d.csv:1: two columns of the same name"),
        ("d.csv", b"text\na\ncaf\xe9\n", "d.csv:3: not UTF-8 text"),
        ("d.parquet", b"PAR1 no more", "d.parquet: not a whole Parquet file, after row 0"),
    ],
)  # fmt: skip
def test_files_that_are_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in complaint(tmp_path, name)


def test_truncated_parquet(tmp_path):
    path = write(tmp_path, "d.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a whole Parquet file" in complaint(tmp_path, "d.parquet")


def test_missing_files(tmp_path):
    write(tmp_path, "train.jsonl", ROWS)
    assert "no file trian.jsonl" in (text := complaint(tmp_path, "trian.jsonl"))
    assert "Did you mean `train.jsonl`?" in text
    assert f"There is no folder data in {tmp_path}." in complaint(tmp_path, "data/x/train.jsonl")
    assert "no embedded:revews.train.jsonl in the embedded stream. Did you mean" in complaint(
        tmp_path, "embedded:revews.train.jsonl"
    )
    assert "in the embedded stream" in complaint(tmp_path, "embedded:../config.jsonl")


def test_embedded_rows_do_not_depend_on_the_folder(tmp_path):
    rows = read(tmp_path, "embedded:reviews.train.jsonl", limit=2)
    assert rows[1]["__source__"] == "embedded:reviews.train.jsonl:2"
    assert rows[0].keys() == {"text", "label", "__source__"}


# data sets


def made():
    labels = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": labels})
    return datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)


def test_saved_data_set_with_class_names(tmp_path):
    made().save_to_disk(tmp_path / "one")
    rows = read(tmp_path, "one")
    assert [(row["text"], row["label"], row["__source__"]) for row in rows] == [
        ("x", "good", "one:1"),
        ("y", "bad", "one:2"),
    ]


def test_saved_splits(tmp_path):
    both = datasets.DatasetDict({"train": made(), "test": made().select([1])})
    both.save_to_disk(tmp_path / "both")
    assert len(read(tmp_path, "both")) == 2
    assert [row["label"] for row in read(tmp_path, "both", split="test")] == ["bad"]
    assert "has no split `tets`. Did you mean `test`?" in complaint(tmp_path, "both", split="tets")


def test_unpublished_label_of_a_data_set(tmp_path):
    made().map(lambda row: {"label": -1}).save_to_disk(tmp_path / "hidden")
    assert "hidden:1: label must be a text or a whole number; got nothing." in complaint(tmp_path, "hidden")


def test_folder_of_files_is_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", "train.jsonl", ROWS)
    assert plain(read(tmp_path, "set")) == ROWS


def test_data_set_name_that_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = complaint(tmp_path, "nobody/nothing")
    assert "`nobody/nothing` cannot be read as a data set" in text
    assert "There is no folder nobody in" in text
    assert os.linesep not in text
