"""MNIST and its kin: read from what they are passed around as, and made into streams."""

import gzip
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from lifelong.core.settings import Range
from lifelong.errors import UserError
from lifelong.streams.benchmark import name_of
from lifelong.streams.config import Source
from lifelong.streams.cut import Cut
from lifelong.streams.data import read_rows
from lifelong.streams.image_rows import ImageRows, permutation, rotation, three_channels
from lifelong.streams.scenarios import Part, per_label

Arrays = tuple[np.ndarray, np.ndarray]  # (N, H, W) uint8, (N,) int
IDX = {"train": "train", "test": "t10k"}


@dataclass(frozen=True, kw_only=True)
class ImageStream(Cut):
    """Small grey images of ten classes."""

    needs: ClassVar[str] = (
        "idx files (train-images-idx3-ubyte and so on, also .gz), one .npz (x_train, y_train, x_test, "
        "y_test), or Parquet files (train*.parquet, test*.parquet: image, label)"
    )
    names: ClassVar[tuple[str, ...]] = ()  # of the classes
    vision: ClassVar[bool] = True

    variant: Literal["split", "permuted", "rotated"] = "split"  # permuted, rotated: stages share labels
    degrees: Annotated[float, Range(0, 360)] = 180.0  # rotated: of the last stage; the first has 0
    rgb: bool = False  # three equal channels, for pretrained vision models

    def __post_init__(self) -> None:
        super().__post_init__()
        cuts = {"scenario": "class", "order": 0, "blur": 0.0}
        if self.variant == "rotated" and any(getattr(self, key) != value for key, value in cuts.items()):
            raise UserError(f"rotated stages come as they are; leave out {', '.join(cuts)}.")
        if self.variant == "permuted" and (self.scenario, self.blur) != ("class", 0.0):
            raise UserError("permuted stages share their labels; leave out scenario and blur.")
        if self.variant != "split" and isinstance(self.order, str):
            raise UserError("only split stages can be ordered by what they look like.")

    def parts(self, folder: Path) -> list[Part]:
        train, test = (self._rows(split, folder) for split in ("train", "test"))
        if self.rgb:
            train, test = train.seen(three_channels), test.seen(three_channels)
        if self.variant == "split":
            return self.cut(train, test, {"all": self.names}, 5)
        train, test = self.judged(train, test)
        if self.rows_per_label is not None:
            train = per_label(train, self.rows_per_label, self.seed)
        return self.limited(self._seen_anew(train, test))

    def _seen_anew(self, train: ImageRows, test: ImageRows) -> list[Part]:
        """The same images through the looks of every stage: the first stage sees them as they are."""
        height, width = train.images.shape[1:]
        count, labels = self.num_stages or 10, tuple(self.names)
        parts = []
        for stage in range(count):
            name, rows = f"{self.variant}-{stage + 1:02d}", (train, test)
            if stage:
                look = (
                    permutation(height * width, self.order, stage)
                    if self.variant == "permuted"
                    else rotation(height, width, self.degrees * stage / (count - 1))
                )
                rows = tuple(replace(each, looks=(look, *each.looks)) for each in rows)
            parts.append(Part(name=name, train=rows[0], tests={name: rows[1]}, labels=labels))
        return parts

    def _rows(self, split: str, folder: Path) -> ImageRows:
        place = self.local(folder)
        images, labels = self._from_hub(split, folder) if place is None else self._read(place, split)
        if images.ndim != 3 or images.dtype != np.uint8 or len(images) != len(labels):
            raise UserError(
                f"{name_of(self)}: images must be bytes of the shape (rows, height, width), one label each; "
                f"got {images.shape} {images.dtype} and {len(labels)} labels."
            )
        words = np.array(self.names)[labels]
        return ImageRows(images, words, f"{name_of(self)} {split}", np.arange(len(images)))

    def _read(self, place: Path, split: str) -> Arrays:
        files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
        for each in files:
            if each.suffix == ".npz":
                with np.load(each) as found:
                    return found[f"x_{split}"], found[f"y_{split}"].astype(np.int64)
        tables = [p for p in files if p.suffix == ".parquet" and p.name.startswith(split)]
        if tables:
            rows = (row for p in tables for row in read_rows(Source(path=str(p)), place, name_of(self)))
            return _decoded((row["image"]["bytes"], row["label"]) for row in rows)
        found = [_idx(files, f"{IDX[split]}-{kind}") for kind in ("images", "labels")]
        if found[0] is None or found[1] is None:
            raise self.lacks(f"images and labels of the split {split}")
        return found[0], found[1].astype(np.int64)

    def _from_hub(self, split: str, folder: Path) -> Arrays:
        try:
            rows = read_rows(Source(path=self.hub, split=split), folder, name_of(self))
        except UserError as error:
            raise self.offline(error) from None
        order = {_bare(name): i for i, name in enumerate(self.names)}
        odd = next((row["label"] for row in rows if _bare(row["label"]) not in order), None)
        if odd is not None:
            raise UserError(
                f"{name_of(self)}: {self.hub} has a class `{odd}`, which is none of {self.names}."
            )
        images = np.stack([np.asarray(row["image"]) for row in rows])
        return images, np.array([order[_bare(row["label"])] for row in rows])


def _bare(name: str) -> str:
    """The Hub spells some names with more blanks."""
    return name.replace(" ", "").lower()


def _decoded(rows: Iterable[tuple[bytes, Any]]) -> Arrays:
    from PIL import Image

    images, labels = [], []
    for content, label in rows:
        with Image.open(io.BytesIO(content)) as opened:
            images.append(np.asarray(opened.convert("L")))
        labels.append(int(label))
    return np.stack(images), np.array(labels)


def _idx(files: list[Path], start: str) -> np.ndarray | None:
    """An array in LeCun's format: two zero bytes, type (8: uint8), number of axes, sizes, values."""
    named = [p for p in files if p.name.startswith(start) and "ubyte" in p.name]
    if not named:
        return None
    content = named[0].read_bytes()
    content = gzip.decompress(content) if named[0].suffix == ".gz" else content
    axes = content[3] if len(content) > 4 else 0
    sizes = np.frombuffer(content, ">u4", axes, 4).astype(int) if axes and len(content) > 4 + 4 * axes else []
    if content[:3] != b"\0\0\x08" or len(content) != 4 + 4 * axes + int(np.prod(sizes)):
        raise UserError(f"{named[0]}: not a whole idx file of bytes.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(sizes)
