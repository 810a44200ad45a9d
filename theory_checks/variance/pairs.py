"""Losses of image-text pairs: per pair and per anchor, from either side, with draws of whole pairs.

DRRho-CLIP has one robust problem an anchor, over its negatives, with the losses l_ij = s_ij - s_ii (Wei et al. 2025,
section 5). So three variances can be asked for: of l_ij over all anchors and negatives, of l_ij within an anchor
(which is what an anchor's problem sees), and of the anchor's whole loss tau log mean_j exp(l_ij / tau).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from scipy.special import logsumexp

from steering.theory_checks.variance.paired import Paired, PairLosses, Samples

SIDES = ("image", "text")
PER_PAIR, WITHIN, PER_ANCHOR = "per pair", "within an anchor", "per anchor"


class Features(NamedTuple):
    """A model's features of n pairs, ``[n, width]`` each, rows of length one."""

    left: ndarray
    right: ndarray

    def losses(self, side: str) -> ndarray:
        """l_ij = s_ij - s_ii, ``[n, n]``: anchors are images or texts, each against all of the other kind."""
        similarities = self.left @ self.right.T
        similarities = similarities if side == SIDES[0] else similarities.T
        return similarities - np.diagonal(similarities)[:, None]


def views(target: Features, reference: Features, temperature: float) -> dict[str, Paired]:
    """Everything that is measured on pairs, by name, ``image side, per pair`` first.

    Args:
        target, reference: of the same pairs.
        temperature: tau of an anchor's whole loss.
    """
    losses = {side: (target.losses(side), reference.losses(side)) for side in SIDES}
    made: dict[str, Paired] = {
        f"{side} side, {kind}": PairLosses(*both, kind == WITHIN)
        for kind in (PER_PAIR, WITHIN)
        for side, both in losses.items()
    }
    for side, (loss, other) in losses.items():
        tempered = _tempered(other, temperature)
        made[f"{side} side, {PER_ANCHOR}"] = Samples(anchor_losses(loss, temperature), tempered(1.0), None, tempered)
    return made


def anchor_losses(losses: ndarray, temperature: float, *, reference_temperature: float = 1.0) -> ndarray:
    """tau log mean_j exp(l_ij / tau) of every anchor, ``[n]``, with similarities divided by a temperature before."""
    logits = losses / (reference_temperature * temperature)
    logits = np.where(np.eye(len(losses), dtype=bool), -np.inf, logits)
    return temperature * (logsumexp(logits, axis=1) - np.log(len(losses) - 1))


def _tempered(losses: ndarray, temperature: float) -> Callable[[float], ndarray]:
    return lambda scale: anchor_losses(losses, temperature, reference_temperature=scale)
