"""Reference rows: texts or images that no stage teaches, on which a method compares the network.

A method names them by a setting: a file (`embedded:...`, JSON Lines with a column `text` or `image`,
or plain text with one row per line; relative paths start where the program runs), the texts or image
files themselves, or "random": random tokens, as the random vocabulary of LwF-VR (Ding et al. 2022,
arXiv:2207.09248), and random pixels for vision. They are encoded once and kept in the method's
state, so that a resume does not read the file again.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lifelong.core.axes import Batch, Context
from lifelong.core.encoding import frame, inputs, tokenise
from lifelong.core.labelled import logits_at
from lifelong.core.model import Model
from lifelong.errors import UserError, nearest

RANDOM = "random"
EMBEDDED = "embedded:"
FOLDER = Path(__file__).resolve().parent.parent / "streams" / "embedded"


def encode(
    source: str | Sequence[str], model: Model, num: int, length: int, seed: int, where: str
) -> list[Tensor]:
    """The first `num` rows, of at most `length` tokens: (L,) int32 each, or (3, H, W) pixels. `where`
    names the setting in errors.
    """
    length = min(length, model.window)
    if source == RANDOM:
        vision = model.kind == "vision"
        return _random_images(model, num, seed) if vision else _tokens(model, num, length, seed)
    column = "image" if model.kind == "vision" else "text"
    rows = _read(source, column, where)[:num] if isinstance(source, str) else list(source)[:num]
    if model.kind == "vision":
        return [_pixels(_image(row, where), model) for row in rows]
    around = frame(model)
    room = max(length - len(around.before) - len(around.after), 1)
    found = [around.before + ids[:room] + around.after for ids in tokenise(model.processor, rows) if ids]
    if not found:
        raise UserError(f"{where} names no row that is not empty; give at least one.")
    return [torch.tensor(ids, dtype=torch.int32) for ids in found]


def _read(source: str, column: str, where: str) -> list[str]:
    embedded = source.startswith(EMBEDDED)
    path = FOLDER / source.removeprefix(EMBEDDED) if embedded else Path(source).expanduser()
    if not path.is_file():
        known = [EMBEDDED + each.name for each in FOLDER.glob("*.jsonl")] if embedded else []
        raise UserError(f"{where}: no file {source}.{nearest(source, known)}")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix.lower() != ".jsonl":
        return lines
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: {source}, row {number}: not valid JSON ({error.msg}).") from None
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            raise UserError(
                f"{where}: {source}, row {number} has no `{column}`, which this kind of model reads. Name "
                f'a file that has it, or "{RANDOM}".'
            )
        found.append(row[column])
    return found


def _tokens(model: Model, num: int, length: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(model.processor), (num, length), generator=generator, dtype=torch.int32)
    return list(drawn.unbind())


def _random_images(model: Model, num: int, seed: int) -> list[Tensor]:
    size = model.network.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    draw = np.random.default_rng(seed)
    noise = draw.integers(0, 256, (num, height, width, 3), dtype=np.uint8)
    return [_pixels(Image.fromarray(each), model) for each in noise]


def _image(path: str, where: str) -> Image.Image:
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{where}: cannot read image {path!r}: {error}") from None


def _pixels(image: Image.Image, model: Model) -> Tensor:
    return model.processor(images=[image], return_tensors="pt")["pixel_values"][0]


def draw(count: int, size: int, context: Context) -> list[int]:
    """Which of `count` rows a step looks at: `size` of them (all, if fewer), by seed, stage and step."""
    generator = np.random.default_rng([context.seed, context.stage, context.step])
    return sorted(generator.choice(count, size=min(size, count), replace=False).tolist())


def collate(rows: Sequence[Tensor], model: Model) -> Batch:
    if model.kind == "vision":
        batch = {"pixel_values": torch.stack(list(rows))}
    else:
        batch = inputs([row.tolist() for row in rows], model)
    return {key: value.to(model.device) for key, value in batch.items()}


def at_rows(values: Tensor, batch: Batch) -> Tensor:
    """(B, L, H) -> (N, H): every position that is no pad, in the order of the batch."""
    mask = batch.get("attention_mask")
    return values.flatten(0, 1) if mask is None else values[mask.bool()]


def hidden(model: Model, batch: Batch, layer: int = -1) -> Tensor:
    """(N, H) hidden states of one layer: 0 the embeddings, -1 the last. Encoder-decoder: the encoder's."""
    decodes = model.kind == "encoder_decoder"
    body = model.network.get_encoder() if decodes else model.body()
    extra = {"use_cache": False} if model.kind == "decoder" else {}
    return at_rows(at_layer(body(**batch, **extra, output_hidden_states=True).hidden_states, layer), batch)


def at_layer(states: Sequence[Tensor], layer: int) -> Tensor:
    if not -len(states) <= layer < len(states):
        raise UserError(
            f"layer must be in the range [{-len(states)}, {len(states) - 1}] for this model (0: embeddings, "
            f"-1: last layer); got {layer}."
        )
    return states[layer]


def answers(model: Model, batch: Batch) -> Tensor:
    """(N, V) logits at every position that is no pad. An encoder-decoder reads the row on both sides."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids))
    index = mask.flatten().nonzero()[:, 0]
    if model.kind == "encoder_decoder":
        given = {"decoder_input_ids": model.network.prepare_decoder_input_ids_from_labels(ids)}
        return logits_at(model.network, index, use_cache=False, **batch, **given)
    return logits_at(model.network, index, use_cache=False, **batch)
