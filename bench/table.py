"""What is printed."""

import os
import platform
import textwrap
from collections.abc import Sequence
from typing import Any

from bench.figure import Figure

WIDTH = 110


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch
    import transformers

    load = os.getloadavg()
    return {
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": f"{load[0]:.2f} (1 min), {load[1]:.2f} (5 min); ratios are fair under load, times are not",
        "torch": torch.__version__,
        "packages": f"transformers {transformers.__version__}",
    }


def show(name: str, figures: Sequence[Figure]) -> str:
    """A heading, and three columns of figures below each sentence."""
    lines = [f"\n{name} {'-' * (WIDTH - len(name) - 1)}"]
    for figure in figures:
        lines += textwrap.wrap(figure.question, WIDTH, break_on_hyphens=False)
        parts = []
        if figure.ours is not None:
            parts.append(f"ours {figure.ours:.4g} {figure.unit}")
        if figure.baseline is not None:
            parts.append(f"other {figure.baseline:.4g} {figure.unit}")
        parts.append(
            f"{figure.value:.3g} {figure.value_unit}" if figure.value_unit != "x" else f"{figure.value:.3f}x"
        )
        lines.append("    " + "   ".join(f"{part:<28}" for part in parts) + _verdict(figure))
        for more in (figure.spread, figure.arithmetic):
            lines += textwrap.wrap(more, WIDTH, initial_indent="      ", subsequent_indent="      ",
                                   break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines)


def _verdict(figure: Figure) -> str:
    if figure.limit is None:
        return "reported, no limit"
    unit = "x" if figure.value_unit == "x" else ""
    bound = f"{'at most' if figure.at_most else 'at least'} {figure.limit:g}{unit}"
    return f"limit: {bound}   {'holds' if figure.holds else 'BROKEN'}"
