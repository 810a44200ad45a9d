"""Chi-square DRO: weights that grow linearly above a cut-off."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.rules.solve import below_top, bisect_log, count, minus, one_of, radius, spread

__all__ = ["ChiSquare"]


@dataclass(frozen=True)
class ChiSquare:
    """Weights ``max(excess - cut, 0) / slope``: worst case of a chi-square divergence, phi(t) = (t-1)^2/2.

    Constrained, ``rho``: D(p || uniform) <= rho / n, the divergence of the paper's theorems (section 3; the
    factor 1/2 is theirs). While no weight touches zero the risk is exactly
    ``mean + sqrt(2 rho / n) * standard deviation`` (Namkoong and Duchi 2017).

    Penalised, ``temperature`` t: the risk is ``max_p p.excess - t D(p || uniform)``, in the interior
    ``mean + variance / (2 t)``.

    Args:
        temperature: in units of the loss, above 0.
        rho: radius times n, dimensionless, above 0.
    """

    temperature: float | None = None
    rho: float | None = None
    width = 2
    normalised = True

    def __post_init__(self):
        one_of("chi_square", self.temperature, self.rho)

    def level(self, excess: Tensor, mask: Tensor, population: int | None = None) -> Tensor:
        """The cut-off and the slope, ``[rows, 2]``."""
        largest, below = below_top(excess, mask)
        below, entries = below.masked_fill(~mask, -torch.inf), count(mask, below)

        def mean_above(depth: Tensor, power: int = 1) -> Tensor:
            """Mean of ``max(excess - cut, 0) ** power`` with the cut ``depth`` under the largest entry."""
            return (below + depth).clamp(min=0).pow(power).sum(-1, keepdim=True) / entries

        if self.temperature:
            wanted = self.temperature
            shallow = torch.full_like(largest, wanted)
            depth = bisect_log(lambda d: wanted - mean_above(d), shallow * 0.99, shallow * entries)
        else:
            assert self.rho is not None
            size = radius("chi_square", self.rho, population)
            wide = spread(largest, below, mask)
            depth = bisect_log(
                lambda d: mean_above(d, 2) / mean_above(d).square() - (1 + 2 * size),
                wide * 1e-6,
                wide * (1 + (8 * size) ** -0.5),
            )
        cut = largest - depth
        return torch.cat([cut, mean_above(largest - cut)], -1)  # the mean weight is one whatever was rounded

    def blend(self, old: Tensor, new: Tensor, rate: float) -> Tensor:
        return torch.lerp(old, new, rate)

    def weights(self, excess: Tensor, level: Tensor) -> Tensor:
        slope = level[:, 1:].to(excess.dtype)
        return minus(excess, level[:, :1]).clamp(min=0) / torch.where(slope > 0, slope, 1)
