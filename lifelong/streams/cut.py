"""Named streams that are one labelled data set, cut into stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from lifelong.core.settings import Range
from lifelong.errors import UserError
from lifelong.streams import curriculum, scenarios
from lifelong.streams.benchmark import Benchmark
from lifelong.streams.scenarios import Part, Rows

Scenario = Literal["class", "task", "domain", "recurring"]
RECURRING = 100  # stages where none are asked for


@dataclass(frozen=True, kw_only=True)
class Cut(Benchmark):
    """How labelled rows become stages. `class`: every stage has labels of its own; `task`: so, and at test
    time the task is known; `domain`: stages share their labels; `recurring`: labels come back.
    """

    scenario: Scenario = "class"  # own labels, shared ones, or labels that come back
    num_stages: Annotated[int, Range(1)] | None = None  # default: as the data are grouped
    order: Annotated[int, Range(0)] | Literal["similar", "dissimilar"] = 0  # 0: as is; k: k-th random one
    rows_per_label: Annotated[int, Range(1)] | None = None  # training rows, at most
    blur: Annotated[float, Range(0, 1)] = 0.0  # share of a stage's training rows from other stages
    labels_per_stage: Annotated[int, Range(1)] = 2  # recurring: drawn anew for every stage
    decay: Annotated[float, Range(0, 1, open_low=True)] = 1.0  # recurring: how much rarer the next label is

    @property
    def candidates(self) -> str:
        return "task" if self.scenario == "task" else "seen"

    def cut(self, train: Rows, test: Rows, groups: Mapping[str, Sequence[str]], num_stages: int,
            column: str = "") -> list[Part]:  # fmt: skip
        """Stages of these rows, `num_stages` where the settings do not say. `groups` are labels that belong
        together, in their order; `column` names the domain of a row.
        """
        train, test = self.judged(train, test)
        if self.rows_per_label is not None:
            train = scenarios.per_label(train, self.rows_per_label, self.seed)
        if self.scenario == "recurring":
            return self.limited(self._recurring(train, test))
        if self.scenario == "domain" and column:
            names = scenarios.domains(train, column)
            names = scenarios.shuffled(names, self.order) if isinstance(self.order, int) else names
            parts = scenarios.domain_incremental(train, test, column, names)
        else:
            chosen = self._groups(groups, self.num_stages or num_stages)
            parts = scenarios.class_incremental(train, test, chosen)
        if isinstance(self.order, str):
            alike = curriculum.similarity([curriculum.mean_features(part.train) for part in parts])
            parts = [parts[i] for i in curriculum.rank(alike, self.order, self.seed)[0].order]
        if self.scenario == "domain" and not column:
            parts = scenarios.relabelled(parts)
        return self.limited(scenarios.blurred(parts, self.blur, self.seed) if self.blur else parts)

    def _groups(self, groups: Mapping[str, Sequence[str]], num_stages: int) -> Mapping[str, Sequence[str]]:
        order = self.order if isinstance(self.order, int) else 0
        if num_stages == len(groups):
            return {name: groups[name] for name in scenarios.shuffled(list(groups), order)}
        labels = [label for group in groups.values() for label in group]
        return scenarios.even_groups(scenarios.shuffled(labels, order), num_stages)

    def _recurring(self, train: Rows, test: Rows) -> list[Part]:
        if self.blur or isinstance(self.order, str):
            raise UserError("a recurring stream draws its labels, so it takes no blur and no designed order.")
        return scenarios.recurring(train, test, self.num_stages or RECURRING, self.labels_per_stage,
                                   self.train_rows, self.decay, self.order)  # fmt: skip
