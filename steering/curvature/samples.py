"""Samples of the studies: scikit-learn's digits, drawn anew for every seed, and two spirals."""

import math
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from steering.curvature.classification import Split
from steering.errors import UserError
from steering.training.seeds import generator


@cache
def digits() -> Split:
    """All 1797 images, ``[1797, 64]`` from 0 to 1, and their classes."""
    pixels, labels = load_digits(return_X_y=True)
    return Split(torch.from_numpy(pixels / 16).float(), torch.from_numpy(labels).long())


def of_classes(samples: Split, classes: range) -> Split:
    """Samples of some classes, which are counted from 0."""
    kept = (samples.y >= classes.start) & (samples.y < classes.stop)
    return Split(samples.x[kept], samples.y[kept] - classes.start)


def drawn(samples: Split, sizes: list[int], chance: torch.Generator) -> list[Split]:
    """Parts of these sizes, and the rest, without overlap."""
    if sum(sizes) >= len(samples.y):
        raise UserError(f"{len(samples.y)} samples are too few for parts of {sizes} and a test split")
    order = torch.randperm(len(samples.y), generator=chance)
    bounds = torch.tensor(sizes).cumsum(0).tolist()
    return [samples.take(places) for places in order.tensor_split(bounds)]


def mislabelled(y: Tensor, noise: float, classes: int, chance: torch.Generator) -> Tensor:
    """Classes of which a share ``noise`` is replaced by another one, uniformly."""
    wrong = torch.rand(len(y), generator=chance) < noise
    return torch.where(wrong, (y + torch.randint(1, classes, (len(y),), generator=chance)) % classes, y)


def spirals(number: int, noise: float, seed: int, name: str) -> Split:
    """Two spirals of one turn and a half in the plane, ``[number, 2]``, within about -1 and 1."""
    chance = generator(seed, "spirals", name)
    y = torch.arange(number) % 2
    along = torch.rand(number, generator=chance).sqrt()
    angle = 3 * math.pi * along + math.pi * y
    x = along[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    x = x + 0.03 * torch.randn(number, 2, generator=chance)
    return Split(x, mislabelled(y, noise, 2, chance))
