"""The page on budgets: its workflow is YAML that runs commands that exist, and its numbers are true."""

import re
from pathlib import Path

import yaml

from lifelong.cli.main import app
from lifelong.core import discover
from lifelong.errors import OverBudget
from lifelong.numerics.intervals import Paired, rows_to_decide

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "guard.md").read_text("utf-8")


def workflow():
    (block,) = re.findall(r"^```text\n# \.github/workflows/update\.yml\n(.*?)^```$", TEXT, re.S | re.M)
    return yaml.safe_load(block)


def test_the_workflow_is_yaml_whose_commands_exist():
    content = workflow()
    assert content[True] == {"workflow_dispatch": None, "pull_request": {"paths": ["updates/**"]}}
    (job,) = content["jobs"].values()
    assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    commands = [step["run"] for step in job["steps"] if step.get("run", "").startswith("lifelong ")]
    verbs = {each.name or each.callback.__name__ for each in app.registered_commands}
    assert [command.split()[1] for command in commands] == ["run", "export"] and {"run", "export"} <= verbs


def test_a_broken_budget_fails_the_job_before_anything_is_exported():
    """Status 3 is not 0: the step fails, and no later step without `if: always()` runs."""
    (job,) = workflow()["jobs"].values()
    assert OverBudget.status == 3 and "exit status 3" in TEXT
    steps = job["steps"]
    (run,) = [i for i, step in enumerate(steps) if step.get("run", "").startswith("lifelong run")]
    assert not any("continue-on-error" in step for step in [job, *steps])
    always = [step["name"] for step in steps[run + 1 :] if step.get("if") == "always()"]
    assert always == ["Save the run", "Keep the report"]
    (export,) = [i for i, step in enumerate(steps) if step.get("run", "").startswith("lifelong export")]
    assert export > run and "if" not in steps[export] and steps[run]["run"].endswith("output=runs/update")


def test_rows_that_the_page_asks_for():
    told = re.search(r"below (\d+) rows, for 5 points below (\d+), for 10 points below (\d+)", TEXT)
    equal = Paired(0.0, 0.0, 0.0, 1, 0.0)
    assert [int(each) for each in told.groups()] == [
        rows_to_decide(equal, allowed, bound=1.0) for allowed in (0.02, 0.05, 0.1)
    ]


def test_tuners_that_the_page_names_are_those_that_interpolate():
    found = {name for name in discover.names("tuners") if discover.load(name, "tuners").interpolates}
    assert set(re.findall(r"\[(\w+)\]\(methods/", TEXT)) == found
