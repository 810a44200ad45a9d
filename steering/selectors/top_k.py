"""RHO-LOSS: choosing by the largest excess loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs
from steering.selectors._choose import check_keep, excess, largest

__all__ = ["TopK"]


@dataclass(frozen=True)
class TopK:
    """Keeps the candidates of largest loss minus reference loss (RHO-LOSS, Mindermann et al. 2022, section 3).

    Learnable, worth learning, not yet learnt: without the reference the wrong labels would come first. Nothing
    is left to chance, and there is no threshold: the largest are kept even where all are below zero. On Pairs
    every pair is scored by its contrastive loss among the candidates, and alone; ``jest`` scores them jointly.

    Args:
        keep: share of the candidates, above 0 and at most 1; the paper keeps 32 of 320.
    """

    keep: float = 0.1
    uses_reference = True

    def __post_init__(self):
        check_keep("top_k", self.keep)

    @torch.no_grad()
    def __call__(
        self,
        losses: Tensor | Pairs,
        reference: Tensor | Pairs | None,
        *,
        number: int,
        generator: torch.Generator,
    ) -> Tensor:
        return largest(excess("top_k", losses, reference), number)
