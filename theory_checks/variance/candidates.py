"""Ranks references before any training: by how little a stand-in for the best model varies beyond them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steering.theory_checks.bootstrap import DRAWS, Drawn, Estimate, interval
from steering.theory_checks.variance.measure import FIGURES, Paired, geometric

Views = Mapping[str, Paired]


@dataclass(frozen=True)
class Ranked:
    """A candidate and its place.

    Attributes:
        name: of the candidate.
        proxy: what stood in for the best model.
        loss: the candidate's own mean loss on the held-out samples.
        error: its own share of wrong answers there.
        ratio: R, the geometric mean over the views that decide.
        ratio_at_beta: the same with the candidate's losses scaled as is best, 1 - corr^2.
        views: R of every view.
        first: share of the draws in which no candidate has a smaller R.
    """

    name: str
    proxy: str
    loss: float
    error: float
    ratio: Estimate
    ratio_at_beta: float
    views: dict[str, Estimate]
    first: float


def stand_in(losses: Mapping[str, float], judged: str, given: str | None = None) -> str:
    """Whom to take for the best model when judging a candidate: the best of the others, or the given one."""
    if given is not None:
        return given
    return min((name for name in losses if name != judged), key=lambda name: losses[name])


def rank(
    losses: Mapping[str, float],
    compare: Callable[[str, str], Views],
    *,
    errors: Mapping[str, float],
    decide: Sequence[str],
    proxy: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Ranked]:
    """Candidates, the one of smallest R first.

    Args:
        losses: mean held-out loss of every candidate (and of the proxy, if one is given).
        errors: share of its answers that are wrong, likewise; shown, not used.
        compare: the views of a proxy, as target, against a candidate, as reference.
        decide: views whose R, in geometric mean, makes the order.
        proxy: judges all; if not given, each is judged by the best of the others.
        draws: of the held-out samples, the same for all candidates, whose order in each draw is counted.
        seed: of the draws.
    """
    judged = [name for name in losses if name != proxy]
    proxies = {name: stand_in(losses, name, proxy) for name in judged}
    drawn: dict[str, dict[str, Drawn]] = {}
    scaled: dict[str, float] = {}
    units = 0
    for name in judged:
        views = compare(proxies[name], name)
        units = next(iter(views.values())).units
        scaled[name] = geometric([float(FIGURES["ratio_at_beta"].of(views[view].moments())) for view in decide])
        drawn[name] = {view: _log_ratio(pair, draws, seed) for view, pair in views.items()}
    whole = {name: _mean([views[view] for view in decide]) for name, views in drawn.items()}
    best = np.argmin(np.stack([part.draws for part in whole.values()]), 0)
    found = [
        Ranked(
            name=name,
            proxy=proxies[name],
            loss=losses[name],
            error=errors[name],
            ratio=_ratio(whole[name], units),
            ratio_at_beta=scaled[name],
            views={view: _ratio(part, units) for view, part in drawn[name].items()},
            first=float((best == place).mean()),
        )
        for place, name in enumerate(judged)
    ]
    return sorted(found, key=lambda ranked: ranked.ratio.value)


def _log_ratio(pair: Paired, draws: int, seed: int) -> Drawn:
    of = FIGURES["ratio"].of
    with np.errstate(divide="ignore"):
        return Drawn(float(np.log(of(pair.moments()))), np.log(of(pair.draws(draws, np.random.default_rng(seed)))))


def _mean(parts: Sequence[Drawn]) -> Drawn:
    return Drawn(float(np.mean([part.value for part in parts])), np.mean([part.draws for part in parts], 0))


def _ratio(part: Drawn, units: int) -> Estimate:
    found = interval(part, units)
    return Estimate(*(float(np.exp(x)) for x in (found.value, found.low, found.high)))
