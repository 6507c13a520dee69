"""What a search tries, and which streams it may be made on."""

import json
import math
from dataclasses import replace

import pytest
import tiny_stream

from lifelong.errors import UserError
from lifelong.streams import search_space
from lifelong.streams.apart import check_apart, identity

LIST = {"defaults.epochs": [1, 2], "method.ewc.strength": [0.5, 5.0, 50.0]}
RANGE = {"method.ewc.strength": {"low": 1, "high": 10_000.0, "log": True}}
EVEN = {"defaults.weight_decay": {"low": 0.0, "high": 1.0}}


def values(search, count, seed="0"):
    """(trials, settings) as numbers."""
    found = search_space.trials(search_space.checked(search), count, seed)
    return [[json.loads(text.partition("=")[2]) for text in each] for each in found]


def test_lists_make_a_grid_in_the_order_of_the_file():
    found = search_space.trials(search_space.checked(LIST), None, "0")
    assert len(found) == 6 and found[0] == ("defaults.epochs=1", "method.ewc.strength=0.5")
    assert values(LIST, None) == [[e, s] for e in (1, 2) for s in (0.5, 5.0, 50.0)]
    assert values(LIST, 6) == values(LIST, 100) == values(LIST, None)


def test_a_part_of_a_grid_is_drawn_by_the_seed():
    some, whole = values(LIST, 3), values(LIST, None)
    assert some == values(LIST, 3) and len(some) == 3 and some == [each for each in whole if each in some]
    assert len({str(values(LIST, 3, str(seed))) for seed in range(10)}) > 3


def test_ranges_are_drawn_by_the_seed_and_more_trials_keep_the_first():
    assert values(RANGE, 5) == values(RANGE, 5) != values(RANGE, 5, "1")
    assert values(RANGE, 20)[:5] == values(RANGE, 5)
    both = values(LIST | EVEN, 40)
    assert {each[0] for each in both} == {1, 2} and {each[1] for each in both} == {0.5, 5.0, 50.0}


@pytest.mark.parametrize(("search", "middle"), [(RANGE, 100.0), (EVEN, 0.5)], ids=["log", "even"])
def test_half_of_the_draws_lie_below_the_middle(search, middle):
    drawn = [each for (each,) in values(search, 2000)]
    (ends,) = search.values()
    share = sum(each < middle for each in drawn) / len(drawn)
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / len(drawn)) + 0.002  # draws that are equal count once
    assert ends["low"] <= min(drawn) and max(drawn) <= ends["high"]
    assert all(float(f"{each:.3g}") == each for each in drawn)


@pytest.mark.parametrize("log", [False, True])
def test_between_whole_numbers_are_whole_numbers(log):
    drawn = values({"method.lora.rank": {"low": 1, "high": 8, "log": log}}, 500)
    assert sorted(drawn) == [[each] for each in range(1, 9)]  # each once: no trial is made twice
    assert all(isinstance(each, int) for (each,) in drawn)


WRONG = {
    "no mapping": (["defaults.epochs"], ["must map settings", '"defaults.epochs"']),
    "place": ({"default.epochs": [1]}, ["`default.epochs` cannot be searched", "Did you mean `defaults.`?"]),
    "rows": ({"stages.sky.train.limit": [1]}, ["cannot be searched", "method.NAME.SETTING"]),
    "one value": ({"defaults.epochs": 3}, ["defaults.epochs: give a list", "got 3"]),
    "empty": ({"defaults.epochs": []}, ["defaults.epochs: give a list of values", "got []"]),
    "twice": ({"defaults.epochs": [1, 2, 1]}, ["no value twice"]),
    "key": ({"defaults.epochs": {"low": 1, "hihg": 2}}, ["unknown key `hihg`", "Did you mean `high`?"]),
    "no end": ({"defaults.epochs": {"low": 1}}, ["low and high must be numbers"]),
    "text": ({"defaults.epochs": {"low": "1", "high": 2}}, ["low and high must be numbers"]),
    "endless": ({"defaults.epochs": {"low": 1, "high": math.inf}}, ["low and high must be numbers"]),
    "log": ({"defaults.epochs": {"low": 1, "high": 2, "log": "yes"}}, ["log true or false"]),
    "equal ends": ({"defaults.epochs": {"low": 2, "high": 2}}, ["low must be below high; got 2 and 2"]),
    "turned": ({"defaults.epochs": {"low": 3, "high": 2}}, ["low must be below high; got 3 and 2"]),
    "log of 0": ({"defaults.epochs": {"low": 0, "high": 2, "log": True}}, ["low must be above 0; got 0"]),
}


@pytest.mark.parametrize(("search", "words"), WRONG.values(), ids=WRONG)
def test_a_search_that_means_nothing_is_told(search, words):
    with pytest.raises(UserError) as told:
        search_space.checked(search)
    for word in words:
        assert word in str(told.value)


def test_a_range_needs_a_number_of_trials():
    with pytest.raises(UserError, match="how many `trials`"):
        values(RANGE, None)


# the two streams


def marked(stream, word):
    """The same stream of other rows, no two alike: `word`, part and number stand before every text."""

    def other(rows, part):
        return [row | {"text": f"{word} {part} {i} {row['text']}"} for i, row in enumerate(rows)]

    stages = [
        replace(
            s, rows=other(s.rows, "train"),
            evals=tuple(replace(e, rows=other(e.rows, f"{s.name} test")) for e in s.evals),
        )
        for s in stream.stages
    ]  # fmt: skip
    return replace(stream, stages=tuple(stages))


def in_stage(stream, index, **changes):
    stages = list(stream.stages)
    stages[index] = replace(stages[index], **changes)
    return replace(stream, stages=tuple(stages))


REPORTED = marked(tiny_stream.stream(), "new")
OTHER = marked(tiny_stream.stream(), "old")


def renamed(stream):
    """Other names and other files; the rows are the same."""
    stages = [
        replace(s, name=f"new-{s.name}", rows=[r | {"__source__": "elsewhere:1"} for r in s.rows])
        for s in stream.stages
    ]
    return replace(stream, stages=tuple(stages))


def test_another_stream_of_the_same_scenario_is_taken():
    check_apart([REPORTED], [OTHER])
    check_apart([REPORTED], [replace(OTHER, stages=OTHER.stages[:1]), OTHER])
    assert OTHER.general[0].rows == REPORTED.general[0].rows  # nothing is chosen by a general set
    trained_too = in_stage(OTHER, 0, rows=[*OTHER.stages[0].rows, *REPORTED.stages[0].rows[:2]])
    check_apart([REPORTED], [trained_too])  # a few rows that the reported stream trains on


@pytest.mark.parametrize(
    "same",
    [
        REPORTED,
        renamed(REPORTED),
        replace(REPORTED, stages=REPORTED.stages[:1]),
        replace(REPORTED, stages=(*REPORTED.stages, *OTHER.stages)),
        in_stage(REPORTED, 0, rows=REPORTED.stages[0].rows[3:]),
    ],
    ids=["itself", "other names", "its beginning", "goes on", "most of its rows"],
)
def test_the_reported_stream_is_refused(same):
    with pytest.raises(UserError, match="the tuning stream is the reported one"):
        check_apart([OTHER, REPORTED], [OTHER, same])  # one pair is enough
    with pytest.raises(UserError, match="the tuning stream is the reported one"):
        check_apart([REPORTED], [same])


def test_rows_that_judge_the_reported_stream_are_refused():
    held = REPORTED.stages[0].evals[0].rows
    trained = in_stage(OTHER, 1, rows=[*OTHER.stages[1].rows, held[0]])
    judging = replace(OTHER.stages[1].evals[0], rows=[*OTHER.stages[1].evals[0].rows, *held[1:3]])
    for searched, number in ((trained, 1), (in_stage(OTHER, 1, evals=(judging,)), 2)):
        with pytest.raises(UserError, match=f"{number} of 12 rows that judge the reported stream"):
            check_apart([REPORTED], [searched])
    again = in_stage(REPORTED, 0, rows=[*REPORTED.stages[0].rows, held[0]])
    check_apart([again], [trained])  # the reported stream trains on that row itself
    backwards = replace(REPORTED, stages=REPORTED.stages[::-1])
    with pytest.raises(UserError, match="12 of 12 rows"):
        check_apart([REPORTED], [backwards])


def test_another_scenario_is_refused():
    with pytest.raises(UserError, match="`candidates` is seen there and task here"):
        check_apart([REPORTED], [replace(OTHER, candidates="seen")])


def test_the_identity_of_streams_is_that_of_their_rows():
    assert identity([OTHER]) == identity([renamed(OTHER)])
    found = {identity(each) for each in ([OTHER], [REPORTED], [OTHER, REPORTED], [marked(OTHER, "x")])}
    judged = replace(OTHER.stages[0].evals[0], rows=OTHER.stages[0].evals[0].rows[1:])
    assert len(found | {identity([in_stage(OTHER, 0, evals=(judged,))])}) == 5
