"""Choosing at random: the control of every comparison of selectors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs
from steering.selectors._choose import check_keep

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform:
    """Keeps a random share of the candidates (random-k), at the cost of a selector that scores them.

    Args:
        keep: share of the candidates, above 0 and at most 1.
    """

    keep: float
    uses_reference = False

    def __post_init__(self):
        check_keep("uniform", self.keep)

    def __call__(
        self,
        losses: Tensor | Pairs,
        reference: Tensor | Pairs | None,
        *,
        number: int,
        generator: torch.Generator,
    ) -> Tensor:
        candidates = len(losses.left) if isinstance(losses, Pairs) else len(losses)
        return torch.randperm(candidates, generator=generator)[:number]
