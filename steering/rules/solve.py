"""What several rules share: masked statistics of rows and a solver for all rows at once."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steering.errors import UserError
from steering.rules.rule import Population

NEVER = -1e30  # an entry that takes no part: finite, so that 0 * NEVER is 0 and not nan


def present(mask: Tensor) -> Tensor:
    """Which entries count at all, bool like the mask, which may hold base weights."""
    return mask if mask.dtype == torch.bool else mask > 0


def count(mask: Tensor, like: Tensor) -> Tensor:
    """Number of entries that count in every row, or sum of base weights, ``[rows, 1]`` in the precision of ``like``.

    At least 1, and of an empty row 1.
    """
    if mask.dtype == torch.bool:
        return true_entries(mask).clamp(min=1).to(like)
    total = mask.sum(-1, keepdim=True)
    return torch.where(total > 0, total, 1).to(like)


def true_entries(mask: Tensor) -> Tensor:
    """How many entries of every row count, ``[rows, 1]`` int32; several times as fast as a sum of the mask itself."""
    return mask.view(torch.uint8).sum(-1, keepdim=True, dtype=torch.int32)


def top(values: Tensor, mask: Tensor) -> Tensor:
    """Largest entry that counts in every row, ``[rows, 1]``; 0 for an empty row."""
    mask = present(mask)
    largest = values.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    return torch.where(mask.any(-1, keepdim=True), largest, 0)


def below_top(excess: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Largest entry of every row, ``[rows, 1]``, and how far the others lie under it, ``[rows, columns]``.

    Both in float64: in float32 the noise of a small divergence would be taken for its sign.
    """
    largest = top(excess, mask)
    return largest.double(), (excess - largest).double()


def minus(excess: Tensor, dual: Tensor) -> Tensor:
    """``excess - dual`` in the excess's precision, ``[rows, columns]``, for float64 duals ``[rows, 1]``.

    A dual is an absolute number, and its rounding error is divided by the temperature: rounded to float32,
    the dual of an excess around 1000 would be useless at a temperature of 1e-3.
    """
    coarse = dual.to(excess.dtype)
    return (excess - coarse) - (dual - coarse).to(excess.dtype)


def scales(largest: Tensor, below: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How far the smallest entry and the nearest other entry lie below the largest, ``[rows, 1]`` each.

    Given ``below_top``. Both are kept so large that they are not lost when added to the largest entry.
    """
    floor = (largest.abs() * 1e-12).clamp(min=1e-30)
    wide = torch.maximum(top(-below, mask), floor)
    near = (-below).masked_fill(~present(mask) | (below == 0), torch.inf).amin(-1, keepdim=True)
    return wide, torch.where(near.isinf(), wide, torch.maximum(near, floor))


def descending(values: Tensor) -> Tensor:
    """The entries of every row, the largest first; on a CPU by NumPy, which sorts several times as fast as torch."""
    if values.device.type != "cpu":
        return values.sort(-1, descending=True).values
    return torch.from_numpy(np.sort(-values.numpy(), -1)).neg_()


def _every(condition: Tensor) -> bool:
    return condition.device.type == "cpu" and bool(condition.all())  # a GPU would have to be waited for


# What a solver calculates with: of one row, whose iterations would be all calls, with plain numbers.
TENSORS = SimpleNamespace(log=torch.log, where=torch.where, at_least=lambda x, y: x.clamp(min=y), every=_every)
FLOATS = SimpleNamespace(log=math.log, where=lambda c, x, y: x if c else y, at_least=max, every=bool)


def solve(of: Any, newton: Callable[[Any], tuple[Any, Any]], start: Any, low: Any, high: Any) -> Any:
    """Finds where an increasing function reaches its goal, in every row at once, by Newton's method in a bracket.

    Args:
        of: TENSORS, or FLOATS for one row.
        newton: maps x ``[rows, 1]`` to whether the function is still below its goal there, and to Newton's next x.
        start: ``[rows, 1]``, in double precision.
        low, high: bracket, ``[rows, 1]`` above 0. Where the goal lies beyond, that end is returned.
    """
    x = of.where(start > high, high, of.at_least(start, low))
    for _ in range(80):
        below, guess = newton(x)
        low, high = of.where(below, x, low), of.where(below, high, x)
        inside = (guess >= low) & (guess <= high)
        guess = of.where(inside, guess, (low * high) ** 0.5)  # halves the bracket's logarithm
        step, x = abs(guess - x), guess
        if of.every(step <= 1e-8 * x):
            break
    return x


def radius(rule: str, rho: float, population: Population, like: Tensor) -> Tensor:
    """The radius rho / n of the divergence ball of every row, ``[rows, 1]`` double, n being what a row stands for.

    That is the size of the training set where a row is the batch (paper, section 3).
    """
    if population is None:
        raise UserError(
            f"{rule}(rho={rho:g}) has a radius of rho / n and needs n, the number of training samples: "
            f"pass Steerer(..., population=n), or give a temperature instead"
        )
    return torch.as_tensor(rho / population, dtype=torch.float64, device=like.device).expand(len(like), 1)


def one_of(rule: str, temperature: float | Tensor | None, rho: float | None) -> None:
    """Checks that exactly one of the two forms of a rule is chosen, with a value above zero."""
    if (temperature is None) == (rho is None):
        got = "neither" if rho is None else "both"
        raise UserError(f"{rule} takes either a temperature (penalised) or rho (radius rho / n), got {got}")
    for name, value in (("temperature", temperature), ("rho", rho)):
        if value is not None and not isinstance(value, Tensor) and not 0 < value < float("inf"):
            raise UserError(f"{rule} needs a {name} above 0, got {value:g}")
