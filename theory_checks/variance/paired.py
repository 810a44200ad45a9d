"""Losses of a target and a reference on the same held-out samples or image-text pairs, and draws of them.

DRRho-CLIP has one robust problem an anchor, over its negatives, with the losses l_ij = s_ij - s_ii (Wei et al. 2025,
section 5). So three variances can be measured: of l_ij over all anchors and negatives, of l_ij within an anchor
(which is what an anchor's problem sees), and of the anchor's whole loss tau log mean_j exp(l_ij / tau).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from scipy.special import logsumexp

from steering.theory_checks.bootstrap import means, multiplicities

SIDES = ("image", "text")
PER_PAIR, WITHIN, PER_ANCHOR = "per pair", "within an anchor", "per anchor"
TAIL = 0.01  # of each side that is drawn in for the winsorised ratio


class Moments(NamedTuple):
    """Means, variances and covariance of l and l_ref, each ``[...]``: of the samples or of draws of them."""

    mean: ndarray
    reference_mean: ndarray
    variance: ndarray
    reference_variance: ndarray
    covariance: ndarray

    @classmethod
    def of_means(cls, means: Iterable[ndarray], centres: Sequence[float] = (0, 0)) -> "Moments":
        """From the means of what ``powers`` gives of losses that are less by their centres."""
        a, b, squares, reference_squares, products = means
        variances = (squares - a * a, reference_squares - b * b, products - a * b)
        return cls(a + centres[0], b + centres[1], *variances)

    @property
    def difference_variance(self) -> ndarray:
        return np.maximum(self.scaled_variance(1), 0)

    def scaled_variance(self, scale: float) -> ndarray:
        """Of l - scale l_ref."""
        return self.variance + scale**2 * self.reference_variance - 2 * scale * self.covariance


def powers(loss: ndarray, reference: ndarray) -> list[ndarray]:
    """What moments are made of; centred losses keep the digits."""
    return [loss, reference, loss * loss, reference * reference, loss * reference]


@dataclass(frozen=True)
class Samples:
    """Losses a sample."""

    target: ndarray  # [n]
    reference: ndarray  # [n]
    clusters: ndarray | None = None  # [n] labels of samples that belong together; each is its own if not given
    # The reference's losses with its scores divided by a temperature.
    tempered: Callable[[float], ndarray] | None = field(default=None, repr=False)

    @property
    def units(self) -> int:
        """What can be drawn independently: samples or clusters."""
        return len(self.target if self.clusters is None else np.unique(self.clusters))

    def moments(self) -> Moments:
        """Of the samples as they are."""
        return self._moments(lambda columns: columns.mean(0))

    def draws(self, number: int, chance: np.random.Generator) -> Moments:
        """Of draws of the units, each ``[number]``."""
        return self._moments(lambda columns: means(columns, rng=chance, clusters=self.clusters, draws=number))

    def _moments(self, average: Callable[[ndarray], ndarray]) -> Moments:
        centres = (self.target.mean(), self.reference.mean())
        columns = np.stack(powers(self.target - centres[0], self.reference - centres[1]), 1)
        return Moments.of_means(np.moveaxis(average(columns), -1, 0), centres)

    def flat(self) -> tuple[ndarray, ndarray, ndarray]:
        """l and l_ref, and the unit of each, ``[n]``."""
        units = np.arange(len(self.target)) if self.clusters is None else self.clusters
        return self.target, self.reference, units

    def shuffled(self, chance: np.random.Generator) -> "Samples":
        """The same with the reference's losses of other samples."""
        return Samples(self.target, chance.permutation(self.reference), self.clusters)

    def winsorised(self) -> "Samples":
        """The same with the tails of l and of d drawn in."""
        return Samples(*drawn_in(self.target, self.reference), self.clusters)

    def at_temperature(self, temperature: float) -> "Samples | None":
        """The same with the reference's scores divided by it, where its losses have scores."""
        return self.tempered and Samples(self.target, self.tempered(temperature), self.clusters)


@dataclass(frozen=True)
class PairLosses:
    """Losses l_ij of anchors and negatives, j other than i; a draw takes whole pairs, as both."""

    target: ndarray  # [n, n]; the diagonal does not count
    reference: ndarray
    within: bool = False  # variances within an anchor, averaged over anchors, instead of over all

    @property
    def units(self) -> int:
        return len(self.target)

    @property
    def off(self) -> ndarray:
        """What counts, ``[n, n]`` bool."""
        return ~np.eye(self.units, dtype=bool)

    def moments(self) -> Moments:
        return Moments(*(part[0] for part in self._moments(np.ones((1, self.units)))))

    def draws(self, number: int, chance: np.random.Generator) -> Moments:
        blocks = [self._moments(weights) for weights in multiplicities(self.units, number, chance)]
        return Moments(*np.concatenate(blocks, 1))

    def _moments(self, weights: ndarray) -> Moments:
        """Of draws ``[draws, n]``: copies of a pair that was taken twice are no negatives of each other."""
        number = self.units * (self.units - 1)
        centres = [float((x.sum() - np.trace(x)) / number) for x in (self.target, self.reference)]
        centred = [(x - centre) * self.off for x, centre in zip((self.target, self.reference), centres, strict=True)]
        sums = [weights @ power.T for power in powers(*centred)]  # over the negatives of each anchor, [draws, n]
        others = weights.sum(1, keepdims=True) - weights  # how many these are
        if not self.within:
            return Moments.of_means(((weights * x).sum(1) / (weights * others).sum(1) for x in sums), centres)
        share = weights / weights.sum(1, keepdims=True)
        mean, reference_mean, *variances = ((share * x).sum(1) for x in Moments.of_means(x / others for x in sums))
        return Moments(mean + centres[0], reference_mean + centres[1], *variances)

    def flat(self) -> tuple[ndarray, ndarray, ndarray]:
        anchors = np.nonzero(self.off)[0]

        def part(losses: ndarray) -> ndarray:
            means = np.bincount(anchors, losses[self.off])[anchors] / (self.units - 1)
            return losses[self.off] - means * self.within

        return part(self.target), part(self.reference), anchors

    def shuffled(self, chance: np.random.Generator) -> "PairLosses":
        order = chance.permutation(self.units)
        return PairLosses(self.target, self.reference[np.ix_(order, order)], self.within)

    def winsorised(self) -> "PairLosses":
        target, reference = np.zeros_like(self.target), np.zeros_like(self.target)
        target[self.off], reference[self.off] = drawn_in(self.target[self.off], self.reference[self.off])
        return PairLosses(target, reference, self.within)

    def at_temperature(self, temperature: float) -> None:
        """The losses of pairs are linear in the similarity: a temperature is a scale, and ``beta`` the best of it."""


Paired = Samples | PairLosses


def drawn_in(target: ndarray, reference: ndarray) -> tuple[ndarray, ndarray]:
    """l, and the l_ref that leaves d, with the outermost hundredth of either side of l and of d drawn in."""
    loss = np.clip(target, *np.quantile(target, [TAIL, 1 - TAIL]))
    difference = target - reference
    return loss, loss - np.clip(difference, *np.quantile(difference, [TAIL, 1 - TAIL]))


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
    """Everything that is measured on pairs, by name, ``image side, per pair`` first; ``temperature`` is an anchor's."""
    losses = {side: (target.losses(side), reference.losses(side)) for side in SIDES}
    made: dict[str, Paired] = {
        f"{side} side, {kind}": PairLosses(*both, kind == WITHIN)
        for kind in (PER_PAIR, WITHIN)
        for side, both in losses.items()
    }
    for side, (loss, other) in losses.items():
        tempered = partial(anchor_losses, other, temperature)
        made[f"{side} side, {PER_ANCHOR}"] = Samples(anchor_losses(loss, temperature), tempered(1.0), None, tempered)
    return made


def anchor_losses(losses: ndarray, temperature: float, reference_temperature: float = 1.0) -> ndarray:
    """tau log mean_j exp(l_ij / tau) of every anchor, ``[n]``, with similarities divided by a temperature before."""
    logits = np.where(np.eye(len(losses), dtype=bool), -np.inf, losses / (reference_temperature * temperature))
    return temperature * (logsumexp(logits, axis=1) - np.log(len(losses) - 1))
