"""A budget for forgetting: may the model that a stage left be promoted?

For every guard set the answers after the stage are compared with those of an earlier row of the
accuracy matrix, example by example. A drop is

    a share of rows (accuracy and the like):   mean of score before - score after
    a relative growth (perplexity):            perplexity after / perplexity before - 1

and the decision is made from its interval, never from the mean alone:

    kept        the upper end is at most what is allowed
    lost        the lower end is above it
    undecided   else: the set is too small, and the number of rows that would tell is said

Rows of the matrix that drops are counted from (`reference`), of the promoted ones since the set's
own stage: the `best`, so that small drops cannot add up over many stages; the one `before`; or the
`first`. All is a function of the answers on disk, so that a run that is resumed decides alike.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from lifelong.core import evaluation
from lifelong.core.axes import Answer
from lifelong.core.composition import Methods, snake
from lifelong.core.life import Life
from lifelong.core.stream import EvalSet, Guard, Stream
from lifelong.errors import OverBudget, UserError, nearest
from lifelong.numerics.intervals import Paired, paired_interval, rows_to_decide
from lifelong.store.files import read_json
from lifelong.store.run import RunFolder

Entry = dict[str, Any]  # what is decided about one set
KEPT, LOST, UNDECIDED = "kept", "lost", "undecided"


def guarded(stream: Stream, row: int) -> list[tuple[EvalSet, int, float]]:
    """(set, first row that counts, allowed drop) of the sets that the model of `row` could have lost."""
    found = [(each, task + 1, stream.guard.budget(each.name, False)) for task, each in stream.columns()]
    found += [(each, 0, stream.guard.budget(each.name, True)) for each in stream.general]
    return [(each, first, budget) for each, first, budget in found if budget is not None and first < row]


def is_relative(each: EvalSet) -> bool:
    """Is the set judged by perplexity, whose drop is a ratio?"""
    return each.metric.unit == ""


def decide(
    each: EvalSet, before: Sequence[Answer], after: Sequence[Answer], allowed: float, confidence: float
) -> Entry:
    """Drop, interval and verdict of one set; `high` is None where the rows give no bound."""
    if [answer.references for answer in before] != [answer.references for answer in after]:
        raise UserError(
            f"guard: the rows of {each.name} are not those that it was judged by before, so that nothing can "
            "be compared. Put the old file back, or choose another `output`."
        )
    relative = is_relative(each)
    scores = [each.metric.scores(answers) for answers in (before, after)]
    weights = [answer.tokens for answer in before] if relative else None
    bound, limit = (None, math.log1p(allowed)) if relative else (1.0, allowed)
    found = paired_interval(*scores, level=confidence, bound=bound, weights=weights)
    verdict = KEPT if found.high <= limit else LOST if found.low > limit else UNDECIDED
    rows = rows_to_decide(found, limit, confidence, bound) if verdict == UNDECIDED else None

    def shown(drop: float) -> float | None:
        if not math.isfinite(drop):
            return None
        return math.expm1(min(drop, 700.0)) if relative else drop

    return {
        "name": each.name, "metric": snake(each.metric), "unit": each.metric.unit, "count": found.count,
        "before": each.metric.value(before), "after": each.metric.value(after), "allowed": allowed,
        "drop": shown(found.mean), "low": shown(found.low), "high": shown(found.high),
        "verdict": verdict, "rows_needed": rows,
    }  # fmt: skip


class Baseline(NamedTuple):
    """What a set is compared with."""

    each: EvalSet
    general: bool
    allowed: float
    row: int
    answers: list[Answer]  # of that row


def baselines(stream: Stream, folder: RunFolder, row: int) -> list[Baseline]:
    """For every guard set of a row, the answers that its drop is counted from."""
    for each in range(row):
        if not folder.has(each, "evaluation.json"):
            raise evaluation.lost(folder, each)
    evaluations = [read_json(folder.stage(each) / "evaluation.json") for each in range(row)]
    served = [each for each in range(row) if promoted(folder, each)]
    answers: dict[int, dict[str, list[Answer]]] = {}
    found = []
    for each, first, allowed in guarded(stream, row):
        data = evaluation.identity(each)
        known = [evaluation.entry_of(each.name, data, every) for every in evaluations]
        benefits = [entry and entry["benefit"] for entry in known]
        if not any(known[first:]):
            raise evaluation.lost(folder, row - 1)
        number = reference(stream.guard, first, benefits, served)
        if number not in answers:
            answers[number] = read_answers(folder, number)
        found.append(Baseline(each, first == 0, allowed, number, answers[number][each.name]))
    return found


def reference(guard: Guard, first: int, benefits: Sequence[float | None], served: Sequence[int]) -> int:
    """Row that the drop of a set is counted from, by its figures in the rows so far; None in rows that were
    not judged on it. Rows that were not promoted count only where there is no other.
    """
    judged = [each for each in range(first, len(benefits)) if benefits[each] is not None]
    eligible = [each for each in judged if each in served] or judged
    if guard.reference == "first":
        return judged[0]
    if guard.reference == "before":
        return eligible[-1]
    return max(eligible, key=lambda each: benefits[each])


def promoted(folder: RunFolder, row: int) -> bool:
    return not folder.has(row, "guard.json") or read_json(folder.stage(row) / "guard.json")["promoted"]


def entries(
    stream: Stream,
    folder: RunFolder,
    past: Sequence[Baseline],
    answers: Callable[[EvalSet], Sequence[Answer]],
) -> Iterator[Entry]:
    """A decision for every guard set, one after another. `answers` are those of the model in question."""
    for each, general, allowed, row, before in past:
        found = decide(each, before, answers(each), allowed, stream.guard.confidence)
        yield found | {"reference": folder.stages[row], "general": general}


def read_answers(folder: RunFolder, row: int) -> dict[str, list[Answer]]:
    """Answers of a row by set, as they were given."""
    found: dict[str, list[Answer]] = {}
    for entry in folder.read_answers(row):
        likelihood = -math.inf if entry["log_likelihood"] is None else entry["log_likelihood"]
        answer = Answer(entry["prediction"], tuple(entry["references"]), likelihood, entry["tokens"])
        found.setdefault(entry["set"], []).append(answer)
    return found


def holds(entry: Entry, guard: Guard) -> bool:
    """Does the budget of this set allow promotion?"""
    return entry["verdict"] == KEPT or (entry["verdict"] == UNDECIDED and guard.undecided == "promote")


def hold(life: Life, folder: RunFolder, notify: Callable[[str], None]) -> None:
    """Decide about the stage that was judged last and write guard.json. OverBudget where it must not be
    promoted and the run must not go on.
    """
    guard, row = life.stream.guard, life.stage + 1
    if guard is None:
        return
    now = read_answers(folder, row)
    past = baselines(life.stream, folder, row)
    found = list(entries(life.stream, folder, past, lambda each: now[each.name]))
    broken = [each for each in found if not holds(each, guard)]
    repair = read_json(folder.stage(row) / "repair.json") if folder.has(row, "repair.json") else None
    stage = life.stream.stages[life.stage].name
    told = {"stage": stage, "promoted": not broken, "sets": found, "repair": repair}
    told["settings"] = asdict(guard)
    if not folder.has(row, "guard.json") or read_json(folder.stage(row) / "guard.json") != told:
        folder.write(row, "guard.json", told)
    if not broken:
        return
    message = f"stage {stage} is over its budget for forgetting and was not promoted: {words(broken)}."
    if guard.otherwise == "keep":
        return notify(f"{message} The run goes on (guard.otherwise: keep).")
    evaluation.summarise(life.stream, folder)
    if guard.otherwise == "repair":
        message += " " + _unrepaired(repair)
    raise OverBudget(
        f"{message} All is saved in {folder.path}; the same command says the same without training again. "
        "Allow more, choose another guard.otherwise (repair, keep), or go back with `lifelong revert` and "
        "train the stage in another way."
    )


def _unrepaired(repair: Any) -> str:
    if repair is None:
        return (
            "It was trained before a repair was asked for; go back with `lifelong revert` and run the same "
            "command again to train and repair it."
        )
    return "No share of its update keeps every budget."


def words(broken: Sequence[Entry]) -> str:
    """`sky lost 33.3 points (allowed: 2.0)`, one after another."""
    return "; ".join(map(_words, broken))


def _words(entry: Entry) -> str:
    unit = " points" if entry["unit"] else " % of perplexity"
    drop, allowed = f"{100 * entry['drop']:.1f}{unit}", f"(allowed: {100 * entry['allowed']:.1f})"
    if entry["verdict"] == LOST:
        return f"{entry['name']} lost {drop} {allowed}"
    needed = entry["rows_needed"]
    more = f"about {needed:,} would tell" if needed else "no number would tell at this drop"
    few = f"{entry['count']} rows are too few, {more}"
    return f"{entry['name']} is undecided at a drop of {drop} {allowed}: {few}"


# before training --------------------------------------------------------------------------------


def check_guard(stream: Stream, methods: Methods) -> None:
    """Raise UserError where the guard names no set, cannot be repaired, or could never be kept."""
    guard = stream.guard
    if guard is None:
        return
    known = [each.name for _, each in stream.columns()] + [each.name for each in stream.general]
    for name in guard.sets:
        if name not in known:
            raise UserError(f"guard.sets: no evaluation set is called `{name}`.{nearest(name, known)}")
    last = len(stream.stages)
    for each, _, allowed in guarded(stream, last):
        if each.metric.unit not in ("%", ""):
            raise UserError(
                f"guard: {each.name} is judged by {snake(each.metric)}, which is neither a share nor a "
                f"perplexity. Leave the set out: sets: {{{each.name}: null}}."
            )
        _check_size(each, allowed, guard)
    if guard.otherwise == "repair":
        _check_repair(methods)


def _check_size(each: EvalSet, allowed: float, guard: Guard) -> None:
    """A set on which not even equal answers would show that the budget is kept."""
    count = len(each.rows)
    equal = Paired(0.0, 0.0, 0.0, count, 0.0)
    needed = 2 if is_relative(each) else rows_to_decide(equal, allowed, guard.confidence, 1.0)
    if count < needed and guard.undecided == "refuse":
        raise UserError(
            f"guard: {each.name} has {count} rows; to show that it drops by at most {allowed:g}, at least "
            f"{needed:,} are needed even where no answer changes. Judge by more rows, allow more, or set "
            "guard.undecided to promote."
        )


def _check_repair(methods: Methods) -> None:
    """A repair moves the weights at a stage's end, as a merger does."""
    tuner = methods.tuner
    if not tuner.interpolates:
        raise UserError(
            f"guard.otherwise: repair keeps a share of a stage's update, which {snake(tuner)} cannot "
            "express. Take a tuner that can (full, lora, o_lora), or set otherwise to stop or keep."
        )
    others = [*methods.mergers, *(each for each in methods.penalties if each.moves_weights)]
    others += [methods.analytic] if methods.analytic else []
    if others:
        raise UserError(
            f"guard.otherwise: repair moves weights when a stage ends, and so does {snake(others[0])}, or "
            "it builds on them. Leave it out, or set otherwise to stop or keep."
        )
