"""KL-divergence DRO: softmax weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steering.errors import UserError
from steering.rules.rule import Population
from steering.rules.solve import (
    FLOATS,
    TENSORS,
    below_top,
    count,
    minus,
    one_of,
    present,
    radius,
    scales,
    solve,
    top,
    true_entries,
)

__all__ = ["KL"]


TIED = 1e9  # temperature of rows of equal entries, as a multiple of their rounding errors


@dataclass(frozen=True)
class KL:
    """Softmax weights of the excess loss: the worst case within, or penalised by, a KL divergence.

    Penalised, ``temperature`` t: the risk is ``t log mean exp(excess / t)``, the weights are
    ``exp((excess - dual) / t)`` with ``dual = t log mean exp(excess / t)``, which is t times the log of the
    paper's moving average u (Wei et al. 2025, section 4; DRRho-CLIP takes one row per anchor).

    Constrained, ``rho``: the worst case over all p with KL(p || uniform) <= rho / n. The temperature of every
    row is solved for; n is the size of the training set, not of the batch. With a
    constant rho the ball shrinks as n grows, as the theory asks; with a fixed temperature it does not.

    Args:
        temperature: in units of the loss, above 0. Small means few samples carry all the weight.
        rho: radius times n, dimensionless, above 0.
        epsilon: added to the mean of ``exp(excess / t)``; rows far below the reference then weigh less than
            one on average (epsilon of FastCLIP and DRRho-CLIP). Penalised form only.
    """

    temperature: float | None = None
    rho: float | None = None
    epsilon: float = 0.0
    takes_base = True

    def __post_init__(self):
        one_of("kl", self.temperature, self.rho)
        if not self.epsilon >= 0:
            raise UserError(f"kl needs an epsilon of at least 0, got {self.epsilon:g}")
        if self.epsilon and self.temperature is None:
            raise UserError("kl takes epsilon only with a fixed temperature, got rho and epsilon")

    @property
    def width(self) -> int:
        return 2 if self.temperature is None else 1

    @property
    def normalised(self) -> bool:
        return self.epsilon == 0

    @property
    def exponent(self) -> float | None:
        return self.temperature

    def settle(self, dual: Tensor) -> Tensor:
        if not self.epsilon:
            return dual
        assert self.temperature is not None
        return self._add(dual, torch.full_like(dual, math.log(self.epsilon)) * self.temperature)

    def dual(self, excess: Tensor, mask: Tensor, population: Population = None) -> Tensor:
        if self.temperature is not None:
            largest = top(excess, mask)  # taken off first: what is left is as precise as it is small
            inner = log_mean_exp((excess - largest) / self.temperature, mask)
            return self.settle(largest + self.temperature * inner.double())
        assert self.rho is not None
        size = radius("kl", self.rho, population, excess)
        if len(excess) == 1 and mask.dtype == torch.bool and excess.device.type == "cpu":
            return _constrained_row(excess if mask.all() else excess[mask], float(size))
        return _constrained(excess, mask, size)

    def blend(self, old: Tensor, new: Tensor, gamma: float) -> Tensor:
        if self.temperature is None:
            return torch.lerp(old, new, gamma)
        keep = math.log1p(-gamma) if gamma < 1 else -math.inf
        return self._add(old + self.temperature * keep, new + self.temperature * math.log(gamma))

    def weights(self, excess: Tensor, dual: Tensor) -> Tensor:
        temperature = dual[:, 1:].to(excess.dtype) if self.temperature is None else self.temperature
        return (minus(excess, dual[:, :1]) / temperature).exp()

    def weights_and_dual(self, excess: Tensor, mask: Tensor | None) -> tuple[Tensor, Callable[[], Tensor]] | None:
        """The exponentials are taken once; the largest weight tells their mean."""
        temperature = self.temperature
        if temperature is None or self.epsilon:
            return None
        largest = excess.amax(-1, keepdim=True)
        shares = (excess - largest).div_(temperature).softmax(-1)  # its exponential is a vectorised one
        weights = shares.mul_(excess.shape[1] if mask is None else true_entries(mask))

        def dual() -> Tensor:
            top_weight = weights.amax(-1, keepdim=True).double()
            return torch.where(top_weight > 0, largest - temperature * top_weight.log(), 0)

        return weights, dual

    def figures(self, dual: Tensor) -> dict[str, Tensor | float]:
        if self.temperature is None:
            return {"temperature": dual[:, 1]}
        return {"objective": dual[:, 0], "temperature": self.temperature}

    def _add(self, a: Tensor, b: Tensor) -> Tensor:
        """Adds two duals in the unit of exp(dual / temperature)."""
        assert self.temperature is not None
        return self.temperature * torch.logaddexp(a / self.temperature, b / self.temperature)


def log_mean_exp(values: Tensor, mask: Tensor) -> Tensor:
    """``log mean exp`` over the entries of every row that count, ``[rows, 1]``; 0 for an empty row."""
    if mask.dtype != torch.bool:
        values = values + mask.to(values).log()
    total = values.masked_fill(~present(mask), -torch.inf).logsumexp(-1, keepdim=True)
    return torch.where(present(mask).any(-1, keepdim=True), total - count(mask, values).log(), 0)


def _constrained(excess: Tensor, mask: Tensor, size: Tensor) -> Tensor:
    """Dual of every row within a ball of ``size``, ``[rows, 2]``."""
    largest, below = below_top(excess, mask)
    wide, near = scales(largest, below, mask)
    empty = ~present(mask).any(-1, keepdim=True)
    counted = torch.where(empty, 1, mask).double()  # of an empty row anything: nothing is divided by zero
    values, n = (below / wide).masked_fill(~present(mask), 0), count(mask, below)
    powers = values, values.square()

    def moments(inverse: Any) -> tuple[Tensor, ...]:
        tilted = (inverse * values).exp_().mul_(counted)
        return tilted.sum(-1, True), *(torch.linalg.vecdot(tilted, power)[:, None] for power in powers)

    inverse = _inverse_temperature(TENSORS, moments, n, wide / near, (2 * size).sqrt())
    inverse = torch.where(top(-below, mask) < wide, 1 / TIED, inverse)
    return torch.cat([largest + wide / inverse * (moments(inverse)[0] / n).log(), wide / inverse], -1)


def _constrained_row(excess: Tensor, size: float) -> Tensor:
    """The same of one row whose entries all count, ``[1, 2]``, by NumPy and plain numbers: torch would be all calls."""
    entries = excess.numpy().reshape(-1) if excess.numel() else np.zeros(1)
    largest = entries.max()
    below = (entries - largest).astype(np.float64)
    floor = max(1e-12 * abs(float(largest)), 1e-30)
    wide = max(-float(below.min()), floor)
    near = -float(below.max(initial=-wide, where=below < 0))
    values = below / wide
    squares, n = values * values, len(values)

    def moments(inverse: float) -> tuple[float, ...]:
        tilted = np.exp(inverse * values)
        return float(tilted.sum()), float(tilted @ values), float(tilted @ squares)

    inverse = 1 / TIED
    if not -below.min() < wide:
        inverse = _inverse_temperature(FLOATS, moments, n, wide / max(near, floor), (2 * size) ** 0.5)
    temperature = wide / inverse
    dual = float(largest) + temperature * math.log(moments(inverse)[0] / n)
    return torch.tensor([[dual, temperature]], dtype=torch.float64)


def _inverse_temperature(of: Any, moments: Callable[[Any], tuple[Any, ...]], n: Any, high: Any, goal: Any) -> Any:
    """Inverse temperature at which KL(softmax(b values) || uniform) is ``goal ** 2 / 2``, for values from -1 to 0.

    Entries that differ by no more than rounding are tied: their weights are equal, whatever the ball would allow.

    The square root of the divergence is nearly linear in the inverse temperature b, and exactly so for normally
    distributed entries: Newton's method on it needs a few steps. Hoeffding's lemma, divergence <= b^2 / 8, gives a
    bracket from below. Where even the smallest temperature stays inside the ball, the worst case sits on the largest
    entries alone. One entry far below the others makes a plateau on the way, which the bracket crosses.

    Args:
        of: as of ``solve``.
        moments: sums of ``exp(b values)``, and of that times values and their squares.
        n: number of values.
        high: one over the value nearest to 0.
        goal: square root of twice the size of the ball.
    """

    def newton(inverse: Any) -> tuple[Any, Any]:
        total, first, second = moments(inverse)
        first = first / total
        root = of.at_least(2 * (inverse * first - of.log(total / n)), 1e-300) ** 0.5
        slope = of.at_least(inverse * (second / total - first**2) / root, 1e-300)
        return root < goal, inverse + (goal - root) / slope

    _, first, second = (moment / n for moment in moments(0 * goal))
    deviation = of.at_least(second - first**2, 1e-12) ** 0.5
    high = 60 * high  # there the nearest other entry weighs exp(-60) of the largest
    low = of.at_least(2 * goal, 1e-12)
    return solve(of, newton, goal / deviation, of.where(low > high, high, low), high)
