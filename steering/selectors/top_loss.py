"""Choosing the hardest candidates, without a reference."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs
from steering.selectors._choose import check_keep, largest, one_each

__all__ = ["TopLoss"]


@dataclass(frozen=True)
class TopLoss:
    """Keeps the candidates of largest loss: online hard example mining, selective backprop without chance.

    What cannot be learned (a wrong label) has a large loss too and is kept for good, which is what a reference
    is there to prevent (Shrivastava et al. 2016; Jiang et al. 2019; JEST's "hard learner").

    Args:
        keep: share of the candidates, above 0 and at most 1.
    """

    keep: float
    uses_reference = False

    def __post_init__(self):
        check_keep("top_loss", self.keep)

    @torch.no_grad()
    def __call__(
        self,
        losses: Tensor | Pairs,
        reference: Tensor | Pairs | None,
        *,
        number: int,
        generator: torch.Generator,
    ) -> Tensor:
        return largest(one_each("top_loss", losses), number)
