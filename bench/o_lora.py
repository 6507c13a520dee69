"""Does a step cost more in stage 50 than in stage 2?

O-LoRA with its orthogonality term keeps a low-rank pair of every finished stage. Two lives of one
model take turns: one remembers 1 pair per module, the other 49, of random values. Both see the same rows.
"""

import torch

from bench.figure import Figure, Settings, title
from bench.session import MEDIUM, Size, Stepper, attached, llama, prompts, random_texts, stream_of
from bench.timing import best_ratio, in_turns, middle, ratio
from lifelong.core.axes import Objective, Row
from lifelong.core.composition import Methods
from lifelong.core.life import Life
from lifelong.core.model import Model
from lifelong.core.stream import Stream
from lifelong.models.compute import set_attention
from lifelong.numerics import low_rank
from lifelong.objectives.causal_lm import CausalLm
from lifelong.objectives.sft import Sft
from lifelong.penalties.orthogonal import Orthogonal
from lifelong.tuners.o_lora import OLora

EARLY, LATE = 1, 49  # index of the stage = pairs kept
LIMIT = 1.05


def measure(settings: Settings) -> list[Figure]:
    small = OLora(targets=("q_proj", "v_proj"))
    rows = prompts()
    real = compare(
        settings,
        [settings.model() for _ in range(2)],
        rows,
        Sft(),
        16,
        small,
        "bfloat16",
        title(settings.name),
    )
    return [real, random_llama(settings, MEDIUM)]


def random_llama(settings: Settings, size: Size) -> Figure:
    models = [llama(size, settings.device) for _ in range(2)]
    rows = random_texts(size, 16 * size.batch_size)
    objective = CausalLm(block_size=size.tokens)
    return compare(settings, models, rows, objective, size.batch_size, OLora(), "float32", size.name)


def compare(
    settings: Settings, models: list[Model], rows: list[Row], objective: Objective, batch_size: int,
    tuner: OLora, precision: str, name: str,
) -> Figure:  # fmt: skip
    size, repeats = settings.repeats(2, 4), settings.repeats(3, 8)
    steps = size * (repeats + 1)
    workers = {}
    for index, model in zip((EARLY, LATE), models, strict=True):
        stream = stream_of(rows, objective, batch_size, steps, stages=LATE + 1)
        set_attention(model, "auto", stream)
        workers[str(index)] = Stepper(
            life_in_stage(model, stream, tuner, precision, index), EARLY
        )  # same rows
    blocks = in_turns(workers, size, repeats)
    late, early = blocks[str(LATE)], blocks[str(EARLY)]
    past = LATE * tuner.rank
    modules = low_rank.select_modules(models[1].network, tuner.targets)
    inside = sum(low_rank.dimensions(module)[0] for module in modules.values())
    return Figure(
        question=f"A step of O-LoRA with its orthogonality term in stage {LATE + 1} against stage "
        f"{EARLY + 1}, {name}, {precision}",
        ours=middle(late) * 1e3, baseline=middle(early) * 1e3, unit="ms per step",
        value=ratio(late, early), limit=LIMIT,
        spread=f"best against best {best_ratio(late, early):.3f}; {len(late)} turns of {size} steps",
        arithmetic=f"the term multiplies {past} past directions with {tuner.rank} new ones, twice, in "
        f"{len(modules)} modules: {4 * past * tuner.rank * inside:.2e} operations and "
        f"{4 * past * inside / 1e6:.3g} MB read a step",
    )  # fmt: skip


def life_in_stage(model: Model, stream: Stream, tuner: OLora, precision: str, index: int) -> Life:
    """A life that begins stage `index` with a random pair per module and finished stage. Their sum is
    not added to the weights: that would change what is computed, not how long it takes.
    """
    life = attached(model, stream, Methods(tuner=tuner, penalties=(Orthogonal(),)), precision)
    draw = torch.Generator().manual_seed(index)
    for name, kept in life.states["tuner"]["past"].items():
        inside, outside = low_rank.dimensions(model.network.get_submodule(name))
        rank = index * tuner.rank
        kept["down"] = (torch.randn(rank, inside, generator=draw) / inside**0.5).to(model.device)
        kept["up"] = (torch.randn(outside, rank, generator=draw) * 1e-4).to(model.device)
    life.begin_stage(index, stream.stages[index])
    return life
