"""Samples of the curvature studies: scikit-learn's digits, drawn anew for every seed, and two spirals."""

import math
from functools import cache
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from steering.errors import UserError
from steering.training.seeds import generator


class Split(NamedTuple):
    """Samples ``[n, ...]`` and their classes ``[n]``."""

    x: Tensor
    y: Tensor

    def take(self, indices: Tensor) -> "Split":
        return Split(self.x[indices], self.y[indices])


@cache
def digits() -> Split:
    """All 1797 images of scikit-learn's digits, ``[1797, 64]`` from 0 to 1, and their classes."""
    pixels, labels = load_digits(return_X_y=True)
    return Split(torch.from_numpy(pixels / 16).float(), torch.from_numpy(labels).long())


def of_classes(samples: Split, classes: range) -> Split:
    """The samples of a range of classes, which are then counted from 0."""
    chosen = samples.take((samples.y >= classes.start) & (samples.y < classes.stop))
    return Split(chosen.x, chosen.y - classes.start)


def random_parts(samples: Split, sizes: list[int], chance: torch.Generator) -> list[Split]:
    """Parts of these sizes, and the rest, without overlap."""
    if sum(sizes) >= len(samples.y):
        raise UserError(f"{len(samples.y)} samples are too few for parts of {sizes} and a test split")
    order = torch.randperm(len(samples.y), generator=chance)
    return [samples.take(indices) for indices in order.tensor_split(torch.tensor(sizes).cumsum(0).tolist())]


def mislabelled(samples: Split, noise: float, classes: int, chance: torch.Generator) -> Split:
    """The samples with a share ``noise`` of their classes replaced by another one, uniformly."""
    wrong = torch.rand(len(samples.y), generator=chance) < noise
    shift = torch.randint(1, classes, (len(samples.y),), generator=chance)  # never back to the right class
    return Split(samples.x, torch.where(wrong, (samples.y + shift) % classes, samples.y))


def spirals(number: int, noise: float, seed: int, name: str) -> Split:
    """Two spirals of one turn and a half in the plane, ``[number, 2]``, within about -1 and 1."""
    chance = generator(seed, "spirals", name)
    y = torch.arange(number) % 2
    radius = torch.rand(number, generator=chance).sqrt()
    angle = 3 * math.pi * radius + math.pi * y
    x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    return mislabelled(Split(x + 0.03 * torch.randn(number, 2, generator=chance), y), noise, 2, chance)
