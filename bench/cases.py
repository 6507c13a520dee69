"""The least that a step of each method must do, as formulas, beside plain training with the same tuner.

A pass is the forward or the backward pass of plain training over its rows; products count 2 operations for
a multiplication with its addition; streamed are the bytes of tensors that element-wise work has to read or
write, each once, as if all of it were one loop. A weight that gets no gradient saves one product, 2 T in out
operations at the pace of such products alone: norms, activations and attention pass back as ever. T:
positions of a step; r: rank; P: trained weights.
"""

from typing import NamedTuple

from bench.session import Size, head_weights
from lifelong.analytic import Acu, FsaLda, Nmc
from lifelong.core.composition import Methods, snake
from lifelong.core.model import Model
from lifelong.mergers import Adamerging, Ama, Lines
from lifelong.mixing import Aioli, Dmt, PowerLawReplay, SkillIt
from lifelong.numerics.low_rank import dimensions, linear_modules
from lifelong.penalties import (
    L2,
    Ewc,
    Gere,
    Lwf,
    Orthogonal,
    RehearsalFree,
    SelfDistillPretrain,
    Si,
    Zscl,
)
from lifelong.replay import AGem, Der, Reservoir
from lifelong.tuners import (
    Conpet,
    Eva,
    Frozen,
    Full,
    Hft,
    ILora,
    Lcia,
    Lift,
    Lora,
    Loramoe,
    Maestro,
    Migu,
    MiguLora,
    Mora,
    OLora,
    Osft,
    Sema,
    Tame,
    Triadaptlora,
)
from lifelong.unlearning import GsLora

WIDTH = 4  # bytes of a float32


class Facts(NamedTuple):
    """Sizes that the formulas are in."""

    rows: int  # of a step
    tokens: int  # T, of a step
    layers: int
    width: int
    words: int
    weights: int  # of the network
    linear: int  # weights of linear modules: sum of in * out
    sides: int  # sum of in + out over them
    inside: int  # sum of in
    outside: int  # sum of out
    modules: int  # number of them
    head: int  # weights of the output head

    @property
    def logits(self) -> int:
        """Bytes of the logits of a step."""
        return WIDTH * self.tokens * self.words


def facts(size: Size, model: Model) -> Facts:
    sides = [dimensions(module) for module in linear_modules(model.network).values()]
    inside, outside = (sum(each) for each in zip(*sides, strict=True))
    return Facts(
        size.batch_size, size.batch_size * size.tokens, size.layers, size.width, size.words,
        sum(p.numel() for p in model.network.parameters()), sum(a * b for a, b in sides), inside + outside,
        inside, outside, len(sides), head_weights(model.network),
    )  # fmt: skip


class Need(NamedTuple):
    """The least that a step must do."""

    words: str
    forward: float = 1.0  # passes
    backward: float = 1.0
    update: float = 1.0  # of the optimiser's work
    products: float = 0.0  # further operations, negative where some are saved
    frozen: float = 0.0  # operations of the products that would give frozen weights their gradient
    streamed: float = 0.0  # further bytes


class Case(NamedTuple):
    methods: Methods
    beside: Methods | None  # plain training; None: a bare PyTorch loop
    need: Need
    labels: bool = False  # rows carry labels, and a linear head decides


AS_IS = Need("nothing more")


def cases(size: Size, block: int, f: Facts) -> dict[str, Case]:
    """By name of the method. `block` steps take turns, so what happens every so many steps fits in."""
    return tuners(f) | penalties(size, f) | memories(f) | mixings(block) | between(f)


def lora(rank: int, dropout: float = 0.0) -> Methods:
    return Methods(tuner=Lora(rank=rank, dropout=dropout))


FULL = Methods(tuner=Full())
MATRICES = Methods(tuner=Full(targets=("proj.weight",)))


def tuners(f: Facts) -> dict[str, Case]:
    thin = f.tokens * f.sides  # of rank 1, half the operations of a forward pass
    dense = f.linear + f.head
    found = {
        "full": Case(FULL, None, AS_IS),
        "frozen": Case(
            Methods(tuner=Frozen()), FULL,
            Need("one forward pass, and the head", backward=0, update=0), labels=True,
        ),
        "lora": Case(
            lora(8), FULL,
            Need(
                "no gradient for weights; thin products, for which inputs are read three times and written "
                "once, outputs read twice and written once",
                frozen=2 * f.tokens * dense, update=8 * f.sides / f.weights,
                streamed=WIDTH * f.tokens * (4 * f.inside + 3 * f.outside),
            ),
        ),
        "eva": Case(Methods(tuner=Eva()), lora(16), AS_IS),
        "conpet": Case(Methods(tuner=Conpet()), lora(4), AS_IS),
        "o_lora": Case(Methods(tuner=OLora()), lora(8), AS_IS),
        "hft": Case(
            Methods(tuner=Hft()), FULL,
            Need(
                "no gradient and no update for half of each block's weights",
                frozen=f.tokens * f.linear, update=1 - f.linear / f.weights / 2,
            ),
        ),
        "migu": Case(
            Methods(tuner=Migu()), FULL,
            Need(
                "every output of a linear layer read once; seven tenths of the rows saved, put back, and "
                "their gradient set to 0",
                streamed=WIDTH * f.tokens * f.outside + 0.7 * 5 * WIDTH * f.linear,
            ),
        ),
        "migu_lora": Case(
            Methods(tuner=MiguLora()), lora(8),
            Need(
                "every output of both factors read once",
                streamed=WIDTH * f.tokens * (f.outside + 8 * f.modules),
            ),
        ),
        "lift": Case(
            Methods(tuner=Lift()), FULL,
            Need(
                "no gradient for embeddings and head; a twentieth of the matrices updated, 32 bytes for each",
                frozen=2 * f.tokens * f.head, update=0, streamed=0.05 * 8 * WIDTH * f.linear,
            ),
        ),
        "lcia": Case(
            Methods(tuner=Lcia(rank=f.width // 2)), lora(f.width // 2),
            Need(
                "weight, average, gradient and the one before read, average and gradient written",
                streamed=6 * WIDTH * f.width // 2 * f.sides,
            ),
        ),
        "i_lora": Case(
            Methods(tuner=ILora(alpha=16.0), replay=Reservoir(size=4 * f.rows)),
            Methods(tuner=Lora(), replay=Reservoir(size=4 * f.rows)),
            Need(
                "one more forward pass over the old rows, with the slow pair; one average",
                forward=4 / 3, streamed=3 * WIDTH * 8 * f.sides,
            ),
        ),
    }  # fmt: skip
    return found | structured(f, thin)


def structured(f: Facts, thin: int) -> dict[str, Case]:
    """Tuners whose products are others than those of a low-rank pair."""
    dense, inner = f.linear + f.head, 16 * f.tokens * f.width  # of an adapter of width 16, one product
    core = 6 * 64 * f.tokens * f.modules + 6 * 64 * f.sides
    return {
        "triadaptlora": Case(
            Methods(tuner=Triadaptlora(growth=8)), lora(8),
            Need("the core, 6 r^2 T a module, and two Gram matrices", products=core),
        ),
        "mora": Case(
            Methods(tuner=Mora()), lora(16),
            Need(
                "scores, their order and a softmax over 16 experts; no gradient for the 8 that are finished",
                update=0.5, products=-2 * 8 * thin, streamed=6 * WIDTH * 16 * f.tokens * f.modules,
            ),
        ),
        "loramoe": Case(
            Methods(tuner=Loramoe()), lora(24, dropout=0.05),
            Need(
                "a router of 6 columns, and a weight for each activation",
                products=6 * 6 * f.tokens * f.inside, streamed=6 * WIDTH * 24 * f.tokens * f.modules,
            ),
        ),
        "osft": Case(
            Methods(tuner=Osft(ranks="fixed")), MATRICES,
            Need(
                "no gradient for the protected half, the weak half as a pair of rank r = min(in, out) / 2; "
                "gradient and weights projected once",
                frozen=2 * f.tokens * f.linear, update=f.width / 2 * f.sides / f.linear,
                products=(6 * f.tokens + 8 * f.width / 2) * f.width / 2 * f.sides,
            ),
        ),
        "maestro": Case(
            Methods(tuner=Maestro()), MATRICES,
            Need(
                "k (in + out) for in * out, k = min(in, out), in products and update; its norms",
                update=f.width * f.sides / f.linear,
                products=6 * f.tokens * (f.width * f.sides - f.linear),
                streamed=3 * WIDTH * f.width * f.sides,
            ),
        ),
        "sema": Case(
            Methods(tuner=Sema(threshold=0.0)), FULL,
            Need(
                "no gradient for weights, and none below the third last block; 7 adapters, 3 of them trained",
                backward=(0.5 * f.linear + f.head) / dense, frozen=2 * f.tokens * (0.5 * f.linear + f.head),
                update=0, products=(4 * 7 + 8 * 3) * inner,
            ),
        ),
        "tame": Case(
            Methods(tuner=Tame(threshold=1e9)), FULL,
            Need(
                "no gradient for weights, and none below the first adapter; one adapter a block",
                backward=((1 - 1 / f.layers) * f.linear + f.head) / dense,
                frozen=2 * f.tokens * ((1 - 1 / f.layers) * f.linear + f.head), update=0,
                products=12 * f.layers * inner,
            ),
        ),
    }  # fmt: skip


def penalties(size: Size, f: Facts) -> dict[str, Case]:
    once, quarter = WIDTH * f.weights, max(f.rows // 4, 1)
    reference = {"num_rows": 8, "length": size.tokens, "batch_size": quarter}
    share = quarter / f.rows
    teacher = "one more forward pass, the teacher's"
    needs = {
        L2(): Need("weight, anchor and gradient read, gradient written: 16 P bytes", streamed=4 * once),
        Ewc(num_examples=16): Need("as l2, importance read too: 20 P bytes", streamed=5 * once),
        Si(): Need(
            "as ewc; gradient and weight saved, the path updated from them: 56 P bytes", streamed=14 * once
        ),
        Lwf(): Need(
            teacher + "; both logits read, their gradient added", forward=2, streamed=4 * f.logits
        ),
        RehearsalFree(): Need(teacher, forward=2),
        SelfDistillPretrain(teacher_share=1e-6): Need(teacher + ", for the student", forward=2),
        Gere(**reference): Need(
            "passes over a quarter more rows", forward=1 + share, backward=1 + share
        ),
        Zscl(**reference): Need(
            "two forward passes and one back over a quarter as many rows; the drift: 16 P bytes",
            forward=1 + 2 * share, backward=1 + share, streamed=4 * once + share * 4 * f.logits,
        ),
    }  # fmt: skip
    found = {
        snake(each): Case(Methods(tuner=Full(), penalties=(each,)), FULL, need)
        for each, need in needs.items()
    }
    orthogonal = Case(
        Methods(tuner=OLora(), penalties=(Orthogonal(),)), Methods(tuner=OLora()),
        Need("8 old directions by 8 new ones, twice: 4 R r in", products=4 * 64 * f.inside),
    )  # fmt: skip
    return found | {"orthogonal": orthogonal}


def memories(f: Facts) -> dict[str, Case]:
    size, twice = 4 * f.rows, "as many old rows as new ones: both passes twice"
    return {
        "reservoir": Case(
            Methods(tuner=Full(), replay=Reservoir(size=size)), FULL,
            Need("half as many old rows as new ones", forward=1.5, backward=1.5),
        ),
        "der": Case(
            Methods(tuner=Full(), replay=Der(size=size)), FULL,
            Need(
                twice + "; kept and new logits read, their gradient added",
                forward=2, backward=2, streamed=3 * f.logits,
            ),
        ),
        "a_gem": Case(
            Methods(tuner=Full(), replay=AGem(size=size)), FULL,
            Need(
                twice + "; both gradients read", forward=2, backward=2, streamed=2 * WIDTH * f.weights
            ),
        ),
    }  # fmt: skip


def mixings(block: int) -> dict[str, Case]:
    measured = Need(
        f"a forward pass over the held-out rows, a quarter of both stages, every {block} steps",
        forward=1 + 2 / block,
    )
    found = {
        "aioli": (Aioli(probe_steps=block, repeats=1000, held_out=0.25), measured),
        "skill_it": (SkillIt(round_steps=block, held_out=0.25), measured),
        "dmt": (Dmt(share=0.25), Need("nothing more: there are more steps")),
        "power_law_replay": (PowerLawReplay(), Need("nothing more: old rows take the places of new ones")),
    }
    return {
        name: Case(Methods(tuner=Full(), mixing=each), FULL, need) for name, (each, need) in found.items()
    }


def between(f: Facts) -> dict[str, Case]:
    """What acts when a stage ends, and what acts in erase stages alone."""
    mergers = {
        "adamerging": Adamerging(iterations=2), "ama": Ama(steps=2, num_examples=f.rows), "lines": Lines()
    }  # fmt: skip
    found = {
        name: Case(Methods(tuner=Full(), mergers=(each,)), FULL, AS_IS) for name, each in mergers.items()
    }
    square, half_rate = f.width**2, 2  # float64 makes half the operations a second
    solved = half_rate * 2 / 3 * f.width**3
    closed = {
        "nmc": (Nmc(), Frozen(), Need("a forward pass for each row")),
        "acu": (
            Acu(), Frozen(),
            Need(
                "a forward pass for each row; 4 H^2 operations in float64",
                products=half_rate * 4 * square * 4 * f.rows,
            ),
        ),
        "fsa_lda": (
            FsaLda(), Lora(),
            Need(
                "a forward pass for each row; 2 H^2 operations in float64, and a system of H once a stage",
                products=half_rate * 2 * square * 4 * f.rows + solved,
            ),
        ),
    }  # fmt: skip
    for name, (each, tuner, need) in closed.items():
        found[name] = Case(Methods(tuner=tuner, analytic=each), Methods(tuner=tuner), need, labels=True)
    found["gs_lora"] = Case(
        Methods(tuner=OLora(), unlearning=GsLora()), Methods(tuner=OLora()),
        Need("the pairs read for their norms, which add to the gradient", streamed=3 * WIDTH * 8 * f.sides),
    )  # fmt: skip
    return found
