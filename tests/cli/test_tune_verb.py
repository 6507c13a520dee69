"""`lifelong tune`: what it tries and chooses, what it freezes, and what `lifelong bench` makes of that."""

import json
import os
import re
import shutil
import signal
from contextlib import AbstractContextManager, nullcontext

import process
import pytest
import tiny_stream
import yaml

from lifelong import bench as benches
from lifelong import pools, standings, tune
from lifelong.streams import bench_file, plain_yaml

WEAK, STRONG = 1e-9, 3e-3  # learning rates: nothing is learned, and most of the last task
DEFAULT = {"seeds": [0]}  # of tuning
NAIVE = {"sequential": {"full": {}}}


def rows_of(name, count, seed, word="old"):
    """Rows of the same tasks as the reported stream, and none of its rows."""
    return [row | {"text": f"{word} {row['text']}"} for row in tiny_stream.rows(name, count, seed)]


@pytest.fixture
def here(monkeypatch):
    """Runs are made in this process, for speed; the names of those that were begun."""
    begun, models, ended = [], {}, []

    class Here:
        num_free = property(lambda self: 1 - len(ended))

        def begin(self, job):
            begun.append(f"{job.cell.label} {job.cell.folder}")
            ended.append((job, benches.attempt(job, models)))

        def end(self):
            return ended.pop()

    monkeypatch.setattr(pools, "opened", lambda *args: nullcontext(Here()))
    return begun


@pytest.fixture
def bench(project):
    """Writes bench.yaml beside the data of `project` and of another stream; a call changes its keys, and
    those of `tune` by `tune=` (None: without it). With `learns` there is one task, long enough to learn it.
    """
    for name in ("sky", "farm"):
        tiny_stream.write_rows(project / f"old-{name}.train.jsonl", rows_of(name, 24, 10))
        tiny_stream.write_rows(project / f"old-{name}.test.jsonl", rows_of(name, 12, 11))

    def write(tune=DEFAULT, learns=False, **changes):
        stream = yaml.safe_load((project / "stream.yaml").read_text())
        stream["stages"] = stream["stages"][: 1 if learns else 2]
        stream["defaults"] |= {"epochs": 16 if learns else 2}
        stages = [
            {"name": f"old-{each['name']}"} | {k: f"old-{each[k]}" for k in ("train", "eval")}
            for each in stream["stages"]
        ]
        content = {
            "name": "small", "stream": stream, "output": "out", "seeds": [0], "workers": 1, "bounds": False,
            "tune": tune and {"stream": {"stages": stages}} | tune,
            "methods": {"sequential": {"method": NAIVE,
                                       "search": {"defaults.learning_rate": [WEAK, STRONG]}}},
        } | changes  # fmt: skip
        (project / "bench.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return project / "bench.yaml"

    return write


def searched(search, label="sequential", method=NAIVE):
    return {label: {"method": method, "search": search}}


def frozen(project):
    return plain_yaml.read(project / "bench.tuned.yaml")


def without_seconds(value):
    """A record of the same search, whenever it was made."""
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k not in ("seconds", "content")}
    return [without_seconds(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("rates", [[WEAK, STRONG], [STRONG, WEAK]], ids=["last", "first"])
def test_what_does_better_on_the_tuning_stream_is_frozen_and_reported(lifelong, bench, project, here, rates):
    tiny_stream.write_rows(project / "sky.train.jsonl", rows_of("sky", 24, 10, "new"))
    turned = [row | {"label": f"sky{1 - i % 2}"} for i, row in enumerate(rows_of("sky", 12, 11, "new"))]
    tiny_stream.write_rows(project / "sky.test.jsonl", turned)  # what is learned is wrong here
    file = bench(learns=True, methods=searched({"defaults.learning_rate": rates}))
    said = lifelong("tune", file)
    assert said.status == 0 and len(here) == 2
    best = f"defaults.learning_rate={STRONG}"
    assert re.search(rf"sequential: {best}  \([91]\S+ on the tuning stream; 2 trials, 2 runs", said.out)
    assert "bench.tuned.yaml; `lifelong bench bench.yaml` reports" in said.out
    text = (project / "bench.tuned.yaml").read_text()
    assert text.startswith("# Written by `lifelong tune bench.yaml`.") and "&id" not in text
    one = frozen(project)["methods"]["sequential"]
    scores = dict(zip(rates, [each["score"] for each in one["trials"]], strict=True))
    assert scores[STRONG] > 0.9 and scores[WEAK] < 0.6
    assert one["changes"] == [best] and one["score"] == scores[STRONG] and one["runs"] == 2
    assert one["seconds"] == pytest.approx(sum(each["seconds"] for each in one["trials"]), abs=1e-3)
    assert one["seconds"] > 0

    said = lifelong("bench", file, "--json")
    found = json.loads(said.out)
    (row,) = found["rows"]
    made = json.loads((project / "out" / "sequential" / "order0-seed0" / "config.json").read_text())
    assert said.status == 0 and made["stages"][0]["optimization"]["learning_rate"] == STRONG
    assert row["average_accuracy"] < 0.1  # the other value would do better here
    assert row["settings"] == best and row["tuning_score"] == one["score"]
    assert row["trials"] == row["tuning_runs"] == 2
    assert row["tuning_seconds"] == one["seconds"] == found["tuning"]["seconds"]
    assert found["tuning"]["protocol"] == "hp_reality_check"
    assert found["tuning"]["stages"] == ["old-sky"]


def test_equal_scores_go_to_fewer_tokens_and_then_to_the_earlier(lifelong, bench, project, here):
    search = {"defaults.epochs": [2, 1], "defaults.learning_rate": [2 * WEAK, WEAK]}
    assert lifelong("tune", bench(methods=searched(search))).status == 0
    one = frozen(project)["methods"]["sequential"]
    assert {each["score"] for each in one["trials"]} == {0.5} and len(one["trials"]) == 4
    assert one["changes"] == ["defaults.epochs=1", "defaults.learning_rate=2e-09"]


def test_the_order_of_ties():
    def tried(score, tokens=1, kept=1):
        return {"score": score, "tokens": tokens, "kept_bytes": kept}

    assert tune.best([tried(0.5, 1, 1), tried(0.6, 9, 9)]) == 1
    assert tune.best([tried(0.5, 2, 1), tried(0.5, 1, 9)]) == 1
    assert tune.best([tried(0.5, 1, 9), tried(0.5, 1, 2), tried(0.5, 1, 2)]) == 1
    assert tune.best([tried(None, 0, 0), tried(0.0, 9, 9)]) == 1
    assert tune.best([tried(None)]) is None


def test_a_score_is_the_mean_over_the_orders_and_seeds_of_tuning(lifelong, bench, project, here):
    search = {"defaults.learning_rate": [STRONG], "defaults.epochs": [12]}
    file = bench(tune={"seeds": [3, 4], "orders": 2}, methods=searched(search))
    assert lifelong("tune", file).status == 0
    (trial,) = frozen(project)["methods"]["sequential"]["trials"]
    places = sorted((project / "out" / "tuning" / "sequential").glob("*/order*"))
    assert [each.name for each in places] == ["order0-seed3", "order0-seed4", "order1-seed3", "order1-seed4"]
    scores = []
    for place in places:
        metrics = json.loads((place / "summary.json").read_text())["metrics"]
        scores += [each["value"] for each in metrics if each["id"] == "average_accuracy"]
    assert len(set(scores)) > 1 and trial["score"] == pytest.approx(sum(scores) / 4) and trial["runs"] == 4


def test_the_choice_follows_the_tuning_stream_alone(lifelong, bench, project, here):
    file = bench()
    assert lifelong("tune", file).status == 0
    first = without_seconds(frozen(project))
    for name in ("sky", "farm"):
        rows = rows_of(name, 8, 5, "new")
        for part in ("train", "test"):
            tiny_stream.write_rows(project / f"{name}.{part}.jsonl", rows)
    shutil.rmtree(project / "out")
    assert lifelong("tune", file).status == 0 and len(here) == 4
    assert without_seconds(frozen(project)) == first
    tiny_stream.write_rows(project / "old-farm.test.jsonl", rows_of("farm", 12, 12))
    shutil.rmtree(project / "out")
    assert lifelong("tune", file).status == 0
    assert without_seconds(frozen(project)) != first  # the control: other rows in the tuning stream


def test_a_search_for_all_reaches_the_bounds_and_the_table_tells_all(lifelong, bench, project, here):
    common = {"search": {"defaults.learning_rate": [WEAK]}, "trials": 1, "seed": 7}
    drawn = searched({"method.l2.strength": {"low": 1.0, "high": 100.0, "log": True}}, "l2", ["full", "l2"])
    file = bench(tune=common, bounds=True, methods=drawn)
    assert lifelong("tune", file).status == 0
    found = frozen(project)
    assert list(found["methods"]) == ["sequential", "joint", "per_task", "l2"]
    assert [found["methods"][each]["score"] for each in ("sequential", "joint", "per_task")] == [0.5] * 3
    assert [each.partition("=")[0] for each in found["methods"]["l2"]["changes"]] == [
        "defaults.learning_rate", "method.l2.strength"
    ]  # fmt: skip
    strength = float(found["methods"]["l2"]["changes"][1].partition("=")[2])
    assert lifelong("bench", file).status == 0
    made = json.loads((project / "out" / "l2" / "order0-seed0" / "config.json").read_text())
    (made,) = (each["settings"] for each in made["methods"] if each["name"] == "l2")
    assert made["strength"] == strength and 1 <= strength <= 100
    for name in ("bench.md", "bench.html"):
        text = (project / "out" / name).read_text()
        for word in ("on the tuning stream, %", "chosen settings", "tuning, trials", "tuning, seconds",
                     "task identity", "visible: labels of the task", "visible: a model of its own",
                     f"method.l2.strength={strength:g}", "old-sky, old-farm (1 order, 1 seed)",
                     "arXiv:2403.09066", "The search took 4 runs"):  # fmt: skip
            assert word in text, f"{name}: {word}"


def test_a_table_says_what_was_not_tuned(lifelong, bench, project, here):
    plain = {"as it is": ["lora"]}
    file = bench(methods=searched({"defaults.learning_rate": [WEAK]}) | plain)
    assert lifelong("tune", file).status == lifelong("bench", file).status == 0
    text = (project / "out" / "bench.md").read_text()
    assert "Not tuned, as written: as it is." in text and "| as written |" in text
    assert lifelong("bench", bench(tune=None, methods=plain)).status == 0
    text = (project / "out" / "bench.md").read_text()
    assert "No settings were searched for this table" in text and "tuning stream, %" not in text


def test_a_trial_that_fails_is_recorded_and_is_not_chosen(lifelong, bench, project, here):
    targets = {"method.lora.targets": [["nowhere"], ["q_proj"]]}
    file = bench(methods=searched(targets, "lora", ["lora"]))
    assert lifelong("tune", file).status == 0
    one = frozen(project)["methods"]["lora"]
    assert one["changes"] == ['method.lora.targets=["q_proj"]'] and one["runs"] == 1
    assert one["trials"][0]["score"] is None and "nowhere" in one["trials"][0]["problem"]
    assert "problem" not in one["trials"][1]
    said = lifelong("tune", bench(methods=searched({"method.lora.targets": [["nowhere"]]}, "lora", ["lora"])))
    assert said.status == 2 and "none of its 1 trials was finished" in said.err and "nowhere" in said.err


def test_a_trial_with_a_run_missing_has_no_score(lifelong, bench, project, here, monkeypatch):
    attempt = benches.attempt

    def breaks(job, models):
        broken = job.cell.seed == 1 and job.cell.chosen.defaults.learning_rate == WEAK
        return "Traceback ...\nOSError: lost" if broken else attempt(job, models)

    monkeypatch.setattr(benches, "attempt", breaks)
    file = bench(tune={"seeds": [0, 1]}, methods=searched({"defaults.learning_rate": [WEAK, 2 * WEAK]}))
    assert lifelong("tune", file).status == 0
    one = frozen(project)["methods"]["sequential"]
    first, second = one["trials"]
    assert one["changes"] == second["changes"] and second["runs"] == 2  # equal scores: the first would win
    assert first["score"] is None and first["runs"] == 1 and first["problem"] == "OSError: lost"
    monkeypatch.setattr(benches, "attempt", attempt)
    assert lifelong("tune", file).status == 0 and len(here) == 5  # what failed is tried again
    assert frozen(project)["methods"]["sequential"]["changes"] == first["changes"]


def test_a_larger_search_makes_only_the_new_trials(lifelong, bench, project, here):
    rate = "defaults.learning_rate"
    assert lifelong("tune", bench(methods=searched({rate: [WEAK]}))).status == 0
    before = len(here)
    assert lifelong("tune", bench(methods=searched({rate: [2 * WEAK, WEAK]}))).status == 0
    assert before == 1 and len(here) == 2
    one = frozen(project)["methods"]["sequential"]
    assert one["runs"] == 2 and one["changes"] == [f"{rate}=2e-09"]
    assert lifelong("tune", bench(methods=searched({rate: [2 * WEAK, WEAK]}))).status == 0
    assert len(here) == 2 and frozen(project)["methods"]["sequential"] == one


class OwnGroup(AbstractContextManager):
    """Inside, the process and what it starts can be killed together."""

    def __enter__(self):
        os.setpgrp()

    def __exit__(self, *problem):
        pass


def test_after_a_kill_the_finished_trials_stand(lifelong, bench, project, here):
    bench(learns=True, methods=searched({"defaults.learning_rate": [WEAK, STRONG, 2 * WEAK]}))
    trials = project / "out" / "tuning" / "sequential"
    made = process.start(project, "tune", "bench.yaml", inside=OwnGroup())
    process.wait_for(lambda: any(trials.glob("*/order0-seed0/summary.json")), made)
    os.killpg(made.pid, signal.SIGKILL)
    made.join()
    done = {file: file.stat().st_mtime_ns for file in trials.glob("*/order0-seed0/summary.json")}
    assert 1 <= len(done) < 3 and not (project / "bench.tuned.yaml").exists()
    assert lifelong("tune", "bench.yaml").status == 0
    assert len(here) == 3 - len(done) and all(f.stat().st_mtime_ns == then for f, then in done.items())
    resumed = without_seconds(frozen(project))
    shutil.rmtree(project / "out")
    assert lifelong("tune", "bench.yaml").status == 0
    assert without_seconds(frozen(project)) == resumed
    assert resumed["methods"]["sequential"]["changes"] == [f"defaults.learning_rate={STRONG}"]


def test_a_dry_run_makes_nothing_and_json_parses(lifelong, bench, project, here):
    file = bench(tune={"seeds": [0, 1]})
    known = set(project.iterdir())
    said = lifelong("tune", file, "--dry-run")
    assert said.status == 0 and "2 trials, 4 runs, 0 of them finished; nothing was begun" in said.out
    assert f"sequential: defaults.learning_rate={STRONG}" in said.out
    told = json.loads(lifelong("tune", file, "--dry-run", "--json").out)
    assert told == [
        {"method": "sequential", "changes": [f"defaults.learning_rate={rate}"], "runs": 2}
        for rate in (WEAK, STRONG)
    ]
    assert set(project.iterdir()) == known and not here
    found = json.loads(lifelong("tune", bench(), "--json").out)
    assert found["file"].endswith("bench.tuned.yaml") and found["protocol"] == "hp_reality_check"
    assert found["methods"] == frozen(project)["methods"]
    assert "2 runs, 2 of them finished" in lifelong("tune", bench(), "--dry-run").out


def test_a_changed_command_line_is_part_of_the_search(lifelong, bench, project, here):
    rate = "methods.sequential.search={defaults.learning_rate: [1e-9]}"
    assert lifelong("tune", bench(), rate).status == 0 and len(here) == 1
    assert lifelong("bench", bench(), rate).status == 0
    assert "were not chosen by this search" in lifelong("bench", bench()).err


# refusals


STALE = {
    "other search": {"methods": searched({"defaults.learning_rate": [WEAK, 2e-3]})},
    "more values": {"methods": searched({"defaults.learning_rate": [WEAK, STRONG, 2e-3]})},
    "other method": {"methods": searched({"defaults.learning_rate": [WEAK]}, method={"sequential": {}})},
    "other seeds": {"tune": {"seeds": [1]}},
    "another method": {"methods": searched({"defaults.learning_rate": [WEAK]})
                       | searched({"defaults.learning_rate": [WEAK]}, "more")},
    "other rows of the tuning stream": {"tune": {"changes": ["stages.old-sky.train.limit=20"]}},
}  # fmt: skip


@pytest.fixture
def tuned(lifelong, bench, here):
    file = bench(methods=searched({"defaults.learning_rate": [WEAK]}))
    assert lifelong("tune", file).status == 0
    return file


@pytest.mark.parametrize("changes", STALE.values(), ids=STALE)
def test_a_bench_refuses_settings_of_another_search(lifelong, bench, project, here, tuned, changes):
    same = {"methods": searched({"defaults.learning_rate": [WEAK]})}
    said = lifelong("bench", bench(**same | changes))
    assert said.status == 2 and "Traceback" not in said.err
    assert "were not chosen by this search on this stream. Run `lifelong tune bench.yaml` again" in said.err
    assert not (project / "out" / "sequential").exists() and len(here) == 1
    assert lifelong("bench", bench(**same)).status == 0  # the control


def test_settings_that_were_chosen_hold_wherever_the_rows_lie(lifelong, bench, project, here, tuned):
    (project / "moved").mkdir()
    for file in list(project.glob("*.jsonl")):
        shutil.copy(file, project / "moved" / file.name)
    text = re.sub(r"(train|eval): (\S+\.jsonl)", r"\1: moved/\2", (project / "bench.yaml").read_text())
    assert text.count("moved/") == 8
    (project / "bench.yaml").write_text(text)
    assert lifelong("bench", project / "bench.yaml").status == 0
    rows = project / "moved" / "old-sky.train.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    assert lifelong("bench", project / "bench.yaml").status == 2  # other rows there


def test_a_bench_refuses_without_the_file_and_with_an_edited_one(lifelong, project, here, tuned):
    file = project / "bench.tuned.yaml"
    text = file.read_text()
    edits = (text.replace("1e-09", "3e-03"), text.replace("score: 0.5", "score: 0.9"), "[]", "protocol: x\n")
    for edited in edits:
        assert edited != text
        file.write_text(edited)
        said = lifelong("bench", tuned)
        assert said.status == 2 and "is not as `lifelong tune` wrote it. Run `lifelong tune" in said.err
    file.unlink()
    said = lifelong("bench", tuned)
    assert said.status == 2 and "settings are searched, and there is no" in said.err
    assert "Run `lifelong tune bench.yaml` first" in said.err
    assert not (project / "out" / "sequential").exists()
    assert lifelong("tune", tuned).status == 0 and len(here) == 1  # what was edited away is written anew


def test_rows_of_the_tuning_stream_that_changed_are_noticed(lifelong, project, here, tuned):
    tiny_stream.write_rows(project / "old-sky.test.jsonl", rows_of("sky", 12, 12))
    said = lifelong("bench", tuned)
    assert said.status == 2 and "the rows of the tuning stream have changed since" in said.err
    said = lifelong("tune", tuned)
    assert said.status == 2 and "is finished, with other settings or rows" in said.err


def test_the_reported_stream_is_no_tuning_stream(lifelong, bench, project, here):
    for name in ("sky", "farm"):  # under other names
        for part in ("train", "test"):
            shutil.copy(project / f"{name}.{part}.jsonl", project / f"old-{name}.{part}.jsonl")
    said = lifelong("tune", bench())
    assert said.status == 2 and "the tuning stream is the reported one" in said.err
    tiny_stream.write_rows(project / "old-sky.train.jsonl", rows_of("sky", 24, 10))
    for words in (["tune", bench()], ["tune", bench(), "--dry-run"]):
        said = lifelong(*words)
        assert said.status == 2 and "rows that judge the reported stream are trained or judged" in said.err
    assert not here and not (project / "out").exists()


def test_a_stream_that_is_found_out_after_tuning_is_refused_by_the_bench(lifelong, project, here, tuned):
    for name in ("sky", "farm"):
        for part in ("train", "test"):
            shutil.copy(project / f"old-{name}.{part}.jsonl", project / f"{name}.{part}.jsonl")
    said = lifelong("bench", tuned)
    assert said.status == 2 and "the tuning stream is the reported one" in said.err
    assert not (project / "out" / "sequential").exists()


def test_the_reported_stream_in_another_order_with_rows_of_its_own_is_taken(lifelong, bench, project, here):
    for name in ("sky", "farm"):
        tiny_stream.write_rows(project / f"{name}.valid.jsonl", rows_of(name, 6, 12))
    valid = [f"stages.{name}.eval={name}.valid.jsonl" for name in ("sky", "farm")]
    backwards = {"stream": None, "orders": [["farm", "sky"]]}
    methods = searched({"defaults.learning_rate": [WEAK]})
    assert lifelong("tune", bench(tune=backwards | {"changes": valid}, methods=methods)).status == 0
    assert lifelong("bench", "bench.yaml").status == 0
    assert "farm, sky (1 order, 1 seed)" in (project / "out" / "bench.md").read_text()
    said = lifelong("tune", bench(tune=backwards | {"changes": valid[:1]}, methods=methods))
    assert said.status == 2 and re.search(r"5 of \d+ rows that judge the reported stream", said.err)
    said = lifelong("tune", bench(tune={"stream": None, "changes": valid}, methods=methods))
    assert said.status == 2 and "the tuning stream is the reported one" in said.err


MISTAKES = {
    "nothing to tune": ({"tune": None, "methods": {"l2": ["lora", "l2"]}},
                        ["nothing to tune", "has no `tune`"]),
    "no other stream": ({"tune": None}, ["methods.sequential: to search, name under `tune`"]),
    "nothing searched": ({"methods": {"l2": ["lora", "l2"]}}, ["tune: nothing is searched"]),
    "misspelt key of tune": ({"tune": {"trails": 2}}, ["unknown key `trails`", "Did you mean `trials`?"]),
    "misspelt setting": ({"methods": searched({"method.l2.strenth": [1]}, "l2", ["lora", "l2"])},
                         ["methods.l2", "unknown setting `strenth` of l2", "Did you mean `strength`?"]),
    "misspelt method": ({"methods": searched({"method.l3.strength": [1]}, "l2", ["lora", "l2"])},
                        ["methods.l2", "no item named `l3`", "Did you mean `l2`?"]),
    "misspelt default": ({"methods": searched({"defaults.epohcs": [1]})},
                         ["methods.sequential", "unknown key `epohcs`", "Did you mean `epochs`?"]),
    "place": ({"methods": searched({"default.epochs": [1]})}, ["cannot be searched", "`defaults.`"]),
    "empty list": ({"methods": searched({"defaults.epochs": []})}, ["defaults.epochs: give a list"]),
    "turned range": ({"tune": {"trials": 2, "search": {"defaults.epochs": {"low": 2, "high": 1}}}},
                     ["defaults.epochs: low must be below high; got 2 and 1"]),
    "no number of trials": ({"methods": searched({"defaults.epochs": {"low": 1, "high": 3}})},
                            ["methods.sequential.search", "how many `trials`"]),
    "no trial": ({"tune": {"trials": 0}}, ["tune.trials", "range [1, inf)", "got 0"]),
    "value out of range": ({"methods": searched({"defaults.learning_rate": [1e-3, -1.0]})},
                           ["methods.sequential", "defaults.learning_rate=-1.0"]),
    "setting out of range": ({"methods": searched({"method.l2.strength": [1.0, -1.0]}, "l2", ["lora", "l2"])},
                             ["l2, trial 1", "strength", "-1"]),
    "no such stream file": ({"tune": {"stream": "other.yaml"}}, ["tune.stream", "no stream file"]),
    "a name for folders": ({"methods": {"tuning": ["lora"]}}, ["`tuning` is taken"]),
    "another scenario": ({"tune": {"changes": ["candidates=seen"]}}, ["`candidates` is seen there"]),
    "a stage has its own": ({"tune": {"changes": ["stages.old-sky.epochs=1", "stages.old-farm.epochs=1"]},
                             "methods": searched({"defaults.epochs": [1, 2]})},
                            ["two trials are the same run", "keeps its own: defaults.epochs"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_before_anything_starts(lifelong, bench, project, here, changes, words):
    for more in ([], ["--dry-run"]):
        said = lifelong("tune", bench(**changes), *more)
        assert said.status == 2 and "Traceback" not in said.err
        for word in words:
            assert word in re.sub(r"\s+", " ", said.err)
    assert not here and not (project / "out").exists() and not (project / "bench.tuned.yaml").exists()


def test_trials_of_a_method_are_the_same_whatever_stands_beside_it(bench):
    drawn = {"defaults.weight_decay": {"low": 0.0, "high": 1.0}}

    def trials(methods, **more):
        made = bench_file.read(bench(tune={"trials": 3} | more, methods=methods), freeze=False)
        return {trial.changes for trial in made.tuning.trials if trial.label == "a"}

    alone = trials(searched(drawn, "a"))
    assert len(alone) == 3 and alone == trials(searched(drawn, "b") | searched(drawn, "a"))
    assert alone != trials(searched(drawn, "a"), seed=1)
    bench_b = bench_file.read(bench(tune={"trials": 3}, methods=searched(drawn, "b")), freeze=False)
    assert alone != {trial.changes for trial in bench_b.tuning.trials}


def test_a_setting_of_a_recipe_is_searched(bench):
    search = {"method.o_lora_replay.reservoir.size": [5, 9]}
    made = bench_file.read(bench(methods=searched(search, "a", "o_lora_replay")), freeze=False)
    tried = [trial.cells[0].chosen.method for trial in made.tuning.trials]
    assert tried == [[{"o_lora_replay": {"reservoir": {"size": size}}}] for size in (5, 9)]


def test_a_bound_is_searched_without_naming_its_method(bench):
    made = bench_file.read(bench(methods={"joint": {"search": {"defaults.epochs": [1, 2]}}}), freeze=False)
    tried = [trial.cells[0].chosen for trial in made.tuning.trials]
    assert [(each.method, each.defaults.epochs) for each in tried] == [
        ([{"joint": {}}], 1),
        ([{"joint": {}}], 2),
    ]


def test_what_is_searched_stands_over_the_changes_of_the_method(bench):
    entry = {"method": ["lora"], "changes": ["defaults.learning_rate=1", "defaults.weight_decay=0.5"],
             "search": {"defaults.learning_rate": [WEAK, STRONG]}}  # fmt: skip
    made = bench_file.read(bench(methods={"a": entry}), freeze=False)
    tried = [trial.cells[0].chosen.defaults for trial in made.tuning.trials]
    assert [(each.learning_rate, each.weight_decay) for each in tried] == [(WEAK, 0.5), (STRONG, 0.5)]


OTHER_PROMPT = "stream.stages.sky.objective={classification: {template: 'x {text}'}}"
IDENTITY = {
    "own labels": ([], "visible: labels of the task"),
    "labels seen": (["stream.candidates=seen"], "hidden"),
    "labels seen, other prompts": (
        ["stream.candidates=seen", OTHER_PROMPT],
        "visible: wording of the prompt",
    ),
    "free text": (["stream.defaults.objective=causal_lm"], "as the prompts tell"),
}


@pytest.mark.parametrize(("changes", "told"), IDENTITY.values(), ids=IDENTITY)
def test_the_table_says_whether_the_task_could_be_known(lifelong, bench, project, here, changes, told):
    file = bench(tune=None, methods=["sequential", "per_task", "joint"])
    said = lifelong("bench", file, "--json", *changes)
    rows = {row["label"]: row["identity"] for row in json.loads(said.out)["rows"]}
    assert rows == {"sequential": told, "joint": told, "per_task": "visible: a model of its own"}
    assert f"| {told} |" in (project / "out" / "bench.md").read_text()


def test_a_named_tuning_stream_is_told_without_the_place_of_its_files():
    said = standings._called({"clinc150": {"path": "/somewhere/of/mine", "order": 7}})
    assert said == 'clinc150 {"order": 7}'
