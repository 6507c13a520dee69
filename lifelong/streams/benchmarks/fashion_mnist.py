"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): split into pairs of classes, permuted, or rotated."""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.streams.images import ImageStream


@dataclass(frozen=True, kw_only=True)
class FashionMnist(ImageStream):
    """Articles of clothing: split, permuted or rotated."""

    hub: ClassVar[str] = "zalando-datasets/fashion_mnist"
    licence: ClassVar[str] = "MIT"
    names: ClassVar[tuple[str, ...]] = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
        "Ankle boot",
    )  # fmt: skip
