"""Is the stream on which settings are searched another one than the stream that is reported?"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lifelong.errors import UserError
from lifelong.store.content import digest, row_digest, rows_digest

if TYPE_CHECKING:
    from lifelong.core.axes import Row
    from lifelong.core.stream import Stream

SAME = 0.5  # a larger share of equal rows: the same stage


def check_apart(reported: Sequence["Stream"], searched: Sequence["Stream"]) -> None:
    """Raise UserError unless every stream of `searched` is another one than those of `reported`, of the same
    scenario, and sees no row that judges these. Streams of one group differ in their order.

    General sets may be shared, since nothing is chosen by them; so may a row that judges the reported stream
    and that it trains as well.
    """
    scenarios = {each.candidates for each in (*reported, *searched)}
    if len(scenarios) > 1:
        raise UserError(
            "tune: the tuning stream is of another scenario than the reported one: `candidates` is "
            f"{searched[0].candidates} there and {reported[0].candidates} here. Make them equal."
        )
    for mine in searched:
        if any(_same_sequence(mine, other) for other in reported):
            raise UserError(
                "tune: the tuning stream is the reported one: the same rows in the same stages and order. "
                "Give `stream`, other data, or `changes` that make another order."
            )
    held = {d for s in reported for d in _digests(_judging(s))} - {d for s in reported for d in _trained(s)}
    seen = {d for s in searched for d in (*_trained(s), *_digests(_judging(s)))}
    if held & seen:
        raise UserError(
            f"tune: {len(held & seen)} of {len(held)} rows that judge the reported stream are trained or "
            "judged in the tuning stream. Give it rows of its own (for a named stream, "
            "`judge_on=validation`)."
        )


def identity(streams: Iterable["Stream"]) -> str:
    """Digest of the rows of streams, in their stages."""
    groups = [
        [rows_digest(rows) for stage in each.stages for rows in (stage.rows, *(e.rows for e in stage.evals))]
        for each in streams
    ]
    return digest(groups)[:16]


def _same_sequence(one: "Stream", other: "Stream") -> bool:
    """Does each stage share most of its rows with the one in its place? The longer may go on."""
    for mine, theirs in zip(one.stages, other.stages, strict=False):
        rows, known = list(_digests(mine.rows)), set(_digests(theirs.rows))
        if sum(row in known for row in rows) <= SAME * min(len(rows), len(known)):
            return False
    return True


def _judging(stream: "Stream") -> Iterable["Row"]:
    return (row for _, each in stream.columns() for row in each.rows)


def _trained(stream: "Stream") -> Iterable[str]:
    return (d for stage in stream.stages if stage.erases is None for d in _digests(stage.rows))


def _digests(rows: Iterable["Row"]) -> Iterable[str]:
    return (row_digest(row) for row in rows)
