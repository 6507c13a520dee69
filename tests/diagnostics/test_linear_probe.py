"""The linear probe: scikit-learn agrees; hidden is told from forgotten."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_erasure
import tiny_stream
import torch
from looking import context_of
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lifelong.diagnostics.linear_probe import LinearProbe, features


def after_second(architecture, count=24, **values):
    model = tiny.model(architecture)
    history = [{"stage": 1, "step": 3, "values": values}] if values else ()
    stream = tiny_stream.stream(vision=architecture == "vit", general=False, count=count)
    return replace(context_of(architecture, model), stage=1, history=history, stream=stream)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_has_a_probe(architecture):
    found = LinearProbe().measure(after_second(architecture, sky=0.25, farm=0.5))
    assert list(found) == ["sky probe", "sky model", "farm probe", "farm model"]
    assert found["sky model"] == 0.25 and found["farm model"] == 0.5
    assert 0.5 <= found["sky probe"] <= 1  # random features tell words apart better than chance
    first = replace(after_second(architecture), stage=0)
    assert list(LinearProbe().measure(first)) == ["sky probe"]


def test_answers_as_scikit_learn():
    context = after_second("llama")
    task = context.stream.stages[0]
    seen, asked = (features(context, task, rows) for rows in (task.rows, task.evals[0].rows))
    known = np.array([row["label"] for row in task.rows])
    weight, bias = LinearProbe(shrinkage=0.1)._fitted(context, task)
    scale = len(known) / (len(known) - 2)  # theirs divides by the rows, ours by the degrees of freedom
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1, priors=[0.5, 0.5]).fit(seen, known)
    expected = theirs.decision_function(asked) / scale
    ours = ((asked @ weight.T + bias) @ torch.tensor([-1.0, 1.0], dtype=torch.float64)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_hidden_is_told_from_forgotten():
    context = after_second("bert", sky=0.0)
    found = LinearProbe().measure(context)
    assert found["sky probe"] - found["sky model"] >= 0.5  # hidden: the features still tell
    for module in context.model.network.encoder.layer[-1].modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data.zero_()  # every row has the same features
    assert LinearProbe().measure(context)["sky probe"] == pytest.approx(0.5)


def test_reads_as_many_rows_as_it_says_and_never_the_label():
    context = after_second("llama")
    task = context.stream.stages[0]
    whole = LinearProbe()._fitted(context, task)
    few = LinearProbe(num_examples=4)._fitted(context, task)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:4].tolist()
    cut = replace(task, rows=[task.rows[i] for i in sorted(order)])
    torch.testing.assert_close(LinearProbe()._fitted(context, cut), few)
    assert not torch.allclose(whole[0], few[0])
    turned = [{**row, "label": task.labels[row["label"] == task.labels[0]]} for row in task.rows]
    assert torch.equal(features(context, task, turned), features(context, task, task.rows))


def test_tasks_without_labels_are_left_out():
    context = replace(after_second("llama"), stream=tiny_stream.text_stream(general=False))
    assert LinearProbe().measure(context) == {}


def test_rows_that_were_erased_are_not_read_again():
    context = after_second("llama")
    first, second = context.stream.stages
    places = [i for i in range(24) if i % 3]
    forget = tiny_erasure.erase_stage(first, places)
    erased = replace(context, stream=replace(context.stream, stages=(first, second, forget)), stage=2)
    kept = replace(first, rows=[row for i, row in enumerate(first.rows) if i % 3 == 0])
    never = replace(context, stream=replace(context.stream, stages=(kept, second)))
    found = LinearProbe().measure(erased)
    assert list(found) == ["sky probe", "farm probe"] and found == LinearProbe().measure(never)
    assert erased.stream.tasks(3)[0].rows == kept.rows and erased.stream.tasks(2)[0].rows == first.rows
