"""The contrastive loss of CLIP: the baseline that every open_clip training minimises."""

import math
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from steering.rules.global_contrastive import GlobalContrastive
from steering.rules.kl import KL

__all__ = ["InfoNCE"]


@dataclass(frozen=True)
class InfoNCE:
    """Softmax cross entropy in both directions at the model's own, learned temperature (Radford et al. 2021).

    An anchor's loss is ``log(1 + sum exp((s_ij - s_ii) / t))`` over its negatives j: the global contrastive loss in
    nats whose epsilon is the own pair's share, one over the number of negatives, and which remembers nothing. Its
    gradients are those of open_clip's ``ClipLoss``. For Pairs only, whose scale is 1 / t. With a reference's losses
    subtracted it is no longer CLIP's loss.
    """

    width = 1
    nats = True
    normalised = False

    def at(self, temperature: Tensor, negatives: int) -> KL:
        return KL(temperature=cast(float, temperature), epsilon=1 / negatives)

    def objective(self, linear: Tensor, dual: Tensor, temperature: Tensor, negatives: int) -> Tensor:
        loss = GlobalContrastive(scaled=False).objective(linear, dual, temperature, negatives)
        return loss + math.log(negatives)
