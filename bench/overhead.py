"""What a method costs per step, beside what its arithmetic must cost. Reported, without a limit.

Lives of one model in their second stage take turns; each is compared with plain training.
"""

from contextlib import ExitStack
from typing import NamedTuple

from bench.figure import Figure, Settings
from bench.session import MEDIUM, Size, Stepper, llama, opened, random_texts, stream_of
from bench.timing import best_ratio, in_turns, middle, ratio
from lifelong.core.composition import Methods
from lifelong.objectives.causal_lm import CausalLm
from lifelong.penalties.ewc import Ewc
from lifelong.penalties.l2 import L2
from lifelong.penalties.lwf import Lwf
from lifelong.penalties.orthogonal import Orthogonal
from lifelong.replay.reservoir import Reservoir
from lifelong.tuners.full import Full
from lifelong.tuners.o_lora import OLora

SIZE = MEDIUM._replace(tokens=64, batch_size=16)


class Case(NamedTuple):
    sentence: str
    methods: Methods
    beside: str  # the case that it is compared with
    arithmetic: str  # what the method adds, as a factor where there is one


CASES = {
    "full": Case("", Methods(tuner=Full()), "", ""),
    "o_lora": Case("", Methods(tuner=OLora()), "", ""),
    "reservoir": Case(
        "half a replayed row for every new row",
        Methods(tuner=Full(), replay=Reservoir(fraction=0.5)), "full",
        "1.5 times the rows: 1.5x where the optimiser's share is small",
    ),
    "l2": Case(
        "the L2 penalty", Methods(tuner=Full(), penalties=(L2(),)), "full",
        "reads weights and anchor once, and adds to the gradient: nothing that grows with the rows",
    ),
    "ewc": Case(
        "the EWC penalty", Methods(tuner=Full(), penalties=(Ewc(num_examples=16),)), "full",
        "as L2, with the importance read as well",
    ),
    "lwf": Case(
        "the LwF penalty", Methods(tuner=Full(), penalties=(Lwf(),)), "full",
        "one more forward pass: 4/3 = 1.33x, and two softmaxes over the vocabulary",
    ),
    "orthogonal": Case(
        "the orthogonality penalty of O-LoRA, second stage",
        Methods(tuner=OLora(), penalties=(Orthogonal(),)), "o_lora",
        "two products of 8 by 8 directions for each module",
    ),
}  # fmt: skip


def measure(settings: Settings) -> list[Figure]:
    return compare(settings, SIZE)


def compare(settings: Settings, size: Size) -> list[Figure]:
    block, repeats = settings.repeats(3, 10), settings.repeats(4, 20)
    steps = 3 + block * (repeats + 1)
    with ExitStack() as stack:
        workers = {name: second_stage(stack, settings, size, case, steps) for name, case in CASES.items()}
        blocks = in_turns(workers, block, repeats)
    found = []
    for name, case in CASES.items():
        if not case.beside:
            continue
        ours, plain = blocks[name], blocks[case.beside]
        found.append(Figure(
            question=f"A step with {case.sentence}, against one without; {size.name}",
            ours=middle(ours) * 1e3, baseline=middle(plain) * 1e3, unit="ms per step",
            value=ratio(ours, plain),
            spread=f"best against best {best_ratio(ours, plain):.3f}; {len(ours)} turns of {block} steps",
            arithmetic=case.arithmetic,
        ))  # fmt: skip
    return found


def second_stage(stack: ExitStack, settings: Settings, size: Size, case: Case, steps: int) -> Stepper:
    """A life that has finished a stage of three steps and begun the next."""
    rows, objective = random_texts(size, 4 * size.batch_size), CausalLm(block_size=size.tokens)
    stream = stream_of(rows, objective, size.batch_size, steps, stages=2)
    model = llama(size, settings.device)
    life, _ = stack.enter_context(opened(model, stream, case.methods, "float32"))
    life.begin_stage(0, stream.stages[0])
    Stepper(life, 0)(3)
    life.end_stage()
    life.begin_stage(1, stream.stages[1])
    return Stepper(life, 1)
