"""Chi-square DRO: weights that grow linearly above a cut-off."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steering.rules.rule import Population
from steering.rules.solve import below_top, count, descending, minus, one_of, present, radius, scales

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
    takes_base = True

    def __post_init__(self):
        one_of("chi_square", self.temperature, self.rho)

    def dual(self, excess: Tensor, mask: Tensor, population: Population = None) -> Tensor:
        """The cut-off and the slope, ``[rows, 2]``."""
        largest, below = below_top(excess, mask)
        below = below.masked_fill(~present(mask), -torch.inf)
        entries = count(mask, below)
        ordered = _ordered(below, mask)
        if self.temperature:
            depth = _depth_of_mean(ordered, entries, self.temperature)
        else:
            assert self.rho is not None
            size = radius("chi_square", self.rho, population, largest)
            least = scales(largest, below, mask)[1] / 2  # where the largest entries alone stay within the ball
            depth = torch.maximum(_depth_of_divergence(ordered, entries, size), least)
        cut = largest - depth
        # The mean weight is one whatever was rounded on the way.
        above = (below + (largest - cut)).clamp(min=0)
        slope = (above if mask.dtype == torch.bool else above * mask).sum(-1, keepdim=True) / entries
        return torch.cat([cut, slope], -1)

    def blend(self, old: Tensor, new: Tensor, gamma: float) -> Tensor:
        return torch.lerp(old, new, gamma)

    def weights(self, excess: Tensor, dual: Tensor) -> Tensor:
        slope = dual[:, 1:].to(excess.dtype)
        return minus(excess, dual[:, :1]).clamp(min=0) / torch.where(slope > 0, slope, 1)


class _Ordered(NamedTuple):
    """The entries of every row, the largest first, ``[rows, columns]`` each; the last ones do not count.

    Attributes:
        values: the entries, -inf where one does not count.
        size: how many entries there are up to here, or their base weights.
        sums, squares: of the entries up to here.
        counted: whether an entry counts.
    """

    values: Tensor
    size: Tensor
    sums: Tensor
    squares: Tensor
    counted: Tensor


def _ordered(below: Tensor, mask: Tensor) -> _Ordered:
    if mask.dtype == torch.bool:
        values, base = descending(below), None
    else:
        values, order = below.sort(-1, descending=True)
        base = mask.to(below).gather(-1, order)
    counted = ~values.isinf()
    finite = values.masked_fill(~counted, 0)
    weighted = finite if base is None else base * finite
    size = torch.ones_like(finite[:1]).cumsum(-1) if base is None else base.cumsum(-1).clamp(min=1e-300)
    return _Ordered(values, size, weighted.cumsum(-1), (weighted * finite).cumsum(-1), counted)


def _depth_of_mean(ordered: _Ordered, entries: Tensor, wanted: float) -> Tensor:
    """Depth of the cut below the top at which ``mean max(x - cut, 0)`` is ``wanted``, ``[rows, 1]``.

    With the k largest above the cut, their sum is a and the cut is (a - n wanted) / k.
    """
    return -_first((ordered.sums - entries * wanted) / ordered.size, ordered, ordered.counted)


def _depth_of_divergence(ordered: _Ordered, entries: Tensor, radius: Tensor) -> Tensor:
    """Depth at which ``mean of squares / mean ** 2`` of what is above the cut is ``1 + 2 radius``, ``[rows, 1]``.

    With the k largest above the cut, v their squared deviations from their mean m, the cut is m - u with
    ``u ** 2 = n v / (k ((1 + 2 radius) k - n))``.
    """
    size = ordered.size
    deviations = (ordered.squares - ordered.sums.square() / size).clamp(min=0)
    room = (1 + 2 * radius) * size - entries
    under = (entries * deviations / (size * room.clamp(min=1e-12))).sqrt()
    return -_first(ordered.sums / size - under, ordered, (room > 0) & ordered.counted)


def _first(cuts: Tensor, ordered: _Ordered, allowed: Tensor) -> Tensor:
    """The first cut that the next entry does not exceed, ``[rows, 1]``."""
    following = torch.nn.functional.pad(ordered.values[:, 1:], (0, 1), value=-torch.inf)
    place = (allowed & (cuts >= following)).to(torch.int8).argmax(-1, keepdim=True)
    return cuts.gather(-1, place).clamp(max=0)
