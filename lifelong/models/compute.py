"""Precision and attention: what "auto" means, by measurement.

On processors with bfloat16 instructions (AMX or AVX-512 BF16) matrix products in bfloat16 are 4 to 6
times faster than in float32. PyTorch's fused attention is tuned for long inputs there: on rows of up
to 512 tokens the plain ("eager") form trains a 135 M Llama 20 to 30 % faster.
"""

import contextlib

import torch

from lifelong.core.model import Model
from lifelong.core.stream import Stream

SHORT = 512  # tokens


def device() -> torch.device:
    """Where a run computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(wanted: str, device: torch.device) -> str:
    """ "auto" is bfloat16 where the hardware multiplies it natively."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if fast_bfloat16() else "float32"


def fast_bfloat16() -> bool:
    """Does this processor have bfloat16 instructions, rather than an emulation?"""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def set_attention(model: Model, wanted: str, stream: Stream) -> None:
    """Choose the form of attention for short rows on a CPU; keep the library's choice elsewhere."""
    if wanted == "auto":
        if model.device.type != "cpu" or (model.kind != "vision" and longest(stream) > SHORT):
            return
        wanted = "eager"
    model.network.set_attn_implementation(wanted)


def longest(stream: Stream) -> int:
    """An upper estimate of the tokens of long rows: a third of the characters of the 95th percentile,
    or the block that rows are packed into.
    """
    worst = 0
    for stage in stream.stages:
        if stage.objective.packed_tokens is not None:
            worst = max(worst, stage.objective.packed_tokens)
            continue
        sizes = sorted(sum(len(v) for v in row.values() if isinstance(v, str)) for row in stage.rows)
        worst = max(worst, sizes[int(0.95 * (len(sizes) - 1))] // 3)
    return worst


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """Run a block in the compute type; weights keep theirs."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
