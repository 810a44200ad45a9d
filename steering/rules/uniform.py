"""No steering: every sample weighs the same (empirical risk minimisation)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.rules.rule import Population

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform:
    """Every sample weighs one: the plain average, the baseline of every comparison."""

    width = 1
    normalised = True
    takes_base = True

    def dual(self, excess: Tensor, mask: Tensor, population: Population = None) -> Tensor:
        return excess.new_zeros(len(excess), 1)

    def blend(self, old: Tensor, new: Tensor, gamma: float) -> Tensor:
        return new

    def weights(self, excess: Tensor, dual: Tensor) -> Tensor:
        return torch.ones_like(excess)

    def weights_and_dual(self, excess: Tensor, mask: Tensor | None) -> tuple[Tensor, Callable[[], Tensor]]:
        weights = excess.new_ones(()).expand_as(excess) if mask is None else mask.to(excess)
        return weights, lambda: weights.new_zeros(len(weights), 1)
