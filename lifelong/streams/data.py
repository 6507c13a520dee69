"""Rows from files and data sets; every row remembers where it came from.

JSON Lines, JSON lists, CSV, TSV and Parquet files are read row by row. Folders and names that are
no file are read by `datasets`. Each row is a dict of the user's columns (renamed by `columns`) with
`__source__` = "file:line". A label is text afterwards: whole numbers, true and false are written as
in JSON, and the class names of a `datasets` column take the place of its numbers.
"""

import csv
import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lifelong.errors import UserError, nearest
from lifelong.store.content import SOURCE
from lifelong.streams import builtin
from lifelong.streams.config import Source

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
Found = tuple[int, dict[str, Any]]  # line (or row, where a format has no lines) from 1; columns


def read_rows(source: Source, folder: Path, where: str) -> list[dict[str, Any]]:
    """Rows of `source`; relative paths start at `folder`. `where` names the place in errors."""
    path, kind = _locate(source, folder, where)
    found = (
        _from_datasets(source, path, where)
        if kind == "datasets"
        else _from_file(path, kind, source.path, where)
    )
    rows = (_row(columns, source, f"{source.path}:{line}", where) for line, columns in found)
    if source.shuffle_seed is not None:
        every = list(rows)
        random.Random(source.shuffle_seed).shuffle(every)
        rows = iter(every)
    first = source.skip or 0
    kept = list(islice(rows, first, None if source.limit is None else first + source.limit))
    if not kept:
        left = f" after the {first} that `skip` leaves out" if first else ""
        raise UserError(f"{where}: {source.path} has no rows{left}.")
    return kept


def _locate(source: Source, folder: Path, where: str) -> tuple[Path, str]:
    """The file or folder, and how to read it. A data set's name is returned as a path that is none."""
    if source.path.startswith(builtin.PREFIX):
        path = builtin.path(source.path)
        names = [builtin.PREFIX + each.name for each in builtin.FOLDER.glob("*.jsonl")]
        if path.parent != builtin.FOLDER or not path.is_file():
            raise UserError(f"{where}: no {source.path} in the embedded stream.{nearest(source.path, names)}")
        return path, "jsonl"
    path = (folder / Path(source.path).expanduser()).absolute()
    guess = FORMATS.get(path.suffix.lower())
    if path.is_file():
        kind = source.format or guess
        if kind is None:
            raise UserError(f"{where}: {source.path} has an unknown ending; set `format` to one of "
                            f"{', '.join(sorted(set(FORMATS.values())))}.")  # fmt: skip
        return path, kind
    if path.is_dir() or (guess is None and source.format in (None, "datasets")):
        return path, "datasets"
    raise UserError(f"{where}: no file {source.path} (looked for {path}).{_near(path)}")


def _near(path: Path) -> str:
    """The nearest existing name beside `path`, or the deepest folder of it that exists."""
    if path.parent.is_dir():
        return nearest(
            path.name, [each.name for each in path.parent.iterdir() if not each.name.startswith(".")]
        )
    exists = next(parent for parent in path.parents if parent.is_dir())
    return f" There is no folder {path.relative_to(exists).parts[0]} in {exists}."


def _row(columns: dict[str, Any], source: Source, place: str, where: str) -> dict[str, Any]:
    for theirs in source.columns.values():
        if theirs not in columns:
            known = [str(name) for name in columns]
            raise UserError(f"{where}: {place}: no column `{theirs}`.{nearest(theirs, known)}")
    renamed = {name: value for name, value in columns.items() if name not in source.columns.values()}
    renamed |= {ours: columns[theirs] for ours, theirs in source.columns.items()}
    if "label" in renamed and "completion" not in renamed:  # beside a completion, label is a judgement
        renamed["label"] = _label(renamed["label"], f"{where}: {place}")
    if "text" in renamed and not isinstance(renamed["text"], str):
        raise UserError(f"{where}: {place}: text must be a text; got {renamed['text']!r}.")
    return {**renamed, SOURCE: place}


def _label(value: Any, place: str) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    given = "nothing" if value in (None, "") else repr(value)
    raise UserError(f"{place}: label must be a text or a whole number; got {given}.")


def _from_file(path: Path, kind: str, shown: str, where: str) -> Iterator[Found]:
    if kind == "parquet":
        return _parquet(path, f"{where}: {shown}")
    if kind == "json" and _first_character(path) == "[":
        return _json_list(path, f"{where}: {shown}")
    if kind in ("csv", "tsv"):
        return _table(path, "," if kind == "csv" else "\t", f"{where}: {shown}")
    return _json_lines(path, f"{where}: {shown}")


def _lines(path: Path, place: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{place}:{number}: not UTF-8 text (byte {error.start + 1} of the line is "
                                f"0x{line[error.start]:02x}). Save the file as UTF-8.") from None  # fmt: skip


def _first_character(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1].decode("latin-1")


def _json_lines(path: Path, place: str) -> Iterator[Found]:
    for number, line in enumerate(_lines(path, place), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            cut = "" if line.endswith("\n") else " The last line has no end: the file may be cut off."
            raise UserError(
                f"{place}:{number}: not valid JSON ({error.msg}, character {error.pos + 1}).{cut}"
            ) from None
        yield number, _object(value, f"{place}:{number}")


def _json_list(path: Path, place: str) -> Iterator[Found]:
    text = "".join(_lines(path, place))
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            return
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}:{error.lineno}: not valid JSON ({error.msg}).") from None
        yield line, _object(value, f"{place}:{line}")
        at = _skip(text, at)
        if text[at : at + 1] not in (",", "]"):
            here = text.count("\n", 0, at) + 1
            raise UserError(
                f"{place}:{here}: not valid JSON (a comma or ] is missing; the file may be cut off)."
            )
        at += text[at] == ","


def _skip(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: a row must be an object with columns; got {json.dumps(value)[:60]}.")
    return value


def _table(path: Path, delimiter: str, place: str) -> Iterator[Found]:
    reader = csv.reader(_lines(path, place), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise UserError(f"{place}:1: two columns of the same name in {header}.")
        start = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{place}:{start}: {len(cells)} cells, but the header names {len(header)} columns."
                )
            if cells:
                yield start, dict(zip(header, cells, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{place}:{reader.line_num}: cannot be read as a table ({error}).") from None


def _parquet(path: Path, place: str) -> Iterator[Found]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"{place}: not a whole Parquet file, after row {number} ({reason}).") from None


def _from_datasets(source: Source, path: Path, where: str) -> Iterable[Found]:
    from datasets import ClassLabel, DatasetDict, disable_progress_bars, load_dataset, load_from_disk

    disable_progress_bars()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            data = load_from_disk(str(path))
        else:
            data = load_dataset(str(path) if path.is_dir() else source.path, source.name)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        hint = "" if path.is_dir() else f" There is no file or folder of that name either.{_near(path)}"
        raise UserError(f"{where}: `{source.path}` cannot be read as a data set ({reason}).{hint}") from None
    if isinstance(data, DatasetDict):
        split = source.split or ("train" if "train" in data else next(iter(data)))
        if split not in data:
            raise UserError(f"{where}: {source.path} has no split `{split}`.{nearest(split, data)}")
        data = data[split]
    labels = {name: each for name, each in data.features.items() if isinstance(each, ClassLabel)}
    for number, row in enumerate(data, start=1):
        for name, feature in labels.items():
            value = row[name]
            row[name] = None if value in (None, -1) else feature.int2str(value)  # -1: not published
        yield number, row
