"""Choosing what the reference finds easy, whatever the target knows already."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs
from steering.selectors._choose import check_keep, largest, one_each

__all__ = ["ReferenceOnly"]


@dataclass(frozen=True)
class ReferenceOnly:
    """Keeps the candidates of lowest reference loss: a filter by the reference, batch by batch.

    JEST calls it "easy reference" (Evans et al. 2024, section 2); data filtering networks do the same once for
    the whole data set (Fang et al. 2024), there by the similarity of a pair, here for Pairs by its contrastive
    loss among the candidates.

    Args:
        keep: share of the candidates, above 0 and at most 1.
    """

    keep: float
    uses_reference = True

    def __post_init__(self):
        check_keep("reference_only", self.keep)

    @torch.no_grad()
    def __call__(
        self,
        losses: Tensor | Pairs,
        reference: Tensor | Pairs | None,
        *,
        number: int,
        generator: torch.Generator,
    ) -> Tensor:
        return largest(-one_each("reference_only", reference), number)
