"""Both heads: what is learned, what is judged, what is refused."""

import pytest
import tiny
import torch
from core.test_scoring import by_hand, by_steps, sharp

from lifelong.errors import UserError
from lifelong.objectives.classification import Classification

LABELS = ("good", "bad", "so so", "goodness")
ROWS = [
    {"text": f"{'word ' * (i % 3)}{chr(97 + i)}" * (1 + i % 2), "label": LABELS[i % 4]} for i in range(12)
]


def ids(text: str) -> list[int]:
    return tiny.tokenizer()(text)["input_ids"]


def learn(method, model, rows, labels, steps=60, rate=3e-3):
    examples = method.encode(rows, model, labels).examples
    batch = method.collate(examples, model)
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=rate)
    model.network.train()
    for _ in range(steps):
        loss = method.loss(method.forward(model.network, batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.network.eval()
    return loss.item()


def test_prompt_and_label_are_a_completion():
    (example,), _ = Classification().encode([{"text": "{x}", "label": "so so"}], tiny.model("llama"), LABELS)
    assert example["input_ids"] == [*ids("{x}\nAnswer: so so"), 1]
    assert example["labels"] == [-100] * len(ids("{x}\nAnswer:")) + [*ids(" so so"), 1]
    (example,), _ = Classification().encode([{"text": "a", "label": 5}], tiny.model("t5"), ())
    assert example == {"input_ids": ids("a\nAnswer:"), "labels": [*ids(" 5"), 1]}


@pytest.mark.parametrize("end_token", [True, False])
@pytest.mark.parametrize("architecture", tiny.TEXT)
def test_the_likeliest_candidate_is_the_answer(architecture, end_token):
    model = sharp(architecture)
    answers = Classification(end_token=end_token).answer(ROWS, model, LABELS)
    prompts = [ids(row["text"] + "\nAnswer:") for row in ROWS]
    tokens = [ids(" " + label) + [1] * end_token for label in LABELS]
    expected = by_hand(model, prompts, tokens)
    assert [answer.prediction for answer in answers] == [LABELS[i] for i in expected.argmax(1).tolist()]
    for i, (row, answer) in enumerate(zip(ROWS, answers, strict=True)):
        assert answer.references == (row["label"],) and answer.tokens == len(tokens[i % 4])
        assert abs(answer.log_likelihood - expected[i, i % 4].item()) < 2e-4


def test_a_reference_need_not_be_a_candidate():
    model = sharp("llama")
    every = Classification().answer(ROWS, model, LABELS)
    some = Classification().answer(ROWS, model, LABELS[:2])
    assert {answer.prediction for answer in some} <= set(LABELS[:2])
    for one, other in zip(every, some, strict=True):
        assert abs(one.log_likelihood - other.log_likelihood) < 1e-4


def test_generation_judges_what_is_said():
    model = sharp("llama")
    answers = Classification(generate=True).answer(ROWS, model, LABELS)
    longest = len(ids(" goodness")) + 1
    for row, answer in zip(ROWS, answers, strict=True):
        said = by_steps(model, ids(row["text"] + "\nAnswer:"), longest)
        assert answer.prediction == tiny.tokenizer().decode(said, skip_special_tokens=True).strip()
    likelihoods = [answer.log_likelihood for answer in Classification().answer(ROWS, model, LABELS)]
    assert all(abs(a.log_likelihood - b) < 1e-4 for a, b in zip(answers, likelihoods, strict=True))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_learns(architecture):
    model = tiny.model(architecture)
    rows = ROWS
    if architecture == "vit":
        images = torch.rand(12, 16, 16, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
        rows = [{"image": image, "label": row["label"]} for image, row in zip(images, ROWS, strict=True)]
    method = Classification()
    method.begin_stage(model, LABELS, 0)
    before = sum(a.prediction == a.references[0] for a in method.answer(rows, model, LABELS))
    learn(method, model, rows, LABELS, steps=120, rate=5e-3)
    after = sum(a.prediction == a.references[0] for a in method.answer(rows, model, LABELS))
    assert after >= 10 > before


def test_only_the_text_is_cut_and_training_and_judging_see_the_same_prompt():
    model = tiny.model("llama")
    method = Classification(template="Q: {text}\nAnswer:")
    rows = [{"text": "0123456789" * 20, "label": "bad"}]
    (example,), cut = method.encode(rows, model, LABELS)
    text = tiny.tokenizer().decode(example["input_ids"])
    assert cut == 1 and text.startswith("Q: 0123") and text.endswith("\nAnswer: bad<eos>")
    room = 128 - len(ids(" goodness")) - 1
    assert len(example["input_ids"]) == room + len(ids(" bad")) + 1
    seen = []
    spy = model.network.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for end_token in (True, False):
        Classification(template="Q: {text}\nAnswer:", end_token=end_token).answer(rows, model, LABELS)
    spy.remove()
    assert max(seen) == room  # the prompt as it was trained; labels go on from its cache


def test_an_unknown_label_names_row_label_and_nearest():
    rows = [ROWS[0], {"text": "a", "label": "godo", "__source__": "t.csv:3"}]
    for name in ("llama", "bert"):
        with pytest.raises(UserError, match=r"row 2 \(t.csv:3\): label 'godo' .*`good`"):
            Classification().encode(rows, tiny.model(name), LABELS)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="give the answer away"):
        Classification(template="{text} {label}")
    with pytest.raises(UserError, match="must name a column"):
        Classification(template="text")
    with pytest.raises(UserError, match="does not generate"):
        Classification(head="likelihood").encode(ROWS, tiny.model("bert"), LABELS)
    with pytest.raises(UserError, match="candidate labels"):
        Classification().answer(ROWS, tiny.model("llama"), ())
    with pytest.raises(UserError, match="column `image`"):
        Classification().encode(ROWS, tiny.model("vit"), LABELS)
    with pytest.raises(UserError, match="`title`"):
        Classification(template="{title}").encode(ROWS, tiny.model("llama"), LABELS)


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_linear_outputs_are_logits_over_all_known_labels(architecture):
    model = tiny.model(architecture)
    method = Classification(head="linear")
    method.begin_stage(model, LABELS[:2], 0)
    method.begin_stage(model, LABELS, 0)
    batch = method.collate(method.encode(ROWS, model, LABELS).examples, model)
    outputs = method.forward(model.network, batch)
    assert outputs.logits.shape == (12, 4) and outputs.logits.dtype == torch.float32
    assert outputs.targets.tolist() == [0, 1, 2, 3] * 3 and outputs.owners.tolist() == list(range(12))
    assert method.labelled(batch) == 12
    answers = method.answer(ROWS, model, LABELS)
    scores = outputs.logits.log_softmax(1)
    for i, answer in enumerate(answers):
        assert answer.prediction == LABELS[int(scores[i].argmax())] and answer.tokens == 1
        assert abs(answer.log_likelihood - scores[i, i % 4].item()) < 1e-5


def test_linear_answers_stay_among_the_candidates():
    model = tiny.model("bert")
    method = Classification()
    method.begin_stage(model, LABELS[:3], 0)
    answers = method.answer(ROWS, model, ("bad", "so so", "goodness"))  # the last is not known yet
    assert {answer.prediction for answer in answers} <= {"bad", "so so"}
    assert answers[0].log_likelihood == answers[3].log_likelihood == -torch.inf
    pair = [method.answer([ROWS[1] | {"label": name}], model, LABELS[:3]) for name in LABELS[:3]]
    assert abs(sum(torch.tensor(a[0].log_likelihood).exp() for a in pair) - 1) < 1e-5
    assert method.answer(ROWS[:1], model, ("goodness",))[0].prediction == ""


def test_masking_old_labels_leaves_their_rows_of_the_head_alone():
    def gradient(mask_old: bool, rows) -> torch.Tensor:
        model = tiny.model("bert")
        method = Classification(mask_old=mask_old)
        method.begin_stage(model, LABELS[:2], 0)
        method.begin_stage(model, LABELS, 0)
        batch = method.collate(method.encode(rows, model, LABELS).examples, model)
        loss = method.loss(method.forward(model.network, batch)).mean()
        assert loss.isfinite()
        loss.backward()
        return model.network.lifelong_head.weight.grad

    new = [row for row in ROWS if row["label"] in LABELS[2:]]
    old = [row for row in ROWS if row["label"] in LABELS[:2]]
    assert (gradient(True, new)[:2] == 0).all() and (gradient(True, new)[2:] != 0).any()
    assert (gradient(False, new)[:2] != 0).any()  # control
    assert torch.equal(gradient(True, old), gradient(False, old))  # replayed rows compete among all


def test_a_head_that_is_missing_is_said():
    model = tiny.model("bert")
    batch = Classification().collate(Classification().encode(ROWS, model, LABELS).examples, model)
    with pytest.raises(UserError, match="begin_stage"):
        Classification().forward(model.network, batch)


def test_a_generative_model_gets_no_head():
    model = tiny.model("llama")
    Classification().begin_stage(model, LABELS, 0)
    assert not any("lifelong_head" in name for name, _ in model.network.named_parameters())
