"""The certificate that can be observed: how much worse than the reference a target can be, from held-out losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steering.reports.grid import Cell, Column, Grid
from steering.theory_checks.bound.certificate import Certificate, certificate
from steering.theory_checks.variance.bench import STAR, Collected
from steering.theory_checks.variance.measure import Samples
from steering.theory_checks.variance.words import short

DELTA = 0.05


@dataclass(frozen=True)
class Certified:
    """The certificates of one target.

    Attributes:
        seen: of every seed, with the span of its differences for the width B.
        asymptotic: of every seed, without a width.
        widths: those spans.
    """

    seen: list[Certificate]
    asymptotic: list[Certificate]
    widths: list[float]


def certify(collected: Collected) -> dict[str, Certified]:
    """Certificates of all targets with losses of single samples, by name.

    The best model at hand has none: it is two models, each asked about its own half.
    """
    found = {}
    for (target, _), pairs in collected.pairs.items():
        alone = [pair for pair in pairs if isinstance(pair, Samples) and pair.clusters is None]
        if target == STAR or len(alone) < len(pairs) or (target, "") not in collected.pairs:
            continue
        differences = [pair.target - pair.reference for pair in alone]
        widths = [float(np.ptp(one)) for one in differences]
        found[target] = Certified(
            [certificate(one, DELTA, width) for one, width in zip(differences, widths, strict=True)],
            [certificate(one, DELTA) for one in differences],
            widths,
        )
    return found


def grid(found: dict[str, Certified]) -> Grid:
    """A row a target."""
    names = ("target", "mean l - l_ref", "at most", "B", "asymptotic", "no worse")
    rows = []
    for target, one in found.items():
        better, seeds = sum(each.better for each in one.seen), len(one.seen)
        rows.append(
            (
                Cell(target),
                Cell(_mean([each.mean for each in one.seen])),
                Cell(_mean([each.upper for each in one.seen])),
                Cell(_mean(one.widths)),
                Cell(_mean([each.upper for each in one.asymptotic])),
                Cell(f"{better} of {seeds} seeds", "better" if better == seeds else "undecided" if better else "quiet"),
            )
        )
    note = (
        "at most: mean + sqrt(2 Var(l - l_ref) ln(2 / 0.05) / m) + 7 B ln(2 / 0.05) / (3 (m - 1)), which R(target) - "
        "R(reference) does not exceed with probability 95 % where losses are bounded such that l - l_ref spans no more "
        "than B. Here B is the span of the m held-out samples, and cross-entropy has no bound, so this too is "
        "asymptotic; steer bound --run FOLDER --width B takes a B that is known. asymptotic: with Student's quantile "
        "and no B. Means over seeds; no worse: seeds whose own bound is at most 0."
    )
    columns = tuple(Column(name, number=place > 0) for place, name in enumerate(names))
    return Grid("How much worse than the reference the target can be", columns, tuple(rows), note)


def as_numbers(found: dict[str, Certified]) -> dict[str, Any]:
    """All of it as plain numbers, by target and seed."""
    return {
        target: [
            {"mean": a.mean, "samples": a.samples, "upper": a.upper, "width_seen": width, "asymptotic": b.upper}
            for a, b, width in zip(one.seen, one.asymptotic, one.widths, strict=True)
        ]
        for target, one in found.items()
    }


def _mean(values: Sequence[float]) -> str:
    return short(float(np.mean(values)))
