"""No steering: every sample weighs the same (empirical risk minimisation)."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform:
    """Every sample weighs one: the plain average, the baseline of every comparison."""

    width = 1
    normalised = True

    def level(self, excess: Tensor, mask: Tensor, population: int | None = None) -> Tensor:
        return excess.new_zeros(len(excess), 1)

    def blend(self, old: Tensor, new: Tensor, gamma: float) -> Tensor:
        return new

    def weights(self, excess: Tensor, level: Tensor) -> Tensor:
        return torch.ones_like(excess)
