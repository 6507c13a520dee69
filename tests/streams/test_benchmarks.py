"""Named streams from tiny local folders, and how a stream file names them."""

import gzip
import io
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import tiny_stream
from PIL import Image

import lifelong as ll
from lifelong.streams import benchmark, build, config
from lifelong.streams.benchmarks import clinc150, mnist, superni15, text15

RUN = {"name": "x", "model": "smollm2", "method": "sequential", "defaults": {"epochs": 1}}
FEW = {
    "travel": ("translate", "vaccines"),
    "banking": ("transfer", "balance"),
    "meta": ("maybe", "yes", "no"),
}


def parse(stages, changes=(), **keys):
    return config.parse({**RUN, "stages": stages, **keys}, "s.yaml", changes)


def made(folder, name, **settings):
    return build.stream(parse({name: {"path": "data", **settings}}), folder)


@pytest.fixture
def clinc(tmp_path):
    (tmp_path / "data").mkdir()
    for split, count in (("train", 10), ("test", 4)):
        rows = [
            {"text": f"{split} {label} {i}", "label": label, "domain": domain}
            for domain, labels in FEW.items()
            for label in labels
            for i in range(count)
        ]
        tiny_stream.write_rows(tmp_path / f"data/{split}.jsonl", [*rows, {"text": "?", "label": "oos"}])
    return tmp_path


@pytest.fixture
def texts(tmp_path):
    about = {}
    for name, (group, _) in text15.TASKS.items():
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        labels = [f"{group} yes", f"{group} no"]
        for split, count in (("train", 20), ("test", 6)):
            made = [{"text": f"{name} {split} {i} {{x}}", "label": labels[i % 2]} for i in range(count)]
            tiny_stream.write_rows(folder / f"{split}.jsonl", made)
        about[name] = {"labels": labels, "split": "adapted: cut" if name == "yelp" else "original"}
    (tmp_path / "data/tasks.json").write_text(json.dumps({"tasks": about}))
    return tmp_path


@pytest.fixture
def nature(tmp_path):
    about = {}
    for number in superni15.ORDERS[1].split():
        folder = tmp_path / "data" / f"task{number}_x"
        folder.mkdir(parents=True)
        for split, count in (("train", 10), ("test", 3)):
            made = [{"prompt": f"p{i}", "completion": [f"c{i}", "d"]} for i in range(count)]
            tiny_stream.write_rows(folder / f"{split}.jsonl", made)
        about[folder.name] = {"definition": f"Do {number}."}
    (tmp_path / "data/tasks.json").write_text(json.dumps(about))
    return tmp_path


def digits(split):
    count = {"train": 40, "test": 20}[split]
    images = np.random.default_rng(count).integers(0, 256, (count, 6, 6), dtype=np.uint8)
    return images, np.arange(count, dtype=np.uint8) % 10


def write_idx(folder, pack=lambda content: content, ending=""):
    for split, start in (("train", "train"), ("test", "t10k")):
        for kind, array in zip(("images-idx3", "labels-idx1"), digits(split), strict=True):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{start}-{kind}-ubyte{ending}").write_bytes(pack(head + array.tobytes()))


def write_parquet(folder):
    from pyarrow import Table, parquet

    for split in ("train", "test"):
        contents = []
        for image in digits(split)[0]:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            contents.append({"bytes": buffer.getvalue(), "path": None})
        rows = {"image": contents, "label": digits(split)[1].tolist()}
        parquet.write_table(Table.from_pydict(rows), folder / f"{split}-00000-of-00001.parquet")


def write_npz(folder):
    arrays = {f"{axis}_{split}": part for split in ("train", "test")
              for axis, part in zip("xy", digits(split), strict=True)}  # fmt: skip
    np.savez(folder / "mnist.npz", **arrays)


FORMS = {
    "idx": write_idx,
    "gz": lambda folder: write_idx(folder, gzip.compress, ".gz"),
    "parquet": write_parquet,
    "npz": write_npz,
}


@pytest.fixture
def images(tmp_path):
    (tmp_path / "data").mkdir()
    write_idx(tmp_path / "data")
    return tmp_path


# clinc150 and cuts ----------------------------------------------------------------------------


def test_clinc150_has_ten_domains_of_fifteen_intents():
    intents = [label for words in clinc150.DOMAINS.values() for label in words.split()]
    assert len(clinc150.DOMAINS) == 10 and len(set(intents)) == len(intents) == 150
    assert {len(words.split()) for words in clinc150.DOMAINS.values()} == {15}


def test_clinc150_is_one_stage_per_domain(clinc):
    stream = made(clinc, "clinc150")
    assert {stage.name: stage.labels for stage in stream.stages} == FEW
    assert stream.candidates == "seen" and [len(s.rows) for s in stream.stages] == [20, 20, 30]
    assert stream.stages[0].rows[0]["__source__"] == "train.jsonl:1"
    assert [(e.name, len(e.rows)) for s in stream.stages for e in s.evals] == [
        ("travel", 8), ("banking", 8), ("meta", 12)]  # fmt: skip


def test_orders_rows_and_numbers_of_stages(clinc):
    names = {o: [s.name for s in made(clinc, "clinc150", order=o).stages] for o in (0, 1, 2, "similar")}
    assert all(sorted(each) == sorted(FEW) for each in names.values()) and names[0] == list(FEW)
    assert len({tuple(each) for each in names.values()}) > 1
    few = made(clinc, "clinc150", rows_per_label=3, eval_rows=5, num_stages=7)
    assert [len(s.rows) for s in few.stages] == [3] * 7 and [len(s.evals[0].rows) for s in few.stages] == [
        4
    ] * 7
    assert all(len(stage.labels) == 1 for stage in few.stages)


def test_validation_takes_training_rows_that_no_longer_train(clinc):
    stream = made(clinc, "clinc150", judge_on="validation", validation_fraction=0.3)
    for stage in stream.stages:
        train, judge = ({row["text"] for row in rows} for rows in (stage.rows, stage.evals[0].rows))
        assert not train & judge and all(text.startswith("train") for text in judge)
        assert len(judge) == 3 * len(stage.labels)


def test_blurry_stages_know_the_labels_of_their_rows(clinc):
    stream = made(clinc, "clinc150", blur=0.2)
    for stage in stream.stages:
        assert {row["label"] for row in stage.rows} <= set(stage.labels)
        assert stage.evals[0].labels == FEW[stage.name] != stage.labels


def test_a_recurring_stream_has_one_column(clinc):
    stream = made(clinc, "clinc150", scenario="recurring", num_stages=5, train_rows=6)
    assert [len(stage.rows) for stage in stream.stages] == [6] * 5
    assert [(i, each.name) for i, each in stream.columns()] == [(0, "all")]
    with pytest.raises(ll.UserError, match="takes no blur and no designed order"):
        made(clinc, "clinc150", scenario="recurring", blur=0.1)


def test_task_incremental_tells_the_task_unless_the_file_says_otherwise(clinc):
    task = {"clinc150": {"path": "data", "scenario": "task"}}
    assert parse(task).candidates == "task" and parse(task, candidates="all").candidates == "all"
    with pytest.raises(ll.UserError, match="its domains share no labels"):
        made(clinc, "clinc150", scenario="domain")


def test_labelled_cuts_any_file(clinc):
    settings = {"path": "data/train.jsonl", "test": "data/test.jsonl"}
    files = {"labelled": {**settings, "num_stages": 4}}
    stream = build.stream(parse(files), clinc)
    assert len(stream.stages) == 4 and len({n for s in stream.stages for n in s.labels}) == 8  # oos too
    domain = {
        "labelled": {**settings, "columns": {"label": "domain"}, "scenario": "domain", "domain": "kind"}
    }
    for split in ("train", "test"):
        rows = [
            {"text": f"{kind} {i}", "domain": "yn"[i % 2], "kind": kind} for kind in "ab" for i in range(6)
        ]
        tiny_stream.write_rows(clinc / f"data/{split}.jsonl", rows)
    stream = build.stream(parse(domain), clinc)
    assert [stage.name for stage in stream.stages] == ["a", "b"]
    assert {stage.labels for stage in stream.stages} == {("n", "y")}


# text15 and superni15 -------------------------------------------------------------------------


def test_orders_of_text15_are_the_published_ones():
    four, fifteen = ({"dbpedia", "amazon", "yahoo", "agnews"}, set(text15.TASKS))
    for number, names in text15.ORDERS.items():
        assert sorted(names.split()) == sorted(four if number < 4 else fifteen)
    assert len({text15.ORDERS[i] for i in range(1, 7)}) == 6


def test_text15_marks_adapted_splits_and_asks_as_the_releases_do(texts):
    stream = made(texts, "text15", order=6)
    names = [stage.name for stage in stream.stages]
    assert names == ["yelp_adapted", *text15.ORDERS[6].split()[1:]]
    stage = next(stage for stage in stream.stages if stage.name == "agnews")
    assert stage.objective.template == (
        "Task:TC\nDataset:agnews\nWhat is the topic of the following paragraph? Choose one from the option.\n"
        "Option: TC yes, TC no \n{text}\nAnswer:"
    )
    copa = next(stage for stage in stream.stages if stage.name == "copa")
    assert copa.objective.template == "Task:COPA\nDataset:COPA\n{text}\nAnswer:"
    assert stage.labels == ("TC yes", "TC no") and stage.evals[0].metric == ll.metrics.Accuracy()
    bare = made(texts, "text15", order=6, dataset_name=False)
    assert not any("Dataset:" in stage.objective.template for stage in bare.stages)


def test_settings_of_the_objective_stand_over_those_of_the_stream(texts):
    chosen = parse({"text15": {"path": "data"}}, defaults={
        "epochs": 1, "objective": {"classification": {"generate": True}}})  # fmt: skip
    (first, *_) = build.stream(chosen, texts).stages
    assert first.objective.generate and first.objective.template.startswith("Task:TC")
    chosen = parse({"text15": {"path": "data"}}, defaults={"epochs": 1, "objective": "causal_lm"})
    assert build.stream(chosen, texts).stages[0].objective == ll.objectives.CausalLm()


def test_text15_sets_its_own_validation_rows_aside(texts):
    for stage in made(texts, "text15", judge_on="validation").stages:
        train, judge = ({row["text"] for row in rows} for rows in (stage.rows, stage.evals[0].rows))
        assert (len(train), len(judge)) == (18, 2) and not train & judge


def test_text15_reads_the_released_layout_without_unlabelled_rows(tmp_path):
    for name in text15.ORDERS[1].split():
        group, shown = text15.TASKS[name]
        folder = tmp_path / "data" / group / shown
        folder.mkdir(parents=True)
        rows = [{"sentence": f"s{i}", "label": "ab-"[i % 3]} for i in range(6)]
        (folder / "train.json").write_text(json.dumps(rows))
        (folder / ("dev.json" if name == "amazon" else "test.json")).write_text(json.dumps(rows[:3]))
    stream = made(tmp_path, "text15")
    assert [stage.name for stage in stream.stages] == text15.ORDERS[1].split()
    assert all(stage.labels == ("a", "b") and len(stage.rows) == 4 for stage in stream.stages)
    assert stream.stages[0].rows[0]["text"] == "s0"


def test_superni15_instructs_and_is_judged_by_rouge(nature):
    stream = made(nature, "superni15", order=2, train_rows=5)
    assert [stage.name[4:-2] for stage in stream.stages] == superni15.ORDERS[2].split()
    first = stream.stages[0]
    assert first.objective == ll.objectives.Sft() and first.evals[0].metric == ll.metrics.RougeL()
    assert first.evals[0].rows[1]["prompt"] == "Do 748.\n\np1\n" and len(first.rows) == 5
    bare = made(nature, "superni15", definition=False)
    assert bare.stages[0].rows[0]["prompt"] == "p0\n" and bare.stages[0].rows[0]["completion"] == ["c0", "d"]
    assert sorted(superni15.ORDERS[1].split()) == sorted(superni15.ORDERS[2].split())


# images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_images_read_from_every_form(form, tmp_path):
    (tmp_path / "data").mkdir()
    FORMS[form](tmp_path / "data")
    stream = made(tmp_path, "mnist")
    assert [stage.name for stage in stream.stages] == ["0-1", "2-3", "4-5", "6-7", "8-9"]
    pixels, labels = digits("test")
    for stage in stream.stages:
        own = [i for i in range(20) if str(labels[i]) in stage.labels]
        assert [row["label"] for row in stage.evals[0].rows] == [str(labels[i]) for i in own]
        assert all((r["image"] == pixels[i]).all() for r, i in zip(stage.evals[0].rows, own, strict=True))


def test_the_three_scenarios_of_split_mnist(images):
    kinds = {kind: made(images, "mnist", scenario=kind) for kind in ("class", "task", "domain")}
    assert [each.candidates for each in kinds.values()] == ["seen", "task", "seen"]
    assert {stage.labels for stage in kinds["domain"].stages} == {("0", "1")}
    assert kinds["domain"].labels() == ("0", "1") and len(kinds["class"].labels()) == 10
    for one, other in zip(kinds["class"].stages, kinds["domain"].stages, strict=True):
        assert [row["__source__"] for row in one.rows] == [row["__source__"] for row in other.rows]
        assert [one.labels.index(row["label"]) for row in one.rows] == [int(r["label"]) for r in other.rows]


@pytest.mark.parametrize("variant", ["permuted", "rotated"])
def test_looks_of_mnist_share_labels_and_begin_with_the_images_themselves(images, variant):
    stream = made(images, "mnist", variant=variant, num_stages=3, eval_rows=7)
    pixels = digits("train")[0]
    assert [stage.name for stage in stream.stages] == [f"{variant}-0{i}" for i in (1, 2, 3)]
    assert {stage.labels for stage in stream.stages} == {tuple("0123456789")}
    seen = [np.stack([row["image"] for row in stage.rows]) for stage in stream.stages]
    assert (seen[0] == pixels).all() and (seen[1] != seen[0]).any() and (seen[2] != seen[1]).any()
    assert [len(stage.evals[0].rows) for stage in stream.stages] == [7] * 3
    if variant == "rotated":
        assert (seen[2] == pixels[:, ::-1, ::-1]).all()  # 180 degrees
    else:
        other = made(images, "mnist", variant=variant, num_stages=3, order=1)
        assert (np.stack([row["image"] for row in other.stages[1].rows]) != seen[1]).any()


def test_a_split_stream_of_images_is_learned_through_a_stream_file(images):
    chosen = {
        "name": "m", "method": ["full", {"reservoir": {"size": 10}}], "output": "out", "precision": "float32",
        "model": {"name": "perceptron", "hidden_sizes": [16], "num_inputs": 36}, "seed": 3,
        "defaults": {"epochs": 20, "learning_rate": 0.01, "batch_size": 8},
        "stages": {"fashion_mnist": {"path": "data", "num_stages": 2, "rows_per_label": 2}},
    }  # fmt: skip
    done = ll.run("perceptron", chosen, folder=images, output=images / "out")
    assert len(done.matrix.values) == 2 and len(done.matrix.columns) == 2
    about = json.loads((images / "out/config.json").read_text())
    assert about["model"]["source"]["seed"] == 3 and about["stages"][0]["labels"][0] == "T-shirt/top"
    assert ll.load(images / "out").fingerprint == done.model.fingerprint


def test_three_channels_for_pretrained_models(images):
    assert made(images, "mnist", rgb=True).stages[0].rows[0]["image"].shape == (6, 6, 3)


# stream files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", benchmark.names())
def test_what_is_recorded_reads_back_as_itself(name):
    extra = {"labelled": {"num_stages": 2}, "mnist": {"variant": "permuted", "order": 3}}.get(name, {})
    chosen = parse({name: {"path": "data", **extra}})
    record = json.loads(json.dumps(chosen.resolved()))
    again = config.RunConfig.model_validate(record)
    assert again.named == chosen.named and again.fingerprint == chosen.fingerprint
    assert again.resolved() == chosen.resolved() and chosen.with_seed(5).named == chosen.named
    moved = parse({name: {"path": "data", **extra, "seed": 1}})
    assert moved.fingerprint != chosen.fingerprint


def test_overrides_reach_into_a_named_stream():
    chosen = parse({"clinc150": {"path": "a"}}, ["stages.clinc150.order=2", "stages.clinc150.path=b"])
    assert (chosen.named.order, chosen.named.path, chosen.listed) == (2, "b", ())
    assert parse("mnist").named == mnist.Mnist()


@pytest.mark.parametrize(
    "stages, said",
    [
        ({"clinc15": {}}, "s.yaml: stages: unknown stream `clinc15`. Did you mean `clinc150`?"),
        ({"clinc150": {"ordre": 1}}, "clinc150: unknown setting `ordre`. Did you mean `order`?"),
        (
            {"clinc150": {"order": -1}},
            "order must be in the range [0, inf) or one of 'similar', 'dissimilar'",
        ),
        ({"text15": {"order": 7}}, "Text15.order must be in the range [1, 6]; got 7"),
        ({"text15": 3}, "the settings of `text15` must be a mapping; got 3"),
        ({"text15": {}, "mnist": {}}, "a named stream is one name with its settings"),
        ({"labelled": {"path": "x"}}, "the scenario `class` needs `num_stages`"),
        ({"mnist": {"variant": "rotated", "order": 1}}, "rotated stages come as they are"),
        ({"mnist": {"variant": "permuted", "blur": 0.1}}, "permuted stages share their labels"),
    ],
)
def test_mistakes_are_told_when_the_file_is_read(stages, said):
    with pytest.raises(ll.UserError) as error:
        parse(stages)
    assert said in str(error.value)


def test_a_named_stream_needs_a_budget():
    with pytest.raises(ll.UserError, match="stages: no budget. Give epochs, .* under `defaults`"):
        config.parse({**RUN, "defaults": {}, "stages": "mnist"}, "s.yaml")


@pytest.mark.parametrize("name", ["clinc150", "mnist", "fashion_mnist"])
def test_what_is_not_there_is_told_with_the_name_on_the_hub_and_the_folder(name, tmp_path, monkeypatch):
    cls = benchmark.load(name)
    with pytest.raises(ll.UserError) as error:
        made(tmp_path, name)
    for part in (f"{name}: there is no folder data", cls.needs, cls.hub):
        assert part in str(error.value)
    (tmp_path / "data").mkdir()
    with pytest.raises(ll.UserError) as error:
        made(tmp_path, name)
    assert f"{name}: data has no" in str(error.value) and cls.needs in str(error.value)
    with pytest.raises(ll.UserError) as error:
        build.stream(parse(name), tmp_path)  # offline here
    assert f"{cls.hub} cannot be loaded from the Hub" in str(error.value) and cls.needs in str(error.value)


@pytest.mark.parametrize("name", ["text15", "superni15"])
def test_streams_that_no_hub_has_ask_for_a_folder(name, tmp_path):
    with pytest.raises(ll.UserError, match=f"{name}: give `path`, a local folder with one folder per task"):
        build.stream(parse(name), tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(ll.UserError, match=f"{name}: data has no .*The folder must hold"):
        made(tmp_path, name)


def test_a_cut_off_idx_file_is_told(images):
    file = images / "data/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ll.UserError, match="not a whole idx file"):
        made(images, "mnist")


# the page -------------------------------------------------------------------------------------


PAGE = Path(__file__).resolve().parents[2] / "docs/streams.md"


def table(name):
    text = PAGE.read_text("utf-8").partition(f"<!-- settings: {name} -->\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in text.splitlines()[2:]]


@pytest.mark.parametrize("name", benchmark.names())
def test_every_setting_stands_on_the_page_with_its_default(name):
    told = {row[0]: row[1:] for group in ("every", "cut", "images", name) for row in table(group)}
    cls = benchmark.load(name)
    for each in benchmark.settings_of(cls):
        assert each.note, each.name
        default, note = told[f"`{each.name}`"]
        assert (default, note) == (f"`{json.dumps(each.default)}`", each.note), each.name
    assert f"`{name}`" in PAGE.read_text("utf-8") and {f.name for f in fields(cls)} == {
        each.name for each in benchmark.settings_of(cls)}  # fmt: skip


def test_examples_of_the_page_parse():
    lines = [line.strip() for line in PAGE.read_text("utf-8").splitlines() if line.startswith("    stages: ")]
    assert len(lines) >= 5
    for line in lines:
        config.parse({**RUN, "stages": config.plain_yaml.parse(line, "page")["stages"]}, "page")
