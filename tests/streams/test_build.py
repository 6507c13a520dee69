"""From stream file to stages and methods, and what is refused before any training."""

import json
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest

from lifelong.core.axes import Penalty, Replay, Tuner
from lifelong.core.composition import Methods, check_composition, compose, snake
from lifelong.core.settings import Range
from lifelong.core.stream import joined
from lifelong.errors import UserError
from lifelong.metrics.accuracy import Accuracy
from lifelong.metrics.exact_match import ExactMatch
from lifelong.objectives.causal_lm import CausalLm
from lifelong.objectives.classification import Classification
from lifelong.objectives.sft import Sft
from lifelong.schedules.cosine import Cosine
from lifelong.schedules.linear import Linear
from lifelong.streams import build, config


class Inert:
    """Bodies for the abstract methods; nothing here is run."""

    def attach(self, *args): ...
    def fold(self, *args): ...
    def init(self, *args): ...
    def loss(self, *args): ...
    def end_stage(self, *args): ...
    def add(self, *args): ...
    def pick(self, *args): ...


@dataclass(frozen=True, kw_only=True)
class Anchored(Inert, Tuner):
    rank: Annotated[int, Range(1)] = 8  # any


@dataclass(frozen=True, kw_only=True)
class FreshPairs(Inert, Tuner):
    persistent: ClassVar[bool] = False
    has_subspaces: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Pull(Inert, Penalty):
    needs_persistent: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Apart(Inert, Penalty):
    needs_subspaces: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Memory(Inert, Replay):
    keep: str = "text"


# composition


def test_parts_are_sorted_by_axis():
    made = compose([Memory(), Apart(), FreshPairs()], default=Anchored())
    assert made == Methods(
        tuner=FreshPairs(), penalties=(Apart(),), replay=Memory(), name="memory+apart+fresh_pairs"
    )
    assert compose([Pull()], default=Anchored(rank=3)).tuner == Anchored(rank=3)
    assert snake(FreshPairs()) == "fresh_pairs"


@pytest.mark.parametrize(
    "parts, message",
    [
        ([Anchored(), FreshPairs()], "anchored and fresh_pairs exclude each other: a run has one tuner"),
        (
            [Anchored(), Memory(), Memory()],
            "memory and memory exclude each other: a run has one replay memory",
        ),
        ([FreshPairs(), Pull()], "pull compares a weight .* fresh_pairs trains fresh weights"),
        ([Anchored(), Apart()], "apart needs a tuner that keeps the directions .* anchored does not"),
        ([Anchored(), Cosine()], "`cosine` is neither tuner nor penalty nor memory"),
        ([Memory()], "a run needs a tuner"),
    ],
)
def test_parts_that_do_not_work_together(parts, message):
    with pytest.raises(UserError, match=message):
        check_composition(parts)


@pytest.mark.parametrize("parts", [[Anchored(), Pull()], [FreshPairs(), Apart()], [Anchored(), Memory()]])
def test_parts_that_work_together(parts):
    check_composition(parts)


def test_methods_cannot_exist_in_a_bad_combination():
    with pytest.raises(UserError, match="pull compares"):
        Methods(tuner=FreshPairs(), penalties=(Pull(),))


# methods by name


def chosen(method):
    run = {
        "name": "x",
        "model": "m",
        "method": method,
        "stages": [{"name": "s", "train": "a", "eval": "b", "epochs": 1}],
    }
    return build.methods(config.parse(run, "s.yaml").method)


def test_methods_by_name():
    made = chosen([{"o_lora": {"rank": 3}}, {"orthogonal": {"strength": 0.25}}, "reservoir"])
    assert (snake(made.tuner), made.tuner.rank) == ("o_lora", 3)
    assert made.penalties[0].strength == 0.25
    assert (made.stream, made.name) == ("sequence", "o_lora+orthogonal+reservoir")
    assert snake(chosen("reservoir").tuner) == "lora"


def test_outsiders_are_named_by_module_and_class():
    assert chosen([{f"{__name__}:Anchored": {"rank": 5}}]).tuner == Anchored(rank=5)
    with pytest.raises(
        UserError, match="method test_build:Anchored: unknown setting `rnk`. Did you mean `rank`"
    ):
        chosen([{f"{__name__}:Anchored": {"rnk": 5}}])
    with pytest.raises(UserError, match="cannot import method `no_such:Thing`"):
        chosen("no_such:Thing")


def test_range_of_a_setting():
    with pytest.raises(UserError, match=r"method lora: Lora.rank must be in the range \[1, inf\); got 0."):
        chosen({"lora": {"rank": 0}})


@pytest.mark.parametrize(
    "name, order", [("sequential", "sequence"), ("joint", "joint"), ("per_task", "per_task")]
)
def test_bounds(name, order):
    made = chosen(name)
    assert (made.name, made.stream, snake(made.tuner)) == (name, order, "lora")
    assert made.penalties == () and made.replay is None


def test_recipe_and_its_changes():
    plain = chosen("o_lora_replay")
    assert [snake(part) for part in plain.parts] == ["o_lora", "orthogonal", "reservoir"]
    assert (plain.name, plain.replay.size) == ("o_lora_replay", 200)
    changed = chosen({"o_lora_replay": {"reservoir": {"size": 50}, "o_lora": {"dropout": 0.1}}})
    assert (changed.replay.size, changed.tuner.dropout, changed.tuner.rank) == (50, 0.1, plain.tuner.rank)
    assert changed.penalties == plain.penalties
    other = chosen({"joint": {"full": {"targets": ["q_proj"]}}})
    assert (snake(other.tuner), other.tuner.targets) == ("full", ("q_proj",))
    assert (other.stream, other.name) == ("joint", "joint")
    with pytest.raises(UserError, match="the recipe has no method `resevoir`. Did you mean `reservoir`"):
        chosen({"o_lora_replay": {"resevoir": {"size": 50}}})
    with pytest.raises(UserError, match="settings of `reservoir` must be a mapping"):
        chosen({"o_lora_replay": {"reservoir": 50}})
    with pytest.raises(UserError, match="unknown setting `sze`"):
        chosen({"o_lora_replay": {"reservoir": {"sze": 50}}})


@pytest.mark.parametrize("name", config.discover.names("recipes"))
def test_every_recipe_builds_and_describes_itself(name):
    assert chosen(name).name == name
    described = config.discover.describe("recipes", name)
    assert described.summary and described.cost and described.verified


# stages


def rows_file(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


@pytest.fixture
def data(tmp_path):
    def labelled(*labels):
        return [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]

    rows_file(tmp_path, "mood.jsonl", labelled("sad", "glad", "sad"))
    rows_file(tmp_path, "mood.test.jsonl", labelled("glad"))
    rows_file(tmp_path, "odd.jsonl", labelled("glad", "gald"))
    rows_file(tmp_path, "asks.jsonl", [{"prompt": "p", "completion": "c"}])
    rows_file(tmp_path, "chat.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    rows_file(tmp_path, "prose.jsonl", [{"text": "once"}])
    rows_file(tmp_path, "other.jsonl", [{"title": "x", "body": "y"}])
    return tmp_path


def stream(folder, *stages, general=(), **keys):
    full = [
        {"epochs": 1, "eval": "mood.test.jsonl", "train": "mood.jsonl", "name": "mood", **each}
        for each in stages
    ]
    run = {"name": "x", "model": "m", "method": "lora", "stages": full, "general": list(general), **keys}
    return build.stream(config.parse(run, "s.yaml"), folder)


def test_a_stage_is_what_the_file_says(data):
    made = stream(
        data,
        {"objective": {"classification": {"template": "{text}?"}}, "learning_rate": 0.1, "beta2": 0.9},
        {
            "name": "ask",
            "train": "asks.jsonl",
            "eval": {"a": "asks.jsonl", "b": "asks.jsonl"},
            "steps": 5,
            "epochs": None,
        },
        defaults={"schedule": {"cosine": {"final_fraction": 0.1}}, "batch_tokens": 64},
        candidates="seen",
    )
    first, second = made.stages
    assert first.objective == Classification(template="{text}?")
    assert (first.labels, second.labels) == (("glad", "sad"), ())
    assert first.optimization.schedule == Cosine(final_fraction=0.1)
    assert (first.optimization.learning_rate, first.optimization.beta2) == (0.1, 0.9)
    assert (first.optimization.batch_size, first.optimization.batch_tokens) == (None, 64)
    assert (first.budget.epochs, second.budget.epochs, second.budget.steps) == (1, None, 5)
    assert [row["__source__"] for row in first.rows] == [f"mood.jsonl:{i}" for i in (1, 2, 3)]
    assert [(i, each.name) for i, each in made.columns()] == [(0, "mood"), (1, "ask.a"), (1, "ask.b")]
    assert (first.evals[0].labels, first.evals[0].metric) == (("glad", "sad"), Accuracy())
    assert (second.evals[0].objective, second.evals[0].metric) == (Sft(), ExactMatch())
    assert made.candidates == "seen"
    assert joined(made.__class__(stages=(first, first))).stages[0].labels == ("glad", "sad")


def test_default_schedule_warms_up(data):
    assert stream(data, {}).stages[0].optimization.schedule == Linear(warmup_fraction=0.05)


@pytest.mark.parametrize(
    "file, objective",
    [
        ("mood.jsonl", Classification()),
        ("asks.jsonl", Sft()),
        ("chat.jsonl", Sft()),
        ("prose.jsonl", CausalLm()),
    ],
)
def test_objective_follows_from_the_columns(data, file, objective):
    made = stream(data, {"train": file, "eval": {"path": file, "metric": "perplexity"}})
    assert made.stages[0].objective == objective


def test_columns_that_tell_no_objective_or_do_not_fit(data):
    with pytest.raises(UserError, match="stage mood: the columns body, title tell no objective"):
        stream(data, {"train": "other.jsonl"})
    with pytest.raises(UserError, match=r"other.jsonl:1\)?: column .* is missing; this row has title, body"):
        stream(data, {"train": "other.jsonl", "objective": "sft"})
    with pytest.raises(UserError, match=r"prose.jsonl:1\)?: column `label` is missing"):
        stream(data, {"eval": "prose.jsonl"})


def test_evaluation_set_with_its_own_objective_metric_and_limit(data):
    source = {"path": "mood.jsonl", "objective": "causal_lm", "metric": "perplexity", "limit": 2}
    (each,) = stream(data, {"eval": source}).stages[0].evals
    assert each.objective == CausalLm()
    assert (len(each.rows), each.labels, snake(each.metric)) == (2, (), "perplexity")


def test_labels(data):
    assert stream(data, {"labels": ["sad", "so-so", "glad"]}).stages[0].labels == ("sad", "so-so", "glad")
    with pytest.raises(
        UserError, match="mood.jsonl:2: label `glad` is in no training row and not in `labels`"
    ):
        stream(data, {"labels": ["sad", "glda"]})
    with pytest.raises(UserError, match="stage mood, eval: odd.jsonl:2: label `gald` .* Did you mean `glad`"):
        stream(data, {"eval": "odd.jsonl"})
    with pytest.raises(UserError, match="labels must differ"):
        stream(data, {"labels": ["sad", "sad", "glad"]})
    with pytest.raises(UserError, match="`labels` is given, but causal_lm has none"):
        stream(data, {"train": "prose.jsonl", "eval": "prose.jsonl", "labels": ["a"]})


def test_general_sets(data):
    general = [
        {"name": "prose", "data": "prose.jsonl"},
        {"name": "feel", "data": "odd.jsonl", "metric": "accuracy"},
    ]
    prose, feel = stream(data, {}, general=general).general
    assert (prose.name, prose.objective, prose.labels) == ("prose", CausalLm(), ())
    assert (feel.objective, feel.labels) == (Classification(), ("gald", "glad"))
    with pytest.raises(UserError, match="two evaluation sets are called `mood`"):
        stream(data, {}, general=[{"name": "mood", "data": "prose.jsonl"}])


def test_ranges_and_axes_are_checked_with_their_place(data):
    with pytest.raises(UserError, match="stage mood: linear: Linear.warmup_fraction must be in the range"):
        stream(data, {"schedule": {"linear": {"warmup_fraction": 2}}})
    with pytest.raises(UserError, match="stage mood, eval: `forgetting` cannot stand here"):
        stream(data, {"eval": {"path": "mood.jsonl", "metric": "forgetting"}})


def test_the_embedded_stream(tmp_path):
    run = {
        "name": "x",
        "model": "smollm2",
        "method": "sequential",
        "stages": "embedded",
        "general": "embedded",
    }
    made = build.stream(config.parse(run, "s.yaml", ["defaults.epochs=1"]), tmp_path)
    assert [(s.name, len(s.rows), len(s.evals[0].rows), len(s.labels)) for s in made.stages] == [
        ("reviews", 320, 120, 2),
        ("mail", 320, 120, 2),
        ("author", 320, 120, 3),
        ("century", 320, 120, 4),
        ("origin", 320, 120, 4),
    ]
    assert [(each.name, len(each.rows), snake(each.objective)) for each in made.general] == [
        ("prose", 40, "causal_lm"),
        ("tweets", 120, "classification"),
    ]
