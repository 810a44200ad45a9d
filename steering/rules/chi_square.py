"""Chi-square DRO: weights that grow linearly above a cut-off."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.rules.rule import Population
from steering.rules.solve import below_top, count, descending, minus, one_of, radius, scales

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

    def dual(self, excess: Tensor, mask: Tensor, population: Population = None) -> Tensor:
        """The cut-off and the slope, ``[rows, 2]``."""
        largest, below = below_top(excess, mask)
        below = below.masked_fill(~mask, -torch.inf)
        entries = count(mask, below)
        ordered = descending(below)
        if self.temperature:
            depth = _depth_of_mean(ordered, entries, self.temperature)
        else:
            assert self.rho is not None
            size = radius("chi_square", self.rho, population, largest)
            least = scales(largest, below, mask)[1] / 2  # where the largest entries alone stay within the ball
            depth = torch.maximum(_depth_of_divergence(ordered, entries, size), least)
        cut = largest - depth
        # The mean weight is one whatever was rounded on the way.
        slope = (below + (largest - cut)).clamp(min=0).sum(-1, keepdim=True) / entries
        return torch.cat([cut, slope], -1)

    def blend(self, old: Tensor, new: Tensor, gamma: float) -> Tensor:
        return torch.lerp(old, new, gamma)

    def weights(self, excess: Tensor, dual: Tensor) -> Tensor:
        slope = dual[:, 1:].to(excess.dtype)
        return minus(excess, dual[:, :1]).clamp(min=0) / torch.where(slope > 0, slope, 1)


def _depth_of_mean(ordered: Tensor, entries: Tensor, wanted: float) -> Tensor:
    """Depth of the cut below the top at which ``mean max(x - cut, 0)`` is ``wanted``, ``[rows, 1]``.

    With the k largest above the cut, their sum is a and the cut is (a - n wanted) / k.
    """
    values, size = ordered.masked_fill(ordered.isinf(), 0), _sizes(ordered)
    cuts = (values.cumsum(-1) - entries * wanted) / size
    return -_first(cuts, ordered, size <= entries)


def _depth_of_divergence(ordered: Tensor, entries: Tensor, radius: Tensor) -> Tensor:
    """Depth at which ``mean of squares / mean ** 2`` of what is above the cut is ``1 + 2 radius``, ``[rows, 1]``.

    With the k largest above the cut, v their squared deviations from their mean m, the cut is m - u with
    ``u ** 2 = n v / (k ((1 + 2 radius) k - n))``.
    """
    values, size = ordered.masked_fill(ordered.isinf(), 0), _sizes(ordered)
    total = values.cumsum(-1)
    deviations = (values.square().cumsum(-1) - total.square() / size).clamp(min=0)
    room = (1 + 2 * radius) * size - entries
    under = (entries * deviations / (size * room.clamp(min=1e-12))).sqrt()
    return -_first(total / size - under, ordered, (room > 0) & (size <= entries))


def _sizes(ordered: Tensor) -> Tensor:
    """1 to the number of columns: how many entries lie above the cut."""
    return torch.arange(1, ordered.shape[-1] + 1, dtype=ordered.dtype, device=ordered.device)


def _first(cuts: Tensor, ordered: Tensor, allowed: Tensor) -> Tensor:
    """The first cut that the next entry does not exceed, ``[rows, 1]``."""
    following = torch.nn.functional.pad(ordered[:, 1:], (0, 1), value=-torch.inf)
    place = (allowed & (cuts >= following)).to(torch.int8).argmax(-1, keepdim=True)
    return cuts.gather(-1, place).clamp(max=0)
