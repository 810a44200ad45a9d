"""Losses of all pairs of a contrastive batch, given by two sets of features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import TypeIs

from steering.distributed import all_gather, rank


class Pairs(NamedTuple):
    """A contrastive batch: ``left[i]`` belongs to ``right[i]`` (an image and its caption, say).

    With s_ij = left_i . right_j, anchor left i has the losses s_ij - s_ii over the rights j != i of all
    ranks, anchor right i the losses s_ji - s_ii over the lefts (Wei et al. 2025, section 5). In units of the
    similarity: a temperature is the rule's.

    Attributes:
        left, right: ``[n, width]``, each row of length one; a rank holds its own n.
        scale: the model's inverse temperature, a scalar. Rules at the model's temperature use it, with its gradient,
            and selectors that compare a whole contrastive loss.
    """

    left: Tensor
    right: Tensor
    scale: float | Tensor = 1.0

    def detach(self) -> "Pairs":
        scale = self.scale.detach() if isinstance(self.scale, Tensor) else self.scale
        return Pairs(self.left.detach(), self.right.detach(), scale)

    def similarities(self) -> Tensor:
        """``[n, n]`` similarities of this rank's own lefts and rights."""
        return _exact(self.left) @ _exact(self.right).T

    def rows(self) -> tuple[Tensor, Tensor]:
        """One row an anchor: losses and mask, both ``[2 n, world * n]``; the n lefts first, then the rights.

        The mask is False at the anchor's own pair.
        """
        left, right = _exact(self.left), _exact(self.right)
        return anchors((left, right), (all_gather(left), all_gather(right)), rank() * len(left))

    def per_sample(self, scale: float | Tensor | None = None) -> Tensor:
        """Contrastive loss of every pair among this rank's, ``[n]``: the mean of both directions, in nats."""
        logits = self.similarities() * (self.scale if scale is None else scale)
        return (logits.logsumexp(0) + logits.logsumexp(1)) / 2 - logits.diagonal()


def anchors(own_pairs: tuple[Tensor, Tensor], everyone: tuple[Tensor, Tensor], first: int) -> tuple[Tensor, Tensor]:
    """Losses and mask of all anchors among n own pairs, ``[2 n, m]``, over m pairs of everyone.

    Args:
        own_pairs, everyone: lefts and rights, ``[n, width]`` and ``[m, width]``.
        first: index of the first own pair among everyone's.
    """
    own = (own_pairs[0] * own_pairs[1]).sum(-1, keepdim=True)
    values = torch.cat([own_pairs[0] @ everyone[1].T - own, own_pairs[1] @ everyone[0].T - own])
    mask = torch.ones_like(values, dtype=torch.bool)
    here = torch.arange(len(own_pairs[0]), device=values.device)
    mask[here, here + first] = False
    mask[here + len(here), here + first] = False
    return values, mask


def _exact(features: Tensor) -> Tensor:
    """Features in at least float32: half precision would cost 0.01 in similarity / temperature."""
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def is_pairs(losses: object) -> TypeIs[Pairs]:
    """Whether losses are those of a contrastive batch: the one question that tells the two kinds of losses apart."""
    return isinstance(losses, Pairs)


def leaves_of(losses: Tensor | Pairs) -> list[Tensor]:
    """The tensors that a gradient flows into: the losses, or left and right features and a scale that is a tensor."""
    if not is_pairs(losses):
        return [losses]
    return [losses.left, losses.right, *([losses.scale] if isinstance(losses.scale, Tensor) else [])]


def with_leaves(losses: Tensor | Pairs, leaves: Sequence[Tensor]) -> Tensor | Pairs:
    """The same losses made of other tensors, in the order of ``leaves_of``."""
    if not is_pairs(losses):
        return leaves[0]
    return Pairs(leaves[0], leaves[1], leaves[2] if len(leaves) > 2 else losses.scale)
