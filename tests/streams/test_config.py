"""The stream file: short forms, overrides, the record, and mistakes told plainly."""

import dataclasses
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import lifelong.streams
from lifelong.core.settings import hints
from lifelong.core.stream import Budget, Guard, Optimization
from lifelong.errors import UserError
from lifelong.streams import builtin, config, mistakes, plain_yaml

STAGE = {"name": "reviews", "train": "a.jsonl", "eval": "b.jsonl", "epochs": 1}
RUN = {"name": "x", "model": "smollm2", "method": "sequential", "stages": [STAGE]}


def parse(changes=(), stage=None, **keys):
    return config.parse({**RUN, "stages": [{**STAGE, **(stage or {})}], **keys}, "s.yaml", changes)


def complaint(*args, **keys):
    with pytest.raises(UserError) as caught:
        parse(*args, **keys)
    return str(caught.value)


# YAML


def test_numbers_are_numbers_and_words_are_words():
    text = "a: 1e-3\nb: -2.5E+4\nc: 1\nd: no\ne: on\nf: 1:30\ng: 2026-11-01\nh: true\ni: null\n"
    text += "j: 012\nk: .5\nl: 1_000"
    assert plain_yaml.parse(text, "f") == {
        "a": 0.001, "b": -25000.0, "c": 1, "d": "no", "e": "on", "f": "1:30", "g": "2026-11-01", "h": True,
        "i": None, "j": 12, "k": 0.5, "l": "1_000",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: [1, 2\nc: 3", "s.yaml:3: not valid YAML"),
        ("a: 1\nb: 2\na: 3", "s.yaml:3: not valid YAML: the key `a` stands here twice"),
        (
            "a: !!python/object/apply:os.system ['true']",
            "s.yaml:1: not valid YAML: could not determine a constructor",
        ),
        ("a: \x07", "s.yaml: not valid YAML"),
    ],
)
def test_yaml_that_cannot_be_read(text, message):
    with pytest.raises(UserError, match=message):
        plain_yaml.parse(text, "s.yaml")


def test_file_that_is_missing_empty_or_not_text(tmp_path):
    (tmp_path / "stream.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(UserError, match=r"stream.yaml: not UTF-8 text \(byte 9\)"):
        config.read(tmp_path / "stream.yaml")
    with pytest.raises(UserError, match=r"no stream file .*straem.yaml. Did you mean `stream.yaml`"):
        config.read(tmp_path / "straem.yaml")
    (tmp_path / "stream.yaml").write_text("")
    with pytest.raises(UserError, match="stream.yaml: must hold keys .*; got null"):
        config.read(tmp_path / "stream.yaml")


# short forms and the record


def test_short_forms_are_written_out():
    short = parse(defaults={"schedule": "cosine"}, general=[{"name": "prose", "data": "p.jsonl"}])
    long = parse(
        model={"name": "smollm2"},
        method=[{"sequential": {}}],
        stage={"train": {"path": "a.jsonl"}, "eval": {"reviews": {"path": "b.jsonl"}}},
        defaults={"schedule": {"cosine": {}}},
        general=[{"name": "prose", "data": {"path": "p.jsonl"}}],
    )
    assert short.resolved() == long.resolved()
    assert short.resolved()["output"] == "runs/x"


def test_record_is_plain_json_and_reads_back_as_itself():
    made = parse(
        stage={
            "eval": ["x/one.csv", {"path": "two.csv", "limit": 3, "metric": "accuracy"}],
            "labels": [1, "b", True],
        },
        defaults={"batch_tokens": 512, "max_grad_norm": None, "learning_rate": 3e-4},
        seeds=[0, 1],
        general="embedded" if (Path(config.discover.PACKAGE) / "objectives/causal_lm.py").exists() else [],
    )
    record = made.resolved()
    assert json.loads(json.dumps(record)) == record
    again = config.parse(record, "record")
    assert again.resolved() == record
    assert again.fingerprint == made.fingerprint
    (stage,) = record["stages"]
    assert stage["labels"] == ["1", "b", "true"]
    assert set(stage["eval"]) == {"one", "two"}
    assert (stage["batch_size"], stage["batch_tokens"], stage["max_grad_norm"]) == (None, 512, None)
    assert (stage["learning_rate"], stage["epochs"], stage["beta1"]) == (3e-4, 1, 0.9)


def test_fingerprint_follows_numbers_and_not_labels():
    base = parse().fingerprint
    assert parse(["stages.0.learning_rate=2e-3"]).fingerprint != base
    assert parse(["stages.0.train=c.jsonl"]).fingerprint != base
    assert parse(["seed=1"]).fingerprint != base
    same = ["name=y", "output=elsewhere", "trackers=[wandb]", "checkpoint_seconds=5", "keep_checkpoints=9"]
    assert parse(same).fingerprint == base
    assert parse(defaults={"epochs": 1}, stage={"epochs": 1}).fingerprint == base  # said twice, the same run


def test_stage_goes_before_defaults_and_a_budget_replaces_a_budget():
    made = parse(
        defaults={"epochs": 3, "seconds": 60, "learning_rate": 0.1, "beta1": 0.5},
        stage={"epochs": 1, "beta1": 0.6},
    )
    merged = made.training(made.stages[0])
    assert (merged["epochs"], merged["seconds"], merged["learning_rate"], merged["beta1"]) == (
        1,
        None,
        0.1,
        0.6,
    )
    made = config.parse(
        {**RUN, "defaults": {"steps": 3}, "stages": [{k: STAGE[k] for k in ("name", "train", "eval")}]}, "s"
    )
    assert made.training(made.stages[0])["steps"] == 3
    made = parse(defaults={"batch_tokens": 99}, stage={"batch_size": 4})
    assert [made.training(made.stages[0])[key] for key in config.BATCH] == [4, None]
    made = parse(stage={"batch_tokens": 99})
    assert [made.training(made.stages[0])[key] for key in config.BATCH] == [None, 99]


def test_training_keys_defaults_and_ranges_are_those_of_the_core():
    ours, core = mistakes.hints(config.Training), {**hints(Budget), **hints(Optimization)}
    assert set(ours) == {"objective", *core}
    defaults = {f.name: f.default for cls in (Budget, Optimization) for f in dataclasses.fields(cls)}
    for name in set(core) - {"schedule"}:
        assert ours[name] == core[name], name
        assert config.Training.model_fields[name].default == defaults[name], name


def test_guard_keys_defaults_and_ranges_are_those_of_the_core():
    core = hints(Guard)
    assert set(mistakes.hints(config.GuardChoice)) == set(core)
    for name in set(core) - {"sets"}:
        assert mistakes.hints(config.GuardChoice)[name] == core[name], name
    made = config.GuardChoice().model_dump()
    assert Guard(**made) == Guard() and made["sets"] == {}


def test_seeds():
    assert parse().all_seeds == (0,)
    made = parse(seeds=[3, 5])
    assert made.all_seeds == (3, 5)
    assert made.with_seed(5).all_seeds == (5,)
    assert made.with_seed(5).fingerprint == parse(seed=5).fingerprint


def test_digest_sees_content_and_not_order():
    same = config.digest({"a": 1, "b": [2]})
    assert same == config.digest({"b": [2], "a": 1}) != config.digest({"a": 1, "b": [3]})
    images = [Image.new("L", (2, 2), shade) for shade in (7, 7, 8)]
    day = datetime.date(2026, 11, 1)
    digests = [config.digest([{"image": image, "day": day, "raw": b"x"}]) for image in images]
    assert digests[0] == digests[1] != digests[2]


# overrides


def test_overrides():
    made = parse(
        [
            "seed=3", "method=joint", "stages.0.epochs=2", "stages.reviews.learning_rate=1e-4",
            "defaults.beta2=0.99", "model.revision=main", "stages.0.train.limit=5", "stages.0.eval.limit=6",
            "trackers=[tensorboard, mlflow]",
        ]
    )  # fmt: skip
    assert (made.seed, made.method, made.trackers) == (3, [{"joint": {}}], ("tensorboard", "mlflow"))
    stage = made.stages[0]
    assert (stage.epochs, stage.learning_rate, stage.train.limit, stage.eval["reviews"].limit) == (
        2,
        1e-4,
        5,
        6,
    )
    assert (made.defaults.beta2, made.model.name, made.model.revision) == (0.99, "smollm2", "main")
    made = parse(["method.reservoir.size=7"], method="reservoir")
    assert made.method == [{"reservoir": {"size": 7}}]
    listed = parse(["method.ewc.strength=7", "method.lora.rank=2"], method=["lora", {"ewc": {"decay": 0.5}}])
    assert listed.method == [{"lora": {"rank": 2}}, {"ewc": {"decay": 0.5, "strength": 7}}]
    made = parse(["stages.0.eval.late.limit=8"], stage={"eval": {"early": "e.csv", "late": "l.csv"}})
    assert (made.stages[0].eval["late"].limit, made.stages[0].eval["early"].limit) == (8, None)


def test_overrides_do_not_change_what_was_passed():
    raw = json.loads(json.dumps(RUN))
    config.parse(raw, "s", ["stages.0.epochs=2"])
    assert raw == RUN


@pytest.mark.parametrize(
    "override, message",
    [
        ("seed", "override `seed`: write it as key=value"),
        ("stages..epochs=1", "write it as key=value"),
        ("stages.review.epochs=2", "`stages` has no item named `review`. Did you mean `reviews`?"),
        ("stages.4.epochs=2", "`stages` has 1 items, numbered from 0; got 4"),
        (
            "stages.0.epochz=2",
            "override `stages.0.epochz=2`: stages[0]: unknown key `epochz`. Did you mean",
        ),
        ("stages.0.epochs.x=2", "`stages.0.epochs` is a single value, so there is no `x` in it"),
        ("sed=2", "override `sed=2`: unknown key `sed`. Did you mean `seed`?"),
        ("seed=-1", "override `seed=-1`: seed: must be in the range [0, inf); got -1"),
        ("seed=[1", "override `seed=[1`:1: not valid YAML"),
    ],
)
def test_overrides_that_lead_nowhere(override, message):
    assert message in complaint([override])


def test_an_override_of_a_method_that_is_not_there_names_those_that_are():
    said = complaint(["method.ewcc.strength=1"], method=["lora", "ewc"])
    assert "`method` has no item named `ewcc`. Did you mean `ewc`?" in said


# mistakes


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"modle": 1}, "s.yaml: unknown key `modle`. Did you mean `model`?"),
        ({"stage": {"learning_rat": 1}}, "s.yaml: stages[0]: unknown key `learning_rat`. Did you mean"),
        ({"stage": {"learning_rate": -1}}, "stages[0].learning_rate: must be in the range (0, inf); got -1."),
        ({"stage": {"learning_rate": "fast"}}, 'stages[0].learning_rate: must be a finite number'),
        ({"stage": {"epochs": [1]}}, "stages[0].epochs: must be a finite number"),
        ({"stage": {"epochs": True}}, "stages[0].epochs: must be a finite number"),
        ({"stage": {"max_grad_norm": 0}}, "max_grad_norm: must be in the range (0, inf) or null; got 0."),
        ({"stage": {"labels": "a"}}, 'stages[0].labels: must be a list; got "a".'),
        ({"stage": {"labels": ["a", 1.5]}}, "stages[0].labels[1]: must be a text; got 1.5."),
        ({"stage": {"eval": []}}, "stages[0]: eval: name at least one file."),
        ({"stage": {"eval": ["a/x.csv", "b/x.csv"]}}, "write a mapping of names to files"),
        ({"stage": {"eval": {"path": "x", "limt": 3}}}, "stages[0].eval.reviews: unknown key `limt`"),
        ({"stage": {"train": {"split": "x"}}}, "stages[0].train: `path` is missing."),
        ({"stage": {"train": 3}}, "stages[0].train: must be keys with values; got 3."),
        ({"stage": {"train": {"path": "x", "columns": {"text": 1}}}}, "columns.text: must be a text; got 1"),
        ({"stage": {"train": {"path": "x", "format": "xls"}}}, "stages[0].train.format: must be one of"),
        ({"stage": {"name": "a/b"}}, "stages[0].name: use letters, digits, - and _"),
        ({"stage": {"name": "7"}}, "not digits alone"),
        ({"stage": {"batch_size": 2, "batch_tokens": 3}}, "stages[0]: give exactly one of batch_size"),
        ({"stage": {"epochs": None}}, "stages[0]: no budget. Give epochs, steps, tokens or seconds"),
        ({"stages": []}, "stages: give at least one."),
        ({"stages": 3}, "s.yaml: stages: must be a list; got 3."),
        ({"stages": [STAGE, STAGE]}, "stages[1].name: `reviews` is taken"),
        ({"model": 3}, "s.yaml: model: must be keys with values; got 3."),
        ({"precision": "fp8"}, "precision: must be one of 'auto', 'float32', 'bfloat16'; got \"fp8\"."),
        ({"trackers": ["tb"]}, "trackers[0]: must be one of 'tensorboard'"),
        ({"seed": 0, "seeds": [1]}, "give `seed` or `seeds`, not both."),
        ({"seeds": [1, 1]}, "seeds: give at least one, none twice"),
        ({"seeds": [1, "a"]}, 'seeds[1]: must be a whole number; got "a".'),
        ({"general": [{"name": "p"}]}, "general[0]: `data` is missing."),
        ({"method": None}, "method: must be one name, or one name with its settings"),
        ({"method": {"lora": {"rank": 1}, "l2": {}}}, "method: must be one name, or one name with its"),
        ({"method": "reservor"}, "method: unknown method `reservor`. Did you mean `reservoir`?"),
        ({"method": {"lora": {"rnk": 3}}}, "method: unknown setting `rnk` of lora. Did you mean `rank`?"),
        ({"method": ["sequential", "lora"]}, "method: `sequential` is a recipe and stands alone"),
        ({"method": "linear"}, "method: unknown method `linear`"),
        ({"defaults": {"schedule": "lineer"}}, "unknown method `lineer`. Did you mean `linear`?"),
        ({"defaults": {"schedule": {"linear": {"warmup": 1}}}}, "Did you mean `warmup_fraction`?"),
    ],
)  # fmt: skip
def test_mistakes(keys, message):
    text = complaint(**keys)
    assert message in text
    assert "pydantic" not in text and "Input should" not in text and "\n" not in text


def test_several_mistakes_are_told_together():
    text = complaint(stage={"epochs": -1, "beta1": 2}, modle=1)
    assert len(text.splitlines()) == 3
    text = complaint(stage={f"wrong_{i}": i for i in range(9)})
    assert text.splitlines()[-1] == "... and 4 more."


# the embedded stream, the template, the cost of import


def test_embedded_files_exist_and_are_named_without_a_path():
    paths = [each[key] for each in builtin.stages() for key in ("train", "eval")]
    paths += [each["data"] for each in builtin.general()]
    assert all(builtin.path(path).is_file() and "/" not in path for path in paths)
    assert [each["name"] for each in builtin.stages()] == ["reviews", "mail", "author", "century", "origin"]
    for name, template in builtin.TEMPLATES.items():
        rows = [json.loads(line) for line in builtin.path(f"{name}.train.jsonl").read_text().splitlines()]
        assert template.endswith("Answer:") and template.count("{text}") == 1
        assert not any(row["label"] in template for row in rows)  # the question gives no answer away


def test_template_reads():
    template = Path(lifelong.streams.__file__).parent / "template.yaml"
    assert builtin.template() == template.read_text()
    for file in (template, builtin.demo()):
        made = config.read(file)
        assert len(made.stages) == 5 and len(made.general) == 2
    made = config.read(template, ["defaults.epochs=2", "stages.mail.learning_rate=1e-4"])
    assert made.training(made.stages[1])["epochs"] == 2


def test_reading_needs_no_torch():
    code = "import sys, lifelong.streams.config; assert not {'torch', 'numpy'} & set(sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_the_optimiser_of_before_there_was_a_choice_leaves_the_fingerprint_alone():
    plain, told = parse(), parse(stage={"optimizer": "adamw", "momentum": 0.0})
    assert plain.fingerprint == told.fingerprint and "optimizer" not in plain._telling()["stages"][0]
    other = parse(stage={"optimizer": "sgd"})
    moving = parse(stage={"optimizer": "sgd", "momentum": 0.9})
    assert len({each.fingerprint for each in (plain, other, moving)}) == 3
    assert plain.resolved()["stages"][0]["optimizer"] == "adamw"
