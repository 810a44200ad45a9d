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

from steering.theory_checks.bootstrap import multiplicities
from steering.theory_checks.variance.measure import Moments, Paired, Samples, drawn_in

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
        return Moments(*(part[0] for part in self._moments([np.ones((1, self.units))])))

    def draws(self, number: int, chance: np.random.Generator) -> Moments:
        return self._moments(list(multiplicities(self.units, number, chance)))

    def _moments(self, taken: list[ndarray]) -> Moments:
        """Of draws, each ``[draws]``: copies of a pair that was taken twice are no negatives of each other."""
        powers = self._powers()
        parts = []
        for weights in taken:
            others = weights.sum(1, keepdims=True) - weights  # [draws, n] negatives of each anchor
            sums = [weights @ power.T for power in powers]
            parts.append(self._of_anchors(sums, weights, others))
        return Moments(*np.concatenate(parts, 1))

    def _of_anchors(self, sums: list[ndarray], weights: ndarray, others: ndarray) -> ndarray:
        """``[5, draws]`` from the ``[draws, n]`` sums over negatives of every power."""
        if self.within:
            share = weights / weights.sum(1, keepdims=True)
            found = [(share * x).sum(1) for x in _central([total / others for total in sums])]
        else:
            number = (weights * others).sum(1)
            found = _central([(weights * total).sum(1) / number for total in sums])
        at, beside = self._centres()
        return np.stack([found[0] + at, found[1] + beside, *found[2:]])

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

    def _centres(self) -> tuple[float, float]:
        number = self.units * (self.units - 1)
        return tuple((x.sum() - np.trace(x)) / number for x in (self.target, self.reference))

    def _powers(self) -> list[ndarray]:
        """l, l_ref, their squares and product, centred, with nothing on the diagonal."""
        off = ~np.eye(self.units, dtype=bool)
        at, beside = self._centres()
        loss, other = (self.target - at) * off, (self.reference - beside) * off
        return [loss, other, loss * loss, other * other, loss * other]


def _central(means: list[ndarray]) -> list[ndarray]:
    """Means, variances and covariance from the means of l, l_ref, their squares and product."""
    loss, other, squares, other_squares, products = means
    return [loss, other, squares - loss * loss, other_squares - other * other, products - loss * other]


def views(target: Features, reference: Features, temperature: float) -> dict[str, Paired]:
    """Everything that is measured on pairs, by name, ``image side, per pair`` first.

    Args:
        target, reference: of the same pairs.
        temperature: tau of an anchor's whole loss.
    """
    found: dict[str, Paired] = {}
    losses = {side: (target.losses(side), reference.losses(side)) for side in SIDES}
    for kind in (PER_PAIR, WITHIN):
        for side, (mine, theirs) in losses.items():
            found[f"{side} side, {kind}"] = PairLosses(mine, theirs, kind == WITHIN)
    for side, (mine, theirs) in losses.items():
        tempered = _tempered(theirs, temperature)
        found[f"{side} side, {PER_ANCHOR}"] = Samples(anchor_losses(mine, temperature), tempered(1.0), None, tempered)
    return found


def anchor_losses(losses: ndarray, temperature: float, *, reference_temperature: float = 1.0) -> ndarray:
    """tau log mean_j exp(l_ij / tau) of every anchor, ``[n]``, with similarities divided by a temperature before."""
    logits = losses / (reference_temperature * temperature)
    logits = np.where(np.eye(len(losses), dtype=bool), -np.inf, logits)
    return temperature * (logsumexp(logits, axis=1) - np.log(len(losses) - 1))


def _tempered(losses: ndarray, temperature: float) -> Callable[[float], ndarray]:
    return lambda scale: anchor_losses(losses, temperature, reference_temperature=scale)
