"""Conditional value at risk: the mean of the worst share, exactly."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steering.errors import UserError
from steering.rules.rule import Population
from steering.rules.solve import descending, true_entries

__all__ = ["CVaR"]


@dataclass(frozen=True)
class CVaR:
    """The worst ``alpha`` share of every row weighs 1 / alpha, the rest nothing (soft top-k).

    Exact also when alpha times the number of entries is fractional: the entry at the quantile then takes the
    remainder, shared evenly when several tie. A fixed share does not shrink like rho / n, so the variance
    bound of the paper does not speak of it.

    Args:
        alpha: share of the row that is kept, above 0 and at most 1 (1 is the plain average).
    """

    alpha: float
    width = 2
    normalised = True
    takes_base = True

    def __post_init__(self):
        if not 0 < self.alpha <= 1:
            raise UserError(f"cvar needs an alpha above 0 and at most 1, got {self.alpha:g}")

    def dual(self, excess: Tensor, mask: Tensor, population: Population = None) -> Tensor:
        """The quantile and the weight of an entry that equals it, ``[rows, 2]``."""
        if mask.dtype != torch.bool:
            return self._dual_of_weighted(excess.masked_fill(mask <= 0, -torch.inf), mask)
        quantile, _, _, remainder = self._split(excess.masked_fill(~mask, -torch.inf), true_entries(mask))
        return torch.cat([quantile, remainder], -1)

    def _dual_of_weighted(self, excess: Tensor, base: Tensor) -> Tensor:
        """The same of entries with base weights: the worst alpha of their total."""
        ordered, order = excess.sort(-1, descending=True)
        total = base.sum(-1, keepdim=True)
        reached = base.gather(-1, order).cumsum(-1) >= self.alpha * total * (1 - 1e-12)
        quantile = ordered.gather(-1, reached.to(torch.int8).argmax(-1, keepdim=True))
        quantile = torch.where(total > 0, quantile, 0)
        above = (base * (excess > quantile)).sum(-1, keepdim=True)
        equal = (base * (excess == quantile)).sum(-1, keepdim=True)
        remainder = (total - above / self.alpha) / torch.where(equal > 0, equal, 1)
        return torch.cat([quantile, remainder.clamp(min=0).to(quantile.dtype)], -1)

    def weights_and_dual(self, excess: Tensor, mask: Tensor | None) -> tuple[Tensor, Callable[[], Tensor]]:
        entries = excess.shape[1] if mask is None else true_entries(mask)
        quantile, above, equal, remainder = self._split(excess, entries)
        weights = torch.where(above, 1 / self.alpha, equal * remainder)
        return weights, lambda: torch.cat([quantile, remainder], -1)

    def blend(self, old: Tensor, new: Tensor, gamma: float) -> Tensor:
        return torch.lerp(old, new, gamma)

    def weights(self, excess: Tensor, dual: Tensor) -> Tensor:
        quantile, remainder = dual.to(excess.dtype).split(1, -1)
        return torch.where(excess > quantile, 1 / self.alpha, (excess == quantile) * remainder)

    def _split(self, excess: Tensor, entries: Tensor | int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The quantile, what lies above it, what equals it, and the weight of the latter.

        Args:
            excess: ``[rows, columns]``, less than all others where entries do not count.
            entries: how many count, ``[rows, 1]`` or one number for all rows.
        """
        if isinstance(entries, int):
            quantile = _nth_largest(excess, max(0, math.ceil(self.alpha * entries) - 1))
        else:
            last = (torch.ceil(self.alpha * entries.double()) - 1).clamp(min=0).long()  # of those above or at it
            quantile = torch.where(entries > 0, _nth_largest(excess, last), 0)
        above, equal = excess > quantile, excess == quantile
        remainder = (entries - true_entries(above).double() / self.alpha) / true_entries(equal).clamp(min=1)
        return quantile, above, equal, remainder.clamp(min=0).to(excess.dtype)


def _nth_largest(values: Tensor, rank: Tensor | int) -> Tensor:
    """The entry of every row that ``rank`` others exceed, ``[rows, 1]``; a rank for each of them or for all."""
    if len(values) == 1 and values.device.type == "cpu":  # selecting one entry takes no sorting
        index = values.shape[1] - 1 - int(rank)
        return torch.from_numpy(np.partition(values.numpy(), index, -1)[:, index, None])
    ordered = descending(values)
    return ordered[:, rank, None] if isinstance(rank, int) else ordered.gather(-1, rank)
