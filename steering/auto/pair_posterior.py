"""How likely a pair belongs together, by the features of a reference that was not trained on it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.auto.posterior import Posterior, maximise
from steering.contrastive.pairs import Pairs
from steering.errors import UserError

BLOCK = 64  # pairs among which the partner is to be recognised
PASSES = 8  # random divisions into blocks that the posterior is averaged over
MOST_FITTED = 1 << 14  # pairs that the two numbers are fitted to


@dataclass(frozen=True)
class PairPosterior:
    """A fitted mixture over random blocks, and the probability that each pair belongs together, ``[n]`` float64."""

    mixture: Posterior
    right: Tensor


@torch.no_grad()
def fit_pair_posterior(pairs: Pairs, *, block: int = BLOCK, passes: int = PASSES, seed: int = 0) -> PairPosterior:
    """Fits the share of wrong pairs and the temperature of the similarities, then averages over random blocks.

    In a block of k pairs, a pair's probability is the geometric mean of those with which a softmax over the block
    recognises either side by the other. A wrong pair is recognised by chance, with probability 1 / k.

    Args:
        pairs: the reference's features of all pairs, ``[n, width]`` a side; their scale is not used.
        block: number of pairs in a block.
        passes: number of random divisions into blocks.
        seed: of the divisions.

    Raises:
        UserError: fewer than two pairs, or features that are not finite.
    """
    left, right = pairs.left.detach(), pairs.right.detach()
    n, size = len(left), min(block, len(left))
    if n < 2:
        raise UserError(f"a posterior of pairs needs at least 2 of them, got {n}")
    if not (left.isfinite().all() and right.isfinite().all()):
        raise UserError("the reference's features must be finite numbers, got NaN or infinity")
    generator = torch.Generator().manual_seed(seed)
    divisions = [_division(n, size, generator) for _ in range(passes)]
    fitted = [index[: max(1, MOST_FITTED // (size * passes))] for index in divisions]
    similarities = torch.cat([_similarities(left, right, index) for index in fitted])
    with torch.enable_grad():
        values, likelihood = maximise(lambda scales: _log_probability(similarities, scales[0]), 1, size)
    mixture = Posterior((float(values[0]),), float(values[1]), size, likelihood)
    total, visits = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for index in divisions:
        for part in index.split(MOST_FITTED // size):
            likely = (1 - mixture.noise) * _log_probability(_similarities(left, right, part), values[0]).exp()
            posterior = (likely / (likely + mixture.noise / size)).cpu()
            total.index_add_(0, part.reshape(-1), posterior)
            visits.index_add_(0, part.reshape(-1), torch.ones_like(posterior))
    return PairPosterior(mixture, total / visits)


def _division(n: int, size: int, generator: torch.Generator) -> Tensor:
    """All of n pairs in random blocks ``[blocks, size]``; the last one is filled up from the first."""
    order = torch.randperm(n, generator=generator)
    missing = -n % size
    return torch.cat([order, order[:missing]]).view(-1, size)


def _similarities(left: Tensor, right: Tensor, index: Tensor) -> Tensor:
    """Within blocks of pairs ``[blocks, size]``: ``[blocks, size, size]`` float64."""
    index = index.to(left.device)
    return left[index].double() @ right[index].double().mT


def _log_probability(similarities: Tensor, scale: Tensor | float) -> Tensor:
    """Of every pair of ``[blocks, size, size]``, the mean of both directions, ``[blocks * size]``."""
    scaled = SCALE * scale * similarities
    both = scaled.log_softmax(-1).diagonal(dim1=-2, dim2=-1) + scaled.log_softmax(-2).diagonal(dim1=-2, dim2=-1)
    return (both / 2).reshape(-1)


SCALE = 50.0  # similarities are cosines: a fitted scale of 1 is a temperature of 0.02
