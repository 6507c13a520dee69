"""Any labelled data set, cut into stages: files, a folder or a name that `datasets` reads."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from lifelong.errors import UserError
from lifelong.streams.config import Source
from lifelong.streams.cut import Cut
from lifelong.streams.data import read_rows
from lifelong.streams.scenarios import Part


@dataclass(frozen=True, kw_only=True)
class Labelled(Cut):
    """Your own labelled rows, cut into stages."""

    needs: ClassVar[str] = "rows of text or image with a label; `path` may be a file or a `datasets` name"

    test: str = ""  # file of the rows that judge; empty: the split `test` of `path`
    columns: dict[str, str] = field(default_factory=dict)  # our column: column of the data
    domain: str = ""  # column that tells the domain of a row, for the scenario `domain`
    configuration: str | None = None  # of a data set that has several

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise UserError("give `path`, a file, a folder or the name of a data set.")
        if self.num_stages is None and self.scenario in ("class", "task"):
            raise UserError(f"the scenario `{self.scenario}` needs `num_stages`.")

    def parts(self, folder: Path) -> list[Part]:
        common = {"columns": self.columns, "name": self.configuration}
        train = read_rows(Source(path=self.path, split="train", **common), folder, "labelled, path")
        test = Source(path=self.test or self.path, split="test", **common)
        if not self.test and (folder / self.path).is_file():
            raise UserError("labelled: `path` is a single file; give `test`, the rows that judge.")
        rows = read_rows(test, folder, "labelled, test")
        labels = sorted({row["label"] for row in train})
        return self.cut(train, rows, {"all": labels}, self.num_stages or 1, self.domain)
