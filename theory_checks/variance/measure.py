"""Figures of two paired losses: how much a reference's loss takes away of a target's variance.

With l the loss of the target and l_ref that of the reference on the same samples, d = l - l_ref. The bound of model
steering (Wei et al. 2025, Theorem 1 and Corollary 1) has sqrt(2 rho Var(d) / n) where that of DRO without a
reference has sqrt(2 rho Var(l) / n): their ratio is sqrt(R), R = Var(d) / Var(l).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray
from scipy.optimize import minimize_scalar

from steering.theory_checks.bootstrap import DRAWS, Drawn, Estimate, interval, two_level
from steering.theory_checks.variance.paired import Moments, Paired
from steering.training.seeds import derive

SHARE, KURTOSIS = 0.1, 50.0  # above either no interval of a variance is to be relied on
SHUFFLES = 20
TEMPERATURES = (0.05, 50.0)


class Figure(NamedTuple):
    """A figure of the moments; ``log`` says that it is a ratio, which is averaged as logarithm."""

    of: Callable[[Moments], ndarray]
    log: bool

    def drawn(self, points: Moments, draws: Moments) -> Drawn:
        """Of the samples as they are and of draws, as it is averaged."""
        change = np.log if self.log else np.asarray
        with np.errstate(divide="ignore", invalid="ignore"):
            return Drawn(float(change(self.of(points))), change(self.of(draws)))


def _correlation(m: Moments) -> ndarray:
    return m.covariance / np.sqrt(m.variance * m.reference_variance)


def _deviations(m: Moments) -> ndarray:
    return np.sqrt(m.reference_variance / m.variance)


FIGURES = {
    "ratio": Figure(lambda m: m.difference_variance / m.variance, True),
    "variance": Figure(lambda m: m.variance, True),
    "difference_variance": Figure(lambda m: m.difference_variance, True),
    "correlation": Figure(_correlation, False),
    "deviations": Figure(_deviations, True),
    "margin": Figure(lambda m: _correlation(m) - _deviations(m) / 2, False),  # above 0 exactly where R < 1
    "beta": Figure(lambda m: m.covariance / m.reference_variance, False),
    "ratio_at_beta": Figure(lambda m: np.maximum(1 - _correlation(m) ** 2, 0), True),
    "loss": Figure(lambda m: m.mean, False),
    "difference": Figure(lambda m: m.mean - m.reference_mean, False),
}


@dataclass(frozen=True)
class Tails:
    """How much of the variances single units carry, and how heavy the tails are (a normal has kurtosis 3)."""

    loss_share: float
    difference_share: float
    loss_kurtosis: float
    difference_kurtosis: float

    @property
    def share(self) -> float:
        return max(self.loss_share, self.difference_share)

    @property
    def kurtosis(self) -> float:
        return max(self.loss_kurtosis, self.difference_kurtosis)


@dataclass(frozen=True)
class Measured:
    """All figures of one target against one reference, over repetitions if there are several."""

    units: int  # independent units of the held-out samples, of the first repetition
    repetitions: int
    figures: dict[str, Estimate]  # by the names of FIGURES, with intervals
    winsorised: Estimate  # the ratio with both tails drawn in
    temperature: float | None  # of the reference's scores at which the ratio is least; None where it has no scores
    tempered: float | None  # the ratio there
    shuffled: float  # the ratio with the reference's losses of other samples
    uncorrelated: float  # what that should be, 1 + Var(l_ref) / Var(l)
    tails: Tails  # the median over repetitions of each figure
    ratios: list[float]  # of every repetition

    @property
    def ratio(self) -> Estimate:
        return self.figures["ratio"]

    @property
    def reliable(self) -> bool:
        return self.tails.share <= SHARE and self.tails.kurtosis <= KURTOSIS


def measure(
    pairs: Sequence[Paired], *, scale: float | None = None, draws: int = DRAWS, crossed: bool = False, seed: int = 0
) -> Measured:
    """All figures of one target against one reference.

    Args:
        pairs: one a repetition.
        scale: of the reference's loss, for one more figure, ``ratio_at_scale``.
        crossed: the repetitions share their held-out samples.
    """
    seeds = [derive(seed, "draws", 0 if crossed else number) for number in range(len(pairs))]

    def estimates(pairs: Sequence[Paired], figures: Mapping[str, Figure]) -> dict[str, Estimate]:
        drawn = [(p.moments(), p.draws(draws, np.random.default_rng(c))) for p, c in zip(pairs, seeds, strict=True)]
        made = {}
        for name, figure in figures.items():
            over, units = [figure.drawn(*one) for one in drawn], pairs[0].units
            if len(over) > 1:
                chance, units = np.random.default_rng(derive(seed, "repetitions")), len(over)
                over = [two_level(over, rng=chance, crossed=crossed)]
            made[name] = interval(over[0], units).map(np.exp if figure.log else float)
        return made

    at_scale = Figure(lambda m: m.scaled_variance(scale or 1) / m.variance, True)
    figures = FIGURES | ({} if scale is None else {"ratio_at_scale": at_scale})
    points = [pair.moments() for pair in pairs]
    temperature, tempered = _temperature(pairs)
    chance = np.random.default_rng(derive(seed, "shuffles"))
    return Measured(
        units=pairs[0].units,
        repetitions=len(pairs),
        figures=estimates(pairs, figures),
        winsorised=estimates([pair.winsorised() for pair in pairs], {"ratio": FIGURES["ratio"]})["ratio"],
        temperature=temperature,
        tempered=tempered,
        shuffled=_mean_ratio([pair.shuffled(chance) for pair in pairs for _ in range(SHUFFLES)]),
        uncorrelated=geometric([1 + float(p.reference_variance / p.variance) for p in points]),
        tails=Tails(*np.median([_tails(pair) for pair in pairs], axis=0).tolist()),
        ratios=[float(FIGURES["ratio"].of(point)) for point in points],
    )


def _temperature(pairs: Sequence[Paired]) -> tuple[float | None, float | None]:
    """The temperature of least ratio, one for all repetitions, and the ratio there."""
    if any(pair.at_temperature(1.0) is None for pair in pairs):
        return None, None

    def ratio(log: float) -> float:
        return _mean_ratio([p for pair in pairs if (p := pair.at_temperature(float(np.exp(log)))) is not None])

    best: Any = minimize_scalar(ratio, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(best.x)), float(best.fun)


def _mean_ratio(pairs: Sequence[Paired]) -> float:
    return geometric([float(FIGURES["ratio"].of(pair.moments())) for pair in pairs])


def geometric(values: Sequence[float]) -> float:
    """Geometric mean."""
    with np.errstate(divide="ignore"):
        return float(np.exp(np.mean(np.log(values))))


def _tails(pair: Paired) -> list[float]:
    """Largest share of a unit in Var(l) and in Var(d), and their kurtosis."""
    loss, reference, units = pair.flat()
    unit = np.unique(units, return_inverse=True)[1]
    squares = [(values - values.mean()) ** 2 for values in (loss, loss - reference)]
    shares = [float(np.bincount(unit, x).max() / x.sum()) if x.any() else 0.0 for x in squares]
    return shares + [float((x**2).mean() / x.mean() ** 2) if x.any() else 0.0 for x in squares]


@dataclass(frozen=True)
class Ranked:
    """A candidate as it was judged."""

    name: str
    proxy: str  # what stood in for the best model
    loss: float  # the candidate's own mean loss on the held-out samples
    error: float  # its own share of wrong answers there
    ratio: Estimate  # R, the geometric mean over the views that decide
    ratio_at_beta: float  # the same with the candidate's losses scaled as is best, 1 - corr^2
    views: dict[str, Estimate]  # R of every view
    first: float  # share of the draws in which no candidate has a smaller R


def stand_in(losses: Mapping[str, float], judged: str, proxy: str | None = None) -> str:
    """The model taken for the best one when judging a candidate: the best of the others, or the proxy."""
    return proxy if proxy is not None else min((name for name in losses if name != judged), key=lambda n: losses[n])


def rank(
    losses: Mapping[str, float],
    compare: Callable[[str, str], Mapping[str, Paired]],
    *,
    errors: Mapping[str, float],
    decide: Sequence[str],
    proxy: str | None = None,
    draws: int = DRAWS,
) -> list[Ranked]:
    """Candidates, the one of smallest R first.

    Args:
        losses: mean held-out loss of every candidate (and of the proxy, if there is one).
        compare: the views of a proxy, as target, against a candidate, as reference.
        errors: share of its answers that are wrong, likewise; shown, not used.
        decide: views whose R, in geometric mean, makes the order.
        proxy: judges all; without one, each is judged by the best of the others.
    """
    drawn, ranked = [], []
    for name in (name for name in losses if name != proxy):
        other = stand_in(losses, name, proxy)
        pairs = compare(other, name)
        units = next(iter(pairs.values())).units
        logs = {
            view: FIGURES["ratio"].drawn(pair.moments(), pair.draws(draws, np.random.default_rng(0)))
            for view, pair in pairs.items()
        }
        values, draws_of = zip(*(logs[view] for view in decide), strict=True)
        mean = Drawn(float(np.mean(values)), np.mean(draws_of, 0))
        at_beta = geometric([float(FIGURES["ratio_at_beta"].of(pairs[view].moments())) for view in decide])
        views = {view: interval(log, units).map(np.exp) for view, log in logs.items()}
        ratio = interval(mean, units).map(np.exp)
        drawn.append(mean.draws)
        ranked.append(Ranked(name, other, losses[name], errors[name], ratio, at_beta, views, first=0.0))
    best = np.argmin(np.stack(drawn), 0)
    ranked = [replace(one, first=float((best == index).mean())) for index, one in enumerate(ranked)]
    return sorted(ranked, key=lambda one: one.ratio.value)
