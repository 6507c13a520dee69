"""MNIST (LeCun et al. 1998): split into pairs of digits, permuted, or rotated.

Split: five stages of two digits, in the three scenarios of van de Ven and Tolias 2019 (arXiv:1904.07734).
Permuted (Goodfellow et al. 2013, arXiv:1312.6211): stage k > 1 sees the pixels in an order of its own.
Rotated (Lopez-Paz and Ranzato 2017, arXiv:1706.08840): angles grow evenly. The first stage is MNIST itself.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.streams.images import ImageStream


@dataclass(frozen=True, kw_only=True)
class Mnist(ImageStream):
    """Handwritten digits: split, permuted or rotated."""

    hub: ClassVar[str] = "ylecun/mnist"
    licence: ClassVar[str] = "as stated by its source"
    names: ClassVar[tuple[str, ...]] = tuple("0123456789")
