"""Losses of image-text pairs: per pair and per anchor, from either side, with draws of whole pairs.

DRRho-CLIP has one robust problem an anchor, over its negatives, with the losses l_ij = s_ij - s_ii (Wei et al. 2025,
section 5). So three variances can be asked for: of l_ij over all anchors and negatives, of l_ij within an anchor
(which is what an anchor's problem sees), and of the anchor's whole loss tau log mean_j exp(l_ij / tau).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from scipy.special import logsumexp

from steering.theory_checks.bootstrap import counts
from steering.theory_checks.variance.measure import Moments, Paired, Samples, drawn_in, powers

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


@dataclass(frozen=True)
class PairLosses:
    """Losses l_ij of anchors and negatives, j other than i; a draw takes whole pairs, as anchors and negatives alike.

    Attributes:
        target, reference: ``[n, n]``; the diagonal does not count.
        within: variances within an anchor, averaged over anchors, instead of over all.
    """

    target: ndarray
    reference: ndarray
    within: bool = False

    @property
    def units(self) -> int:
        return len(self.target)

    def moments(self) -> Moments:
        return Moments(*(part[0] for part in self._moments(np.ones((1, self.units)))))

    def draws(self, number: int, chance: np.random.Generator) -> Moments:
        blocks = [self._moments(weights) for weights in counts(self.units, number, chance)]
        return Moments(*np.concatenate(blocks, 1))

    def _moments(self, weights: ndarray) -> Moments:
        """Of draws ``[draws, n]``: copies of a pair that was taken twice are no negatives of each other."""
        off, number = ~np.eye(self.units, dtype=bool), self.units * (self.units - 1)
        centres = [float((x.sum() - np.trace(x)) / number) for x in (self.target, self.reference)]
        centred = [(x - centre) * off for x, centre in zip((self.target, self.reference), centres, strict=True)]
        sums = [weights @ power.T for power in powers(*centred)]  # over the negatives of each anchor, [draws, n]
        others = weights.sum(1, keepdims=True) - weights  # how many these are
        if self.within:
            share = weights / weights.sum(1, keepdims=True)
            moments = Moments(*((share * x).sum(1) for x in Moments.of_means(x / others for x in sums)))
        else:
            moments = Moments.of_means((weights * x).sum(1) / (weights * others).sum(1) for x in sums)
        return moments.shifted(*centres)

    def flat(self) -> tuple[ndarray, ndarray, ndarray]:
        off = ~np.eye(self.units, dtype=bool)
        anchors = np.nonzero(off)[0]
        loss, reference = self.target[off], self.reference[off]
        if not self.within:
            return loss, reference, anchors
        own = [np.bincount(anchors, x)[anchors] / (self.units - 1) for x in (loss, reference)]
        return loss - own[0], reference - own[1], anchors

    def shuffled(self, chance: np.random.Generator) -> "PairLosses":
        order = chance.permutation(self.units)
        return PairLosses(self.target, self.reference[np.ix_(order, order)], self.within)

    def winsorised(self) -> "PairLosses":
        off = ~np.eye(self.units, dtype=bool)
        target, reference = np.zeros_like(self.target), np.zeros_like(self.target)
        target[off], reference[off] = drawn_in(self.target[off], self.reference[off])
        return PairLosses(target, reference, self.within)

    def at_temperature(self, temperature: float) -> None:
        """The losses of pairs are linear in the similarity: a temperature is a scale, and ``beta`` the best of it."""
        return None


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
