"""What several rules share: masked statistics of rows and a bisection for all rows at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from steering.errors import UserError


def count(mask: Tensor, like: Tensor) -> Tensor:
    """Number of entries that count in every row, at least 1, ``[rows, 1]`` in the precision of ``like``."""
    return mask.sum(-1, keepdim=True).clamp(min=1).to(like)


def top(values: Tensor, mask: Tensor) -> Tensor:
    """Largest entry that counts in every row, ``[rows, 1]``; 0 for an empty row."""
    largest = values.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    return torch.where(mask.any(-1, keepdim=True), largest, 0)


def below_top(excess: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Largest entry of every row, ``[rows, 1]``, and how far the others lie under it, ``[rows, columns]``.

    Both in float64, for ``bisect_log``.
    """
    largest = top(excess, mask)
    return largest.double(), (excess - largest).double()


def minus(excess: Tensor, level: Tensor) -> Tensor:
    """``excess - level`` in the excess's precision, ``[rows, columns]``, for float64 levels ``[rows, 1]``.

    A level is an absolute number, and its rounding error is divided by the temperature: rounded to float32,
    the level of an excess around 1000 would be useless at a temperature of 1e-3.
    """
    coarse = level.to(excess.dtype)
    return (excess - coarse) - (level - coarse).to(excess.dtype)


def spread(largest: Tensor, below: Tensor, mask: Tensor) -> Tensor:
    """Largest minus smallest entry, given ``below_top``, ``[rows, 1]``.

    Kept above zero, and so large that a millionth of it is not lost when added to the largest entry.
    """
    return torch.maximum(top(-below, mask), largest.abs() * 1e-3).clamp(min=1e-30)


def bisect_log(decreasing: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Solves ``decreasing(x) = 0`` for positive x in every row at once, by bisection on log x.

    Args:
        decreasing: maps ``[rows, 1]`` to ``[rows, 1]``, falling in x.
        low, high: brackets, ``[rows, 1]``, positive, in float64: in float32 the noise of a small divergence
            would be taken for its sign. Where ``decreasing(low)`` is below zero already, ``low`` is returned.
    """
    low, high = low.log(), high.log()
    for _ in range(48):
        middle = (low + high) / 2
        above = decreasing(middle.exp()) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return low.exp()


def radius(rule: str, rho: float, population: int | None) -> float:
    """The radius rho / n of the divergence ball, n being the size of the training set (paper, section 3)."""
    if population is None:
        raise UserError(
            f"{rule}(rho={rho:g}) has a radius of rho / n and needs n, the number of training samples: "
            f"pass Steerer(..., population=n), or give a temperature instead"
        )
    return rho / population


def one_of(rule: str, temperature: float | None, rho: float | None) -> None:
    """Checks that exactly one of the two forms of a rule is chosen, with a value above zero."""
    if (temperature is None) == (rho is None):
        got = "neither" if rho is None else "both"
        raise UserError(f"{rule} takes either a temperature (penalised) or rho (radius rho / n), got {got}")
    for name, value in (("temperature", temperature), ("rho", rho)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{rule} needs a {name} above 0, got {value:g}")
