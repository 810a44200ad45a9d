"""The certificate that can be observed: how much worse than the reference a target can be, from held-out losses."""

from typing import Any, NamedTuple

import numpy as np

from steering.reports.grid import Cell, Grid, Tone
from steering.theory_checks.bound.certificate import Certificate, certificate
from steering.theory_checks.variance.bench import STAR, Collected
from steering.theory_checks.variance.paired import Samples
from steering.theory_checks.variance.verdicts import short

DELTA = 0.05


class Certified(NamedTuple):
    """The certificates of one target and seed."""

    bounded: Certificate  # with the width B below
    asymptotic: Certificate  # without a width
    width: float  # B, the span of the differences


def certify(collected: Collected) -> dict[str, list[Certified]]:
    """Certificates of all targets with losses of single samples, by name and seed.

    The best model at hand has none: it is two models, each scored on the other's half.
    """
    certificates = {}
    for (target, view), pairs in collected.pairs.items():
        differences = [p.target - p.reference for p in pairs if isinstance(p, Samples) and p.clusters is None]
        if target != STAR and not view and len(differences) == len(pairs):
            widths = [(d, float(np.ptp(d))) for d in differences]
            certificates[target] = [Certified(certificate(d, DELTA, b), certificate(d, DELTA), b) for d, b in widths]
    return certificates


def grid(certificates: dict[str, list[Certified]]) -> Grid:
    """A row a target."""
    rows = []
    for target, seeds in certificates.items():
        means = np.mean([(b.mean, b.upper, width, a.upper) for b, a, width in seeds], 0)
        better = sum(one.bounded.better for one in seeds)
        tone: Tone = "better" if better == len(seeds) else "undecided" if better else "quiet"
        rows.append([target, *map(short, means.tolist()), Cell(f"{better} of {len(seeds)} seeds", tone)])
    note = (
        "at most: mean + sqrt(2 Var(l - l_ref) ln(2 / 0.05) / m) + 7 B ln(2 / 0.05) / (3 (m - 1)), which R(target) - "
        "R(reference) does not exceed with probability 95 % where losses are bounded such that l - l_ref spans no more "
        "than B. Here B is the span of the m held-out samples, and cross-entropy has no bound, so this too is "
        "asymptotic; steer bound --run FOLDER --width B takes a B that is known. asymptotic: with Student's quantile "
        "and no B. Means over seeds; no worse: seeds whose own bound is at most 0."
    )
    heads = ["mean l - l_ref", "at most", "B", "asymptotic", "no worse"]
    return Grid.of("How much worse than the reference the target can be", ["target"], heads, rows, note)


def as_numbers(certificates: dict[str, list[Certified]]) -> dict[str, Any]:
    """All of it as plain numbers, by target and seed."""
    return {
        target: [
            {"mean": b.mean, "samples": b.samples, "upper": b.upper, "width_seen": width, "asymptotic": a.upper}
            for b, a, width in seeds
        ]
        for target, seeds in certificates.items()
    }
