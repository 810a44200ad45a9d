"""Conditional value at risk: the mean of the worst share, exactly."""

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

    def __post_init__(self):
        if not 0 < self.alpha <= 1:
            raise UserError(f"cvar needs an alpha above 0 and at most 1, got {self.alpha:g}")

    def dual(self, excess: Tensor, mask: Tensor, population: Population = None) -> Tensor:
        """The quantile and the weight of an entry that equals it, ``[rows, 2]``."""
        return self._dual(excess.masked_fill(~mask, -torch.inf), true_entries(mask))

    def _dual(self, excess: Tensor, entries: Tensor) -> Tensor:
        """The same of rows whose entries that do not count are less than all others."""
        last = (torch.ceil(self.alpha * entries.double()) - 1).clamp(min=0).long()  # of those above or at the quantile
        quantile = torch.where(entries > 0, _nth_largest(excess, last), 0)
        above = (excess > quantile).sum(-1, keepdim=True)
        equal = (excess == quantile).sum(-1, keepdim=True).clamp(min=1)
        remainder = (entries - above.double() / self.alpha) / equal
        return torch.cat([quantile, remainder.clamp(min=0).to(quantile.dtype)], -1)

    def weights_and_dual(self, excess: Tensor, mask: Tensor | None) -> tuple[Tensor, Callable[[], Tensor]]:
        if mask is None:
            entries = torch.full((len(excess), 1), excess.shape[1], device=excess.device)
            dual = self._dual(excess, entries)
            return self.weights(excess, dual), lambda: dual
        dual = self._dual(excess, true_entries(mask))
        return self.weights(excess, dual).masked_fill(~mask, 0), lambda: dual

    def blend(self, old: Tensor, new: Tensor, gamma: float) -> Tensor:
        return torch.lerp(old, new, gamma)

    def weights(self, excess: Tensor, dual: Tensor) -> Tensor:
        quantile, remainder = dual[:, :1], dual[:, 1:]
        above = (excess > quantile).to(excess.dtype) / self.alpha
        return torch.where(excess == quantile, remainder.expand_as(excess), above)


def _nth_largest(values: Tensor, rank: Tensor) -> Tensor:
    """The entry of every row that ``rank`` others exceed, all ``[rows, 1]``."""
    if len(values) == 1 and values.device.type == "cpu":  # selecting one entry takes no sorting
        place = values.shape[1] - 1 - int(rank)
        return torch.from_numpy(np.partition(values.numpy(), place, -1)[:, place, None])
    return descending(values).gather(-1, rank)
