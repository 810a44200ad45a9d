"""Conditional value at risk: the mean of the worst share, exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.errors import UserError

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

    def level(self, excess: Tensor, mask: Tensor, population: int | None = None) -> Tensor:
        """The quantile and the weight of an entry that equals it, ``[rows, 2]``."""
        entries = mask.sum(-1, keepdim=True).double()
        place = (torch.ceil(self.alpha * entries) - 1).clamp(min=0).long()
        ordered = excess.masked_fill(~mask, -torch.inf).sort(-1, descending=True).values
        quantile = torch.where(mask.any(-1, keepdim=True), ordered.gather(-1, place), 0)
        above = ((excess > quantile) & mask).sum(-1, keepdim=True)
        equal = ((excess == quantile) & mask).sum(-1, keepdim=True).clamp(min=1)
        remainder = (entries - above.double() / self.alpha) / equal
        return torch.cat([quantile, remainder.clamp(min=0).to(quantile.dtype)], -1)

    def blend(self, old: Tensor, new: Tensor, gamma: float) -> Tensor:
        return torch.lerp(old, new, gamma)

    def weights(self, excess: Tensor, level: Tensor) -> Tensor:
        quantile, remainder = level[:, :1], level[:, 1:]
        above = (excess > quantile).to(excess.dtype) / self.alpha
        return torch.where(excess == quantile, remainder.expand_as(excess), above)
