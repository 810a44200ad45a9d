"""RHO-LOSS with chance: choosing in proportion to the exponential of the excess loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs
from steering.errors import UserError
from steering.selectors._choose import check_keep, excess, sample

__all__ = ["Boltzmann"]


@dataclass(frozen=True)
class Boltzmann:
    """Draws candidates with probability proportional to exp(excess / temperature), none of them twice.

    The Boltzmann form of RHO-LOSS (Mindermann et al. 2022). The authors' code draws with replacement, so that
    a candidate far above the others may fill its batch; here it is drawn first and the others follow.

    Args:
        keep: share of the candidates, above 0 and at most 1.
        temperature: in units of the loss, above 0. Towards 0 this is ``top_k``, towards infinity ``uniform``.
    """

    keep: float
    temperature: float = 0.25
    uses_reference = True

    def __post_init__(self):
        check_keep("boltzmann", self.keep)
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"boltzmann needs a temperature above 0, got {self.temperature:g}")

    @torch.no_grad()
    def __call__(
        self,
        losses: Tensor | Pairs,
        reference: Tensor | Pairs | None,
        *,
        number: int,
        generator: torch.Generator,
    ) -> Tensor:
        return sample(excess("boltzmann", losses, reference) / self.temperature, number, generator)
