"""Reference rows: where they come from, how they are drawn, and what is read off them."""

import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from lifelong.core import reference
from lifelong.core.axes import Context
from lifelong.errors import UserError


def encode(source, architecture="llama", num=4, length=12, seed=0):
    return reference.encode(source, tiny.model(architecture), num, length, seed, "x.reference")


def test_texts_from_a_file_a_list_and_the_embedded_set_are_cut_and_counted(tmp_path):
    texts = ["abc", "a text that is longer than twelve bytes", "z"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n\n")
    made = [encode(source) for source in (str(tmp_path / "a.jsonl"), str(tmp_path / "a.txt"), tuple(texts))]
    assert [len(ids) for ids in made[0]] == [3, 12, 1]
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))
    assert tiny.tokenizer().decode(made[0][1].tolist()) == texts[1][:12]
    assert len(encode("embedded:general_prose.test.jsonl", num=7)) == 7


def test_random_rows_depend_on_the_seed_alone():
    first, again, other = encode("random"), encode("random"), encode("random", seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0]) and first[0].shape == (12,)
    pixels = encode("random", "vit")
    assert pixels[0].shape == (3, 16, 16) and not torch.equal(pixels[0], pixels[1])


def test_a_vision_model_reads_images(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": str(tmp_path / "a.png")}))
    by_name, listed = encode(str(tmp_path / "a.jsonl"), "vit"), encode((str(tmp_path / "a.png"),), "vit")
    assert by_name[0].shape == (3, 16, 16) and torch.equal(by_name[0], listed[0])
    with pytest.raises(UserError, match="has no `image`"):
        encode("embedded:general_prose.test.jsonl", "vit")
    with pytest.raises(UserError, match="cannot read image"):
        encode((str(tmp_path / "a.jsonl"),), "vit")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="x.reference: no file embedded:general_pros.jsonl. Did you mean"):
        encode("embedded:general_pros.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(UserError, match="row 2: not valid JSON"):
        encode(str(tmp_path / "b.jsonl"))
    with pytest.raises(UserError, match="at least one"):
        encode(("",))


def test_draws_are_of_seed_stage_and_step_and_cover_all_rows():
    def drawn(**where):
        return reference.draw(20, 5, Context(params={}, **where))

    assert drawn(seed=3, stage=1, step=2) == drawn(seed=3, stage=1, step=2)
    assert len({tuple(drawn(seed=3, stage=s, step=t)) for s in range(3) for t in range(3)}) == 9
    assert {row for step in range(40) for row in drawn(step=step)} == set(range(20))
    assert reference.draw(3, 5, Context(params={})) == [0, 1, 2]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_pads_change_nothing(architecture):
    """Rows in one batch give what each gives alone; a vision model has no pads."""
    model = tiny.model(architecture)
    source = "random" if architecture == "vit" else ("one two", "a", "three four five")
    rows = reference.encode(source, model, 3, 20, 0, "x")
    looks = [lambda b: reference.hidden(model, b), lambda b: reference.hidden(model, b, 1)]
    if architecture in tiny.TEXT:
        looks.append(lambda b: reference.answers(model, b))
    for look in looks:
        with torch.no_grad():
            together = look(reference.collate(rows, model))
            alone = torch.cat([look(reference.collate([row], model)) for row in rows])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        assert len(together) == (15 if architecture == "vit" else 7 + 1 + 15)
    with pytest.raises(UserError, match=r"range \[-3, 2\]"):
        reference.hidden(model, reference.collate(rows, model), 3)
