"""ConPET: isolated pairs, a selector with one output per stage, steps that do not grow, the static recipe."""

import json

import numpy as np
import pytest
import tiny
import tiny_stream
import torch
from test_lora import inputs, output

from lifelong import launch
from lifelong.core import prompts
from lifelong.core import state as states
from lifelong.core.axes import Context
from lifelong.core.composition import Methods
from lifelong.core.encoding import pair
from lifelong.errors import UserError
from lifelong.models import restore
from lifelong.models.export import export_run
from lifelong.numerics import pairs, selector
from lifelong.objectives.causal_lm import CausalLm
from lifelong.objectives.classification import Classification
from lifelong.penalties.ewc import Ewc
from lifelong.streams import build
from lifelong.tuners.conpet import Conpet
from lifelong.tuners.lora import Lora

KINDS = ("sun moon star cloud rain", "#7 %9 @4 &2 $3", "AXE BOX CUP DUO ELK")
OBJECTIVE = Classification()


def rows(stage, count=8, seed=0):
    draw = torch.Generator().manual_seed(100 * stage + seed)
    words = KINDS[stage].split()
    picked = torch.randint(len(words), (count, 5), generator=draw).tolist()
    return [{"text": " ".join(words[i] for i in row), "label": f"{stage}{row[0] % 2}"} for row in picked]


def images(stage, count=8, seed=0):
    """Noise, brighter in the colour of the stage."""
    draw = np.random.default_rng([stage, seed])
    made = draw.integers(0, 100, (count, 16, 16, 3), dtype=np.uint8)
    made[..., stage] += 120
    return [{"image": image, "label": f"{stage}{i % 2}"} for i, image in enumerate(made)]


def of_stage(stage):
    return [f"{stage}0", f"{stage}1"]


def all_labels(stages):
    return [label for stage in range(stages) for label in of_stage(stage)]


def boundary(model, stage, objective=OBJECTIVE, count=24):
    made = (images if model.kind == "vision" else rows)(stage, count)
    objective.begin_stage(model, all_labels(stage + 1), seed=0)
    examples = objective.encode(made, model, all_labels(stage + 1)).examples
    return Context(params=model.params(), model=model, objective=objective, stage=stage, seed=stage,
                   examples=examples, labels=of_stage(stage))  # fmt: skip


def disturb(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.params().items():
        if name.endswith((".up", "head.weight")):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


def grown(architecture="llama", stages=3, **settings):
    method, model = Conpet(**{"rank": 2} | settings), tiny.model(architecture)
    state = method.attach(model, None, seed=0)
    for stage in range(stages):
        state = method.begin_stage(boundary(model, stage), state)
        disturb(model, stage)
        state = method.end_stage(boundary(model, stage), state)
    return method, model, state


def chosen(model, state, asked):
    features = prompts.features(prompts.of_rows(OBJECTIVE, asked, model, all_labels(3)), model, 16)
    return selector.chosen_numbers(state["selector"], features).tolist()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_starts_as_the_base_and_answers_by_the_only_pair(architecture):
    batch, model = inputs(architecture), tiny.model(architecture)
    model.network.requires_grad_(False)
    base = output(model.network, batch)
    method = Conpet(rank=2)
    state = method.attach(model, None, seed=0)
    assert torch.equal(output(model.network, batch), base)
    state = method.begin_stage(boundary(model, 0), state)
    assert torch.equal(output(model.network, batch), base)
    disturb(model, 0)
    trained = output(model.network, batch)
    method.end_stage(boundary(model, 0), state)
    assert torch.equal(output(model.network, batch), trained)
    assert not torch.allclose(trained, base, atol=1e-3)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_as_many_outputs_as_stages_and_unseen_rows_find_theirs(architecture):
    for stages in (1, 2, 3):
        method, model, state = grown(architecture, stages)
        assert state["selector"]["weight"].shape[0] == len(state["selector"]["numbers"]) == stages
    made = images if model.kind == "vision" else rows
    for stage in range(3):
        right = [number == stage for number in chosen(model, state, made(stage, 20, seed=9))]
        assert sum(right) >= 19


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_perfect_selector_gives_the_logits_of_the_isolated_pair(architecture):
    """The isolated pair is a LoRA of its own, with these factors, on a fresh base."""
    _, model, state = grown(architecture)
    batch, found = inputs(architecture), []
    for number, tensors in state["past"].items():
        alone = tiny.model(architecture)
        Lora(rank=2, alpha=8.0).attach(alone, None, seed=0)
        for name, factors in tensors.items():
            module = alone.network.get_submodule(name)
            module.lora_A.weight.data, module.lora_B.weight.data = factors["down"], factors["up"]
        with pairs.pinned(model.network, number):
            found.append(output(model.network, batch))
        assert torch.equal(found[-1], output(alone.network, batch))
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_rows_of_one_batch_pass_through_the_pairs_that_were_chosen_for_them(architecture):
    _, model, _ = grown(architecture)
    choice, batch, alone = pairs.choice_of(model.network), inputs(architecture), []
    for number in "01":
        with pairs.pinned(model.network, number):
            alone.append(output(model.network, batch))
    width = choice.selector["weight"].shape[1]
    stack = pairs.routing.first_stack(model.network)
    with torch.no_grad():
        hidden = pairs.base_features(model.network, **{k: v for k, v in batch.items() if "decoder" not in k})
    assert hidden.shape == (2, width) and not stack.training
    first, second = torch.nn.functional.layer_norm(hidden, (width,))
    weight = torch.stack([first - second, second - first, torch.zeros(width)])
    choice.selector = choice.selector | {"weight": weight, "bias": torch.tensor([0.0, 0.0, -9.0])}
    mixed = output(model.network, batch)
    assert choice.active.tolist() == [0, 1]
    torch.testing.assert_close(mixed[0], alone[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], alone[1][1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mixed[0], alone[1][0], atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_what_goes_on_from_a_cache_keeps_its_pair(architecture):
    _, model, _ = grown(architecture)
    texts = [rows(stage, 1, seed=9)[0]["text"][:12] for stage in (0, 1, 2)]
    batch = model.processor(texts, return_tensors="pt", padding=True, padding_side="left")
    together = model.network.generate(**batch, max_new_tokens=6, do_sample=False)
    chosen = pairs.choice_of(model.network).active.tolist()
    assert len(set(chosen)) > 1
    for index, number in enumerate(chosen):
        with pairs.pinned(model.network, str(number)):
            alone = model.network.generate(**batch, max_new_tokens=6, do_sample=False)
        assert torch.equal(alone[index], together[index])


def test_rows_without_a_choice_are_refused():
    _, model, _ = grown("t5")
    batch = inputs("t5")
    model.network(**batch)
    pairs.choice_of(model.network).active = torch.tensor([0, 1, 2])
    encoded = (torch.zeros(2, 9, 32),)
    with pytest.raises(UserError, match="given 2 rows after a pair was chosen for each of 3"):
        model.network(encoder_outputs=encoded, decoder_input_ids=batch["decoder_input_ids"])


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_answers_are_compared_inside_the_chosen_stage_alone(architecture):
    method, model, state = grown(architecture)
    asked = [row for stage in (2, 0, 1) for row in rows(stage, 4, seed=9)]
    numbers = chosen(model, state, asked)
    found = model.answers(OBJECTIVE, asked, all_labels(3))
    assert set(numbers) == {0, 1, 2}
    assert [answer.references for answer in found] == [(row["label"],) for row in asked]
    elsewhere = 0
    for row, number, answer in zip(asked, numbers, found, strict=True):
        with pairs.pinned(model.network, str(number)):
            (alone,) = OBJECTIVE.answer([row], model, of_stage(number))
            (among_all,) = OBJECTIVE.answer([row], model, all_labels(3))
        assert answer.prediction == alone.prediction and answer.prediction[0] == str(number)
        assert answer.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-4)
        elsewhere += among_all.prediction[0] != str(number)
    assert elsewhere
    assert model.answers(OBJECTIVE, asked[:1], ["00", "01"])[0].prediction in ("00", "01")


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_an_answer_does_not_enter_the_choice(architecture):
    model = tiny.model(architecture)
    prompt = [5, 6, 7]
    for completion in ([8, 9], [10, 11, 12]):
        assert prompts.shown(pair(prompt, completion, model), model, 2) == prompt
    if architecture == "llama":  # a text that is learned from its start on shows its first tokens
        whole = pair(prompt, [8, 9], model, on_prompt=True)
        assert prompts.shown(whole, model, 2) == [5, 6] and prompts.shown(whole, model, 16) == [5, 6, 7, 8, 9]


def test_packed_text_is_chosen_for_row_by_row():
    model = tiny.model("llama")
    texts = [{"text": "sun moon"}, {"text": "star"}]
    found = prompts.of_rows(CausalLm(block_size=64), texts, model, ())
    assert [len(each["input_ids"]) for each in found] == [9, 5]
    with pytest.raises(UserError, match="makes no example of a short row alone.*drop_last"):
        prompts.of_rows(CausalLm(block_size=64, drop_last=True), texts, model, ())


def test_a_training_step_passes_through_one_pair_however_many_there_are():
    method, model, state = grown("llama", stages=2)
    state, calls = method.begin_stage(boundary(model, 2), state), []
    for each in pairs.of(model.network):
        for number, member in each.members.items():
            member.register_forward_hook(lambda m, args, out, number=number: calls.append(number))
    model.network.base_model.register_forward_hook(lambda m, args, out: calls.append("base"))
    output(model.network.train(), inputs("llama"))
    assert calls == ["2"] * len(pairs.of(model.network)) + ["base"]
    calls.clear()
    output(model.network.eval(), inputs("llama"))
    assert calls.count("base") == 2  # the control: the choice takes a pass of its own


def test_finished_pairs_keep_every_bit_and_get_no_gradient():
    method, model, state = grown("llama", stages=2)
    before = states.copy(state["past"])
    state = method.begin_stage(boundary(model, 2), state)
    output(model.network.train(), inputs("llama")).sum().backward()
    with_gradient = {n for n, p in model.network.named_parameters() if p.grad is not None}
    assert with_gradient == set(model.params()) and all(".members.2." in name for name in with_gradient)
    for parameter in model.params().values():
        parameter.data += 1
    state = method.end_stage(boundary(model, 2), state)
    assert all(states.equal(state["past"][number], before[number]) for number in "01")
    assert list(state["past"]) == ["0", "1", "2"] and not model.params()


def test_the_sample_is_shared_evenly_and_bounded():
    for size, shares in ((12, [4, 4, 4]), (7, [2, 2, 2]), (2, [1, 1, 1]), (900, [24, 24, 24])):
        _, _, state = grown("bert", sample_size=size)
        assert [len(features) for features in state["samples"].values()] == shares


@pytest.mark.parametrize("tuner", [Conpet(rank=2), Lora(rank=2)])
def test_a_finished_stage_answers_as_when_it_ended(tuner, tmp_path, monkeypatch):
    """Through the engine, with a growing head, momentum and decay; LoRA is the control."""
    monkeypatch.setitem(tiny_stream.WORDS, "farm", (KINDS[1], "%1 #0 ^5 *6 !8"))
    monkeypatch.setitem(tiny_stream.WORDS, "city", (KINDS[2], "FIG GUM HAT INK JAR"))
    stages = ("sky", "farm", "city")
    stream = tiny_stream.stream(stages=stages, count=24, general=False, weight_decay=0.1)
    run = launch.run(tiny.model("bert"), stream, [tuner], output=tmp_path / "run")
    said = []
    for row in (1, 3):
        (folder,) = (run.folder / "stages").glob(f"00{row}-*")
        lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        said.append([line for line in lines if line["set"] == "sky"])
    before, after = ([{k: v for k, v in line.items() if k != "row"} for line in lines] for lines in said)
    assert len(before) == 6 and (before == after) == isinstance(tuner, Conpet)


def test_old_rows_of_a_head_leave_the_gradient():
    method, model, state = grown("bert", stages=1)
    context = boundary(model, 1)
    state = method.begin_stage(context, state)
    context = Context(params=model.params(), model=model, stage=1, num_old_labels=2)
    for parameter in context.params.values():
        parameter.grad = torch.ones_like(parameter)
    method.before_update(context, state)
    for name, parameter in context.params.items():
        old = parameter.grad[:2].any().item()
        assert parameter.grad[2:].all() and old == ("lifelong_head" not in name)


def test_a_run_and_what_it_exports_answer_alike(tmp_path):
    base = tiny.model("llama")
    base.network.save_pretrained(tmp_path / "base")
    base.processor.save_pretrained(tmp_path / "base")
    stream = tiny_stream.stream(stages=("sky", "farm"), general=False)
    run = launch.run(restore.load(tmp_path / "base"), stream, [Conpet(rank=2)], output=tmp_path / "run")
    export_run(run.folder, tmp_path / "out")
    asked = [row for stage in stream.stages for row in stage.evals[0].rows]
    labels = [label for stage in stream.stages for label in stage.labels]
    found = [restore.load(path).answers(OBJECTIVE, asked, labels) for path in (run.folder, tmp_path / "out")]
    assert found[0] == found[1] and len({answer.prediction[:3] for answer in found[0]}) == 2


def test_a_saved_state_rebuilds_the_same_model_inside_a_stage():
    method, model, state = grown("gpt2", stages=2)
    state = method.begin_stage(boundary(model, 2), state)
    disturb(model, 7)
    again = tiny.model("gpt2")
    method.attach(again, states.join(*states.split(state)), seed=9)
    for name, parameter in model.params().items():
        again.params()[name].data.copy_(parameter.data)
    batch = inputs("gpt2")
    assert torch.equal(output(again.network, batch), output(model.network, batch))
    asked = rows(0, 3) + rows(2, 3)
    assert again.answers(OBJECTIVE, asked, all_labels(3)) == model.answers(OBJECTIVE, asked, all_labels(3))


def test_what_it_cannot_work_with_is_said():
    with pytest.raises(UserError, match="conpet trains fresh weights in every stage"):
        Methods(tuner=Conpet(), penalties=(Ewc(),))
    with pytest.raises(UserError, match="rank must be at most 16 for .*; got 20"):
        Conpet(rank=20).attach(tiny.model("llama"), None, seed=0)
    method, model, state = grown(stages=0)
    with pytest.raises(UserError, match="carries routed experts already"):
        method.attach(model, None, seed=0)
    with pytest.raises(UserError, match="give Context.examples"):
        method.begin_stage(Context(params={}, model=model), state)


def test_static_steps_are_half_old_and_do_not_grow(tmp_path, monkeypatch):
    """After the first stage as many old rows as new in every step, and as many steps as in the first."""
    methods = build.methods([{"conpet_static": {}}])
    stream = tiny_stream.stream(stages=("sky", "farm", "city"), general=False, batch_size=4)
    mixed = []

    pick = type(methods.replay).pick

    def watched(replay, state, num_rows, stage, step):
        found = pick(replay, state, num_rows, stage, step)
        mixed.append((stage, num_rows, len(found), {item["stage"] for item in found}))
        return found

    monkeypatch.setattr(type(methods.replay), "pick", watched)
    run = launch.run(tiny.model("llama"), stream, methods, output=tmp_path / "run")
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [sum(line["stage"] == stage for line in lines) for stage in range(3)] == [3, 3, 3]
    assert all(new == old == 4 for stage, new, old, _ in mixed if stage) and len(mixed) == 9
    assert all(max(stages) < stage for stage, _, _, stages in mixed if stage)
    assert all(old == 0 for stage, _, old, _ in mixed if stage == 0)
