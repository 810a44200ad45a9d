"""Ranks references before any training: by how little a stand-in for the best model varies beyond them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from steering.theory_checks.bootstrap import DRAWS, Drawn, Estimate, interval
from steering.theory_checks.variance.measure import FIGURES, geometric
from steering.theory_checks.variance.paired import Paired

Views = Mapping[str, Paired]


@dataclass(frozen=True)
class Ranked:
    """A candidate as it was judged.

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


def stand_in(losses: Mapping[str, float], judged: str, proxy: str | None = None) -> str:
    """The model taken for the best one when judging a candidate: the best of the others, or the proxy."""
    return proxy if proxy is not None else min((name for name in losses if name != judged), key=lambda n: losses[n])


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
        losses: mean held-out loss of every candidate (and of the proxy, if there is one).
        errors: share of its answers that are wrong, likewise; shown, not used.
        compare: the views of a proxy, as target, against a candidate, as reference.
        decide: views whose R, in geometric mean, makes the order.
        proxy: judges all; without one, each is judged by the best of the others.
        draws: of the held-out samples, the same for all candidates, whose order in each draw is counted.
        seed: of the draws.
    """
    proxies = {name: stand_in(losses, name, proxy) for name in losses if name != proxy}
    means, made = [], []
    for name, other in proxies.items():
        pairs = compare(other, name)
        logs = {view: _log_ratio(pair, draws, seed) for view, pair in pairs.items()}
        units = next(iter(pairs.values())).units
        means.append(
            Drawn(float(np.mean([logs[v].value for v in decide])), np.mean([logs[v].draws for v in decide], 0))
        )
        made.append(
            Ranked(
                name=name,
                proxy=other,
                loss=losses[name],
                error=errors[name],
                ratio=_ratio(means[-1], units),
                ratio_at_beta=geometric([float(FIGURES["ratio_at_beta"].of(pairs[v].moments())) for v in decide]),
                views={view: _ratio(log, units) for view, log in logs.items()},
                first=0.0,
            )
        )
    best = np.argmin(np.stack([mean.draws for mean in means]), 0)
    ranked = [replace(one, first=float((best == number).mean())) for number, one in enumerate(made)]
    return sorted(ranked, key=lambda one: one.ratio.value)


def _log_ratio(pair: Paired, draws: int, seed: int) -> Drawn:
    of = FIGURES["ratio"].of
    with np.errstate(divide="ignore"):
        return Drawn(float(np.log(of(pair.moments()))), np.log(of(pair.draws(draws, np.random.default_rng(seed)))))


def _ratio(log: Drawn, units: int) -> Estimate:
    ends = interval(log, units)
    return Estimate(*(float(np.exp(x)) for x in (ends.value, ends.low, ends.high)))
