"""Examples of every method, from its source: a whole stream file, and Python.

Only what the classes declare is used (axis, settings, constants), so that a new method has its
examples at once. Sources are read as syntax trees; torch is not needed.
"""

import ast
import json
from collections.abc import Mapping
from typing import Any

import yaml

from lifelong.core import discover
from lifelong.core.discover import Description, camel

# what the source says beyond a description ------------------------------------------------


def constants(axis: str, name: str) -> dict[str, Any]:
    """Literal class constants of a method, and its axis class as `base`."""
    tree = ast.parse((discover.PACKAGE / axis / f"{name}.py").read_text(encoding="utf-8"))
    cls = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == camel(name))
    defined = {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}
    found = {"base": ast.unparse(cls.bases[0]), "serves": "serving" in defined}
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).startswith("ClassVar"):
            found[node.target.id] = ast.literal_eval(node.value)
    return found


def recipe(name: str) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """(order of the stages, methods with their settings)."""
    content = yaml.safe_load((discover.PACKAGE / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    parts = [part if isinstance(part, dict) else {part: {}} for part in content["methods"]]
    return content["stream"], [item for part in parts for item in part.items()]


def fits(tuner: str, penalty: str) -> bool:
    """Do they work together? (What core.composition checks when a run is put together.)"""
    offers, needs = constants("tuners", tuner), constants("penalties", penalty)
    stays = offers.get("persistent", True) or not needs.get("needs_persistent", False)
    stays &= not (needs.get("needs_same_params", False) and offers.get("exchanges", False))
    stays &= not (needs.get("moves_weights", False) and offers["serves"])
    return stays and (offers.get("has_subspaces", False) or not needs.get("needs_subspaces", False))


# examples ---------------------------------------------------------------------------------


def chosen(each: Description, count: int = 2) -> dict[str, Any]:
    """The first settings with their defaults, to show how settings are written."""
    return {field.name: ast.literal_eval(field.default) for field in each.fields[:count]}


def in_yaml(name: str, settings: Mapping[str, Any]) -> str:
    inside = ", ".join(f"{key}: {json.dumps(value)}" for key, value in settings.items())
    return f"{name}: {{{inside}}}" if settings else name


def in_python(each: Description) -> str:
    inside = ", ".join(f"{key}={_quoted(value)}" for key, value in chosen(each).items())
    return f"ll.{each.axis}.{camel(each.id)}({inside})"


def _quoted(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def companions(each: Description) -> list[str]:
    """Tuners that must be named beside a method: none where the default tuner serves."""
    if each.axis == "mergers":
        found = discover.names("tuners")
        return [name for name in found if constants("tuners", name).get("interpolates", False)][:1]
    if each.axis == "unlearning":
        zero = constants(each.axis, each.id).get("needs_zero_start", False)
        found = discover.names("tuners") if zero else ()
        return [name for name in found if constants("tuners", name).get("starts_at_zero", False)][:1]
    if each.axis == "analytic":
        return [] if constants(each.axis, each.id).get("gradient_stages", 0) else ["frozen"]
    if each.axis != "penalties" or not constants(each.axis, each.id).get("needs_subspaces", False):
        return []
    return [name for name in discover.names("tuners") if fits(name, each.id)][:1]


def stream_example(each: Description) -> str:
    """A whole stream file that uses the method."""
    mine, entry = f"name: with-{each.id.replace('_', '-')}\nmodel: smollm2\n", in_yaml(each.id, chosen(each))
    embedded = "stages: embedded\ngeneral: embedded\n"
    if each.axis == "recipes":
        changed = [f"{each.id}: {{{in_yaml(*part)}}}" for part in recipe(each.id)[1] if part[1]][:1]
        method = f"method:\n  {changed[0]}\n" if changed else f"method: {each.id}\n"
        return f"{mine}{method}defaults: {{epochs: 1}}\n{embedded}"
    if each.axis == "schedules":
        return f"{mine}method: sequential\ndefaults:\n  epochs: 1\n  schedule:\n    {entry}\n{embedded}"
    if each.axis in ("objectives", "metrics"):
        test = "data/first.test.jsonl"
        metric = f"{{{entry}}}" if each.fields else each.id
        judged = f"    eval:\n      path: {test}\n      metric: {metric}\n"
        trained = f"    eval: {test}\n    objective:\n      {entry}\n"
        stage = "stages:\n  - name: first\n    train: data/first.train.jsonl\n"
        rest = trained if each.axis == "objectives" else judged
        return f"{mine}method: sequential\ndefaults: {{epochs: 1}}\n{stage}{rest}"
    if each.axis == "diagnostics":
        return f"{mine}method: sequential\ndiagnostics:\n  - {entry}\ndefaults: {{epochs: 1}}\n{embedded}"
    if each.axis == "analytic":  # on an encoder, which decides by a linear head
        mine, embedded = mine.replace("smollm2", "minilm"), "stages: embedded\n"
    if each.axis == "unlearning":
        embedded = ERASING
    listed = "".join(f"  - {name}\n" for name in (*companions(each), entry))
    return f"{mine}method:\n{listed}defaults: {{epochs: 1}}\n{embedded}"


ERASING = """stages:
  - {name: mail, train: "embedded:mail.train.jsonl", eval: "embedded:mail.test.jsonl"}
  - {name: reviews, train: "embedded:reviews.train.jsonl", eval: "embedded:reviews.test.jsonl"}
  - {name: no_spam, erase: {stage: mail, labels: [spam]}, epochs: 3}
"""


def python_example(each: Description) -> str:
    """A program that makes the method and uses it."""
    return "import lifelong as ll\n" + _body(each)


def _body(each: Description) -> str:
    if each.axis == "recipes":
        return RUN.format(methods=f'"{each.id}"')
    about, made = constants(each.axis, each.id), in_python(each)
    if each.axis == "objectives":
        row = {column: f"a {column}" for column in about["columns"][0]}
        return OBJECTIVE.format(made=made, row=json.dumps(row), metric=camel(about["metric"]))
    if each.axis == "schedules":
        return SCHEDULE.format(made=made)
    if each.axis == "metrics":
        return (ANSWER if about["base"] == "AnswerMetric" else MATRIX).format(made=made, id=each.id)
    if each.axis == "diagnostics":
        return DIAGNOSTIC.format(made=made)
    beside = [f"ll.tuners.{camel(name)}()" for name in companions(each)]
    text = RUN.format(methods=f"[{', '.join((*beside, made))}]")
    text = text.replace("smollm2", "minilm") if each.axis == "analytic" else text
    if each.axis != "replay":
        return text
    logits = constants("replay", each.id).get("keeps_logits", False)
    kept = ', "logits": torch.zeros(1, 10)' if logits else ""  # one position, ten labels
    return text + ("import torch\n" if logits else "") + MEMORY.format(made=made, kept=kept)


RUN = """
methods = {methods}
run = ll.run("smollm2", "stream.yaml", methods=methods, output="runs/example")
print(run.matrix.average_accuracy, run.matrix.forgetting)
"""
DIAGNOSTIC = """from lifelong.core.engine import Settings

looking = Settings(diagnostics=({made},))
run = ll.run("smollm2", "stream.yaml", methods="sequential", output="runs/example", settings=looking)
"""
MEMORY = """
# in a loop of your own
memory = {made}
state = memory.init(seed=0)
state = memory.add(state, [{{"stage": 0, "row": {{"text": "a row of the first stage"}}{kept}}}])
again = memory.pick(state, num_rows=4, stage=1, step=0)
"""
SCHEDULE = """from lifelong.core.axes import Progress

schedule = {made}
factors = [schedule.scale(Progress(step, num_steps=10)) for step in range(10)]
"""
OBJECTIVE = """
objective = {made}
rows = [{row}]
judge = ll.EvalSet(name="first", rows=rows, objective=objective, metric=ll.metrics.{metric}())
stage = ll.Stage(
    name="first",
    rows=rows,
    evals=(judge,),
    objective=objective,
    budget=ll.Budget(epochs=1),
    optimization=ll.Optimization(schedule=ll.schedules.Linear()),
)
"""
ANSWER = """from lifelong.core.axes import Answer

answers = [
    Answer(prediction="in Rome", references=("in Rome", "Rome"), log_likelihood=-1.5, tokens=2),
    Answer(prediction="Paris", references=("London",), log_likelihood=-4.0, tokens=1),
]
print({made}.value(answers))
"""
MATRIX = """from lifelong.core.matrix import GeneralSet

matrix = ll.AccuracyMatrix(
    columns=("first", "second"),
    values=((0.9, 0.3), (0.7, 0.8)),  # rows: after the first stage, after the second
    untrained=(0.2, 0.1),
    taught=(0, 1),
    sizes=(100, 100),
    general=(GeneralSet(name="prose", metric="perplexity", better="lower", values=(20.0, 22.0, 25.0)),),
)
print(matrix.{id}, {made}.value(matrix))  # twice the same
"""
