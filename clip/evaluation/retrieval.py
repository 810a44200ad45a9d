"""What features say: retrieval and zero-shot classification, in tiles, with exact ties and intervals."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.clip.evaluation.embedding import ALONE, Work
from steering.errors import RunError

BLOCK = 256  # queries compared at a time,
TILE = 1 << 14  # with so many of the gallery;
KEPT = 1 << 16  # of a gallery up to this size, the scores of a block are kept and not taken twice
Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class Share:
    """A share of hits, 0 to 1, with Wilson's 95 % interval (of the draw of the samples alone) and the independent
    trials that it is worth.
    """

    value: float
    low: float
    high: float
    trials: float


@dataclass(frozen=True)
class Ranks:
    """How many wrong answers score more than each query's best right one; how many wrong and right ones the same."""

    ahead: Tensor
    tied: Tensor
    right: Tensor

    def hits(self, k: int) -> Tensor:
        """Whether a right answer is among the k best, ``[n]`` 0 to 1.

        Answers that tie are as if put in a random order: a model that scores all the same hits by chance.
        """
        drawn, total = (k - self.ahead).clamp(min=0), self.tied + self.right
        one = (drawn / total.clamp(min=1)).clamp(max=1)
        missed = log_choose(self.tied, drawn) - log_choose(total, drawn)  # all that are drawn are wrong
        return torch.where(self.right == 1, one, torch.where(drawn > self.tied, 1.0, -missed.expm1()))


def log_choose(n: Tensor, k: Tensor) -> Tensor:
    """Logarithm of the number of ways to draw k of n; where k is more than n, of one."""
    return (n + 1).lgamma() - (k + 1).lgamma() - (n - k).clamp(min=0).add(1).lgamma()


@torch.no_grad()
def rank_own(queries: Tensor, gallery: Tensor, owner: Tensor, label: Tensor, work: Work = ALONE) -> Ranks:
    """Compares queries with a gallery, ``[n, d] x [m, d]``; right answers are the entries whose owner is the label.

    Scores are taken in double precision and rounded to single: no block, device or number of ranks decides a tie, and
    equal features tie.

    Args:
        queries, gallery: features.
        owner: ``[m]`` to which label an entry of the gallery belongs.
        label: ``[n]`` of the queries.
        work: how it is shared.

    Raises:
        RunError: features are infinite or no numbers, of which any share of hits would be a lie.
    """
    if not (queries.isfinite().all() and gallery.isfinite().all()):
        raise RunError("the model answers with what is infinite or no number: its weights are damaged, or it diverged")
    ahead, tied, right = (torch.zeros(len(queries), dtype=torch.float64, device=queries.device) for _ in range(3))
    for block in work.blocks(len(queries), BLOCK):
        part = slice(block.start, block.stop)
        left, labels = queries[part].double(), label[part, None]
        best = torch.full((len(left), 1), -torch.inf, device=queries.device)
        kept = list(_tiles(left, gallery, owner)) if len(gallery) <= KEPT else None
        for scores, owners in kept or _tiles(left, gallery, owner):
            best = torch.maximum(best, scores.masked_fill(owners != labels, -torch.inf).amax(1, keepdim=True))
        for scores, owners in kept or _tiles(left, gallery, owner):
            wrong = owners != labels
            ahead[part] += ((scores > best) & wrong).sum(1)
            tied[part] += ((scores == best) & wrong).sum(1)
            right[part] += ((scores == best) & ~wrong).sum(1)
    return Ranks(*map(work.sum_over_ranks, (ahead, tied, right)))


def _tiles(left: Tensor, gallery: Tensor, owner: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores of a block of queries with one part of the gallery after the other, and the owners of the parts."""
    for start in range(0, len(gallery), TILE):
        yield (left @ gallery[start : start + TILE].double().T).float(), owner[None, start : start + TILE]


def recall(queries: Tensor, gallery: Tensor, k: int, work: Work = ALONE) -> Share:
    """Recall at k of queries, of which the i-th belongs to the i-th entry of the gallery, 0 to 1."""
    index = torch.arange(len(gallery), device=gallery.device)
    return share(rank_own(queries, gallery, index, index[: len(queries)], work).hits(k))


def both_ways(images: Tensor, texts: Tensor, owner: Tensor, ks: Sequence[int], work: Work = ALONE) -> dict[str, Share]:
    """Recall of image to text (``i2t_r10``) and of text to image (``t2i_r10``) for every k.

    A picture is a hit where any of its captions is among the k best; every caption is a query for its own picture.

    Args:
        images, texts: ``[n, d]`` and ``[m, d]`` features.
        owner: ``[m]`` index of every text's image.
        ks: numbers of answers looked at.
        work: how it is shared.
    """
    index = torch.arange(len(images), device=images.device)
    to_text, to_image = rank_own(images, texts, owner, index, work), rank_own(texts, images, index, owner, work)
    shares = {}
    for k in ks:
        shares[f"i2t_r{k}"] = share(to_text.hits(k))
        shares[f"t2i_r{k}"] = share(to_image.hits(k), owner)
    return shares


def share(hits: Tensor, group: Tensor | None = None) -> Share:
    """The mean of hits ``[n]``, 0 to 1, with its interval.

    Hits of one ``group`` ``[n]``, as of the captions of one picture, are not independent: they are worth as many trials
    as would have the variance that the groups' sums show.
    """
    value = float(hits.double().mean())
    if group is None:
        return wilson(value, len(hits))
    sums = group.new_zeros(int(group.max()) + 1, dtype=torch.float64).index_add(0, group, hits.double() - value)
    variance = float(sums.square().sum()) / len(hits) ** 2
    return wilson(value, _worth(value, variance, len(hits)) if variance > 0 else len(group.unique()))


def mean_of_classes(hits: Tensor, labels: Tensor) -> Share:
    """The mean over classes, ``labels`` ``[n]``, of each one's share of hits ``[n]``; empty ones do not count."""
    count = labels.bincount()
    sums = torch.zeros_like(count, dtype=torch.float64).index_add(0, labels, hits.double())
    recalls, count = sums[count > 0] / count[count > 0], count[count > 0]
    value = float(recalls.mean())
    spread = recalls * (1 - recalls) / (count - 1).clamp(min=1)
    spread[count == 1] = value * (1 - value)  # one image does not show its class's own
    variance = float(spread.sum()) / len(count) ** 2
    return wilson(value, _worth(value, variance, len(hits)))


def wilson(value: float, trials: float) -> Share:
    """A share with Wilson's interval, which stays within 0 and 1 and has a width even where all or none hit."""
    centre = (value + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * math.sqrt(max(0.0, value * (1 - value) / trials) + (Z / (2 * trials)) ** 2)
    return Share(value, min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half)), trials)


def _worth(value: float, variance: float, most: int) -> float:
    """Independent trials whose share has that variance."""
    return min(most, value * (1 - value) / variance) if variance > 0 else most
