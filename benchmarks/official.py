"""Baselines: the dense operations of DRRho-CLIP's code, written down anew from its formulas.

Same operations on the same n x n matrices in the same precision, so that time and memory are those of the
original; what does not depend on n x n (logging, talk between ranks) is left out.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from steering import Pairs

Draw = Callable[[Tensor, int], Tensor]


class DenseLoss:
    """The global contrastive loss with a moving average, on whole similarity matrices, by autograd.

    Both directions have matrices of their own, of the target and of the reference. log u is that of mean and
    epsilon over all n entries, where ours is over the n - 1 negatives.

    Args:
        size: number of training samples.
        gamma: gamma of the moving average.
        epsilon: added to the mean.
        rho: of the term that trains the temperature.
    """

    def __init__(self, size: int, *, gamma: float, epsilon: float, rho: float = 8.0):
        self.gamma, self.epsilon, self.rho = gamma, epsilon, rho
        self.log_u = torch.zeros(2, size, 1)  # of images and of texts, kept on the CPU; 0 where nothing is known
        self.mask: tuple[Tensor, Tensor] | None = None  # 1 at strangers and 1 at own pairs, integers, kept

    def __call__(self, target: Pairs, known: Pairs | None, ids: Tensor) -> Tensor:
        """The loss of one batch; ``target.scale`` may want a gradient."""
        n, scale = len(target.left), target.scale
        similarities, differences = _compare(target, scale)
        if known is not None:
            differences = [a - b for a, b in zip(differences, _compare(known, scale)[1], strict=True)]
        strangers, own = self._masks(n, target.left.device)
        with torch.no_grad():
            shift = math.log(self.epsilon * n)
            shifted = [each + own * shift for each in differences]
            fresh = [(each - shift).logsumexp(-1, keepdim=True) + math.log(self.epsilon) for each in shifted]
        old = [self.log_u[side, ids].to(each) for side, each in enumerate(fresh)]
        log_u = [self._blend(*each) for each in zip(old, fresh, strict=True)]
        with torch.no_grad():
            weights = [(each - level).exp() for each, level in zip(differences, log_u, strict=True)]
        losses = [
            (a * b * strangers).sum(-1, keepdim=True) / (n - 1) for a, b in zip(differences, weights, strict=True)
        ]
        for side, level in enumerate(log_u):
            self.log_u[side, ids] = level.to(self.log_u)
        del similarities, shifted  # held until here by the original as well
        fixed = scale.detach() if isinstance(scale, Tensor) else scale
        loss = (losses[0] + losses[1]).mean()
        return loss / fixed + self.rho / scale + (log_u[0] + log_u[1]).mean() / 2 / scale

    def _masks(self, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self.mask is None or len(self.mask[0]) != n:
            own = one_hot(torch.arange(n, device=device), n)
            self.mask = 1 - own, own
        return self.mask

    def _blend(self, old: Tensor, fresh: Tensor) -> Tensor:
        """Moving average of u, in its logarithm, ``[n, 1]``."""
        if self.gamma == 1:
            return fresh
        past, new = old + math.log(1 - self.gamma), fresh + math.log(self.gamma)
        blended = torch.logaddexp(past, new)
        return torch.where((old == 0) | old.isinf() | old.isnan(), fresh, blended)


def _compare(pairs: Pairs, scale: float | Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """s_ij, and scale (s_ij - s_ii), ``[n, n]``, of images with all texts and of texts with all images."""
    similarities = [pairs.left @ pairs.right.T, pairs.right @ pairs.left.T]
    own = (pairs.left * pairs.right).sum(-1, keepdim=True)
    return similarities, [(each - own) * scale for each in similarities]


@torch.no_grad()
def dense_jest(target: Pairs, known: Pairs, *, keep: float, chunks: int, first: Draw, later: Draw) -> Tensor:
    """JEST on whole matrices, all recomputed in every round.

    Args:
        keep: share of the candidates.
        chunks: rounds.
        first: takes the least-shifted learnabilities and how many to draw; linear weights.
        later: takes conditional learnabilities and how many to draw; exponential weights.

    Returns:
        Places of ``chunks * int(n * keep / chunks)`` candidates.
    """
    alone = (_round(known, None)[1] - _round(target, None)[1]).diagonal()
    n = len(alone)
    size = int(n * keep / chunks)
    found = first(alone - alone.min(), size)
    for _ in range(chunks - 1):
        chosen = torch.eye(n, device=alone.device, dtype=alone.dtype)[found].sum(0)
        learnability = alone + _round(target, chosen)[0] - _round(known, chosen)[0] - chosen * 1e8
        found = torch.cat([found, later(learnability, size)])
    return found


def _round(pairs: Pairs, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean of both directions' log-sum-exp over the chosen, ``[n]``, and the logits ``[n, n]``.

    Three products: the logits for their diagonal, and one more for each direction.
    """
    logits = pairs.left @ pairs.right.T * pairs.scale
    sides = [pairs.left @ pairs.right.T * pairs.scale, pairs.right @ pairs.left.T * pairs.scale]
    if chosen is not None:
        sides = [side - (1 - chosen) * 1e8 for side in sides]
    sums = [side.logsumexp(1) for side in sides]
    losses = [-(logits.diagonal() - each) for each in sums]
    ((losses[0] + losses[1]) / 2).mean()  # taken by the original too, and used by nothing
    return (sums[0] + sums[1]) / 2, logits
