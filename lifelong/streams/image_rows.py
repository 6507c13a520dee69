"""Rows of images that lie in one array: a row is made when it is asked for, so that twenty permuted
versions of MNIST take the memory of one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

Look = Callable[[np.ndarray], np.ndarray]  # (H, W) uint8 -> (H, W) or (H, W, 3) uint8


@dataclass(frozen=True, eq=False)
class ImageRows(Sequence[dict[str, Any]]):
    images: np.ndarray  # (N, H, W) uint8, shared
    labels: np.ndarray  # (N,) of text
    place: str  # what the rows are called in messages
    index: np.ndarray  # (rows,) which images
    looks: tuple[Look, ...] = ()  # what is done to an image, in order

    def __len__(self) -> int:
        return len(self.index)

    @overload
    def __getitem__(self, item: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, item: slice) -> "ImageRows": ...
    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            return self.take(np.arange(len(self))[item])
        place = int(self.index[item])
        image = self.images[place]
        for look in self.looks:
            image = look(image)
        return {"image": image, "label": str(self.labels[place]), "__source__": f"{self.place}:{place + 1}"}

    def take(self, chosen: np.ndarray) -> "ImageRows":
        return replace(self, index=self.index[chosen])

    def renamed(self, names: Mapping[str, str]) -> "ImageRows":
        """Labels by their new names, where they have one."""
        known, which = np.unique(self.labels, return_inverse=True)
        return replace(self, labels=np.array([names.get(str(each), str(each)) for each in known])[which])

    def seen(self, look: Look) -> "ImageRows":
        return replace(self, looks=(*self.looks, look))


def permutation(num_pixels: int, *seed: int) -> Look:
    order = np.random.default_rng(seed).permutation(num_pixels)
    return lambda image: image.reshape(-1)[order].reshape(image.shape)


def rotation(height: int, width: int, degrees: float) -> Look:
    """Counter-clockwise about the centre, bilinear, black outside."""
    angle = np.deg2rad(degrees)
    y, x = np.mgrid[:height, :width].reshape(2, -1) - np.array([[height - 1], [width - 1]]) / 2
    source_y = np.cos(angle) * y + np.sin(angle) * x + (height - 1) / 2
    source_x = np.cos(angle) * x - np.sin(angle) * y + (width - 1) / 2
    low_y, low_x = np.floor(source_y), np.floor(source_x)
    places, weights = [], []
    for step_y in (0, 1):
        for step_x in (0, 1):
            row, column = low_y + step_y, low_x + step_x
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            share = (1 - abs(source_y - row)) * (1 - abs(source_x - column)) * inside
            places.append(np.where(inside, row * width + column, 0).astype(np.int64))
            weights.append(share.astype(np.float32))
    where, shares = np.stack(places), np.stack(weights)  # (4, H * W)

    def turn(image: np.ndarray) -> np.ndarray:
        mixed = (image.reshape(-1)[where] * shares).sum(0)
        return np.rint(mixed).astype(np.uint8).reshape(image.shape)

    return turn


def three_channels(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=-1)
