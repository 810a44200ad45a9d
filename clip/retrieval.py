"""Evaluation of image-text models: retrieval and zero-shot classification, in blocks."""

import torch
from torch import Tensor

BLOCK = 1024  # queries compared at a time, so that memory grows with the gallery alone


def ranks(queries: Tensor, gallery: Tensor, own: Tensor | None = None) -> Tensor:
    """How many gallery entries beat each query's own, ``[n, d] x [m, d] -> [n]``.

    Entries that tie count one half, so a model that gives everything the same score does as well as chance.

    Args:
        queries, gallery: features.
        own: ``[n]`` place of every query's match in the gallery; its own place if not given.
    """
    own = torch.arange(len(queries), device=queries.device) if own is None else own
    found = []
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ gallery.T
        match = scores.gather(1, own[start : start + BLOCK, None])
        found.append((scores > match).sum(1) + ((scores == match).sum(1) - 1) / 2)
    return torch.cat(found)


def recall(queries: Tensor, gallery: Tensor, k: int) -> float:
    """Recall at k: share of queries whose own match is among the k best, 0 to 1."""
    return float((ranks(queries, gallery) < k).double().mean())


def zero_shot(images: Tensor, classes: Tensor, labels: Tensor, groups: Tensor | None = None) -> float:
    """Share of images whose best class is right, 0 to 1.

    Args:
        images: ``[n, d]`` features.
        classes: ``[c, d]`` features of the class prompts (averaged over templates by the caller).
        labels: ``[n]`` right class, or right group if ``groups`` is given.
        groups: ``[c]`` group of every class; the best class then stands for its group.
    """
    best = torch.cat([(block @ classes.T).argmax(1) for block in images.split(BLOCK)])
    return float(((best if groups is None else groups[best]) == labels).double().mean())
