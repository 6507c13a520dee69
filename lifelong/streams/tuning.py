"""Where the settings of a bench are searched, and the file that freezes what was found.

The protocol is `hp_reality_check` (Cha and Cho 2024, arXiv:2403.09066): settings are chosen on one stream by
the final average accuracy, frozen, and reported on another stream of the same scenario. The stream that is
searched on is never the one that is reported (`streams.apart`).
"""

from pathlib import Path
from typing import Any, NamedTuple

from lifelong.errors import UserError
from lifelong.store.content import digest
from lifelong.store.files import write_text
from lifelong.streams import plain_yaml, search_space
from lifelong.streams.bench_cells import Cell, Origin, Written, cells_of, config_of, folder_of, origin

PROTOCOL = "hp_reality_check"
FOLDER = "tuning"  # of the trials, below the bench's output
ENDING = ".tuned.yaml"
ROWS = ("stages", "general")  # keys of a stream file that name rows


class Trial(NamedTuple):
    """A method with settings to try."""

    label: str  # of the method
    changes: tuple[str, ...]  # its settings
    cells: tuple[Cell, ...]


class Tuning(NamedTuple):
    trials: tuple[Trial, ...]
    file: Path  # where the chosen settings are frozen
    bench: str  # name of the bench file
    chosen: dict[str, dict[str, Any]] = {}  # by method, as the file says
    rows: str = ""  # digest of the tuning stream's rows, as the file says

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(trial.label for trial in self.trials))

    def of(self, label: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.label == label]

    def digest(self, label: str) -> str:
        """Of all that the choice for a method follows from, but the rows: every run of its trials."""
        runs = [[c.chosen.asks, c.order, c.seed] for trial in self.of(label) for c in trial.cells]
        return digest(runs)[:16]


def plan(file: Written) -> Tuning:
    """The trials of every method that is searched."""
    stream, found = _origin(file), []
    for label, wanted in file.settings.searches().items():
        found += _trials(file, label, wanted, stream) if wanted else []
    return Tuning(tuple(found), file.path.with_name(file.path.stem + ENDING), file.path.name)


def _origin(file: Written) -> Origin:
    """The stream that is searched on."""
    tune, several = file.settings.tune, len(file.origins) > 1
    reported = file.origins[0]
    if tune.stream is None:
        if several:
            raise UserError(
                f"{file.path.name}: tune: with several streams name another one to search on: `stream`, the "
                "content of a stream file or its path."
            )
        return reported._replace(name="", orders=None)
    found = origin(tune.stream, file.path, "tune.stream")
    if isinstance(tune.stream, dict) and not several:  # says only what is other than in the reported stream
        bare = {key: each for key, each in reported.content.items() if key not in ROWS}
        found = found._replace(content=bare | found.content)
    return found


def _trials(file: Written, label: str, wanted: search_space.Search, stream: Origin) -> list[Trial]:
    """Of one method. Its settings must fit the tuning stream and those that are reported."""
    tune, entry = file.settings.tune, file.settings.entries()[label]
    where = f"{file.path.name}: methods.{label}"
    try:
        tried = search_space.trials(wanted, tune.trials, f"{tune.seed} {label}")
    except UserError as error:
        raise UserError(f"{where}.search: {error}") from None
    reported = [(f"{file.path.name}: {each.where}methods.{label}", each, ()) for each in file.origins]
    for place, each_stream, changes in (*reported, (f"{where}, tune", stream, tune.changes)):
        made = [
            config_of(file, each_stream, entry, place, (*changes, *entry.changes, *each)) for each in tried
        ]
        if len({each.fingerprint for each in made}) < len(made):
            raise UserError(
                f"{place}: two trials are the same run. A stage that sets what is searched under `defaults` "
                f"keeps its own: {', '.join(wanted)}."
            )
    output = file.output / FOLDER / folder_of(label)
    return [
        Trial(label, each, tuple(cells_of(
            chosen, tune, stream, f"{label}, trial {number}", output / chosen.fingerprint[:8],
            f"{where}, tune",
        )))
        for number, (each, chosen) in enumerate(zip(tried, made, strict=True))
    ]  # fmt: skip


# the file -----------------------------------------------------------------------------------


def freeze(tuning: Tuning) -> None:
    """Write the settings that were chosen, with the scores of all trials and what they cost."""
    chosen = tuning.chosen.values()
    record = {
        "protocol": PROTOCOL,
        "rows": tuning.rows,
        "runs": sum(each["runs"] for each in chosen),
        "seconds": round(sum(each["seconds"] for each in chosen), 3),
        "methods": tuning.chosen,
    }
    head = f"# Written by `lifelong tune {tuning.bench}`. Do not edit: change the search and tune again.\n"
    write_text(tuning.file, head + plain_yaml.dump(record | {"content": _content(record)}))


def frozen(tuning: Tuning) -> Tuning:
    """With what the file says; UserError unless it was chosen by these trials."""
    again = f"Run `lifelong tune {tuning.bench}`"
    if not tuning.file.is_file():
        raise UserError(
            f"{tuning.bench}: settings are searched, and there is no {tuning.file}. {again} first; it finds "
            "them on the tuning stream and freezes them there."
        )
    record = plain_yaml.read(tuning.file)
    if not isinstance(record, dict) or record.pop("content", "") != _content(record):
        raise UserError(
            f"{tuning.file} is not as `lifelong tune` wrote it. {again} again; what is unchanged is not run "
            "twice."
        )
    methods = record["methods"]
    for label in tuning.labels:
        if label not in methods or methods[label]["search"] != tuning.digest(label):
            raise UserError(
                f"{tuning.file}: the settings of {label} were not chosen by this search on this stream. "
                f"{again} again; what is unchanged is not run twice."
            )
    return tuning._replace(chosen={each: methods[each] for each in tuning.labels}, rows=record["rows"])


def _content(record: dict[str, Any]) -> str:
    """Digest of the file: it is not edited by hand."""
    return digest(record)[:16]
