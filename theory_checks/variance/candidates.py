"""Ranks references before any training: by how little a stand-in for the best model varies beyond them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from steering.theory_checks.bootstrap import DRAWS, Drawn, Estimate, interval
from steering.theory_checks.variance.measure import FIGURES, geometric
from steering.theory_checks.variance.paired import Paired


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
        draws: of the held-out samples, the same for all candidates, whose order in each draw is counted.
    """
    of, drawn, ranked = FIGURES["ratio"].of, [], []
    for name in (name for name in losses if name != proxy):
        other = stand_in(losses, name, proxy)
        pairs = compare(other, name)
        units = next(iter(pairs.values())).units
        with np.errstate(divide="ignore"):
            logs = {
                view: Drawn(float(np.log(of(pair.moments()))), np.log(of(pair.draws(draws, np.random.default_rng(0)))))
                for view, pair in pairs.items()
            }
        mean = Drawn(
            float(np.mean([logs[view].value for view in decide])), np.mean([logs[view].draws for view in decide], 0)
        )
        at_beta = geometric([float(FIGURES["ratio_at_beta"].of(pairs[view].moments())) for view in decide])
        views = {view: interval(log, units).map(np.exp) for view, log in logs.items()}
        ratio = interval(mean, units).map(np.exp)
        drawn.append(mean.draws)
        ranked.append(Ranked(name, other, losses[name], errors[name], ratio, at_beta, views, first=0.0))
    best = np.argmin(np.stack(drawn), 0)
    ranked = [replace(one, first=float((best == index).mean())) for index, one in enumerate(ranked)]
    return sorted(ranked, key=lambda one: one.ratio.value)
