"""What two models say of the pairs of a batch: the features that both directions of a contrast are made of."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs
from steering.distributed import all_gather, rank

Sides = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Contrast:
    """Own pairs and everyone's rights, of target and reference; all without gradient.

    Attributes:
        target, reference: own lefts and rights, ``[n, width]``; None without a reference.
        rights: everyone's rights, ``[m, width]``, of the target and of the reference.
        scale: factor of the reference's similarities, a scalar.
        own: excess similarities of own pairs to themselves, ``[n]`` double.
        budget: bytes of similarities that may be kept between two passes.
    """

    target: Sides
    reference: Sides | None
    rights: tuple[Tensor, Tensor | None]
    scale: Tensor
    own: Tensor
    budget: int

    @property
    def own_rights(self) -> slice:
        """Places of own rights among everyone's."""
        n = len(self.own)
        return slice(rank() * n, (rank() + 1) * n)

    @property
    def negatives(self) -> int:
        """Of every anchor."""
        return len(self.rights[0]) - 1

    @property
    def exact(self) -> torch.dtype:
        """Precision of similarities and gradients, at least single."""
        return torch.promote_types(self.target[0].dtype, torch.float32)

    def turned(self) -> tuple[Sides, Sides | None]:
        """Everyone's lefts and own rights, of target and reference."""
        reference = None if self.reference is None else (all_gather(self.reference[0]), self.reference[1])
        return (all_gather(self.target[0]), self.target[1]), reference


def sides(pairs: Pairs, like: Tensor | None = None) -> Sides:
    """Features as they are multiplied: half precision as it is where that is fast, else in single."""
    left, right = pairs.left.detach(), pairs.right.detach()
    dtype = left.dtype if like is None else like.dtype
    if dtype == torch.float16 and left.device.type == "cpu":
        dtype = torch.float32
    return left.to(dtype), right.to(dtype)


def similarity(pair: Sides) -> Tensor:
    """Similarities of pairs to themselves, ``[n]``, in double precision."""
    left, right = (side.to(torch.promote_types(side.dtype, torch.float32)) for side in pair)
    return torch.linalg.vecdot(left, right).double()
