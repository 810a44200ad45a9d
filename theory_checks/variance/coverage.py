"""How often the intervals of the variance ratio hold the truth, where the truth is known.

Command: ``python -m steering.theory_checks.variance.coverage --repetitions 2000``
Result: in docs/variance.md, section "What the intervals are worth".
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy import ndarray
from rich.console import Console

from steering.reports.grid import Grid, to_rich
from steering.theory_checks.variance.measure import measure
from steering.theory_checks.variance.paired import Samples
from steering.training.seeds import derive

Draw = Callable[[np.random.Generator, int], tuple[ndarray, ndarray]]  # l and l_ref of so many samples


class Case(NamedTuple):
    """A law of l and l_ref whose ratio of variances is known."""

    name: str
    draw: Draw  # of one seed; may scatter from seed to seed
    ratio: float  # the true R; of seeds that scatter, the geometric mean
    size: int  # samples of a seed
    seeds: int = 1  # repetitions that one interval is made of
    cluster: int = 1  # samples that share their values with each other


def light(chance: np.random.Generator, size: int) -> tuple[ndarray, ndarray]:
    """Normal losses with l = c + e and l_ref = c + f: Var(d) = Var(e - f), R = 0.5 / 1.25."""
    common, first, second = chance.normal(size=(3, size))
    return common + first / 2, common + second / 2


def skewed(chance: np.random.Generator, size: int) -> tuple[ndarray, ndarray]:
    """Gamma losses, kurtosis 6, as cross-entropies have it: R = (0.04 + 1 + 0.64) / 2."""
    common, first, second = chance.exponential(size=(3, size))
    return common + first, 0.8 * (common + second)


def heavy(chance: np.random.Generator, size: int) -> tuple[ndarray, ndarray]:
    """Lognormal d with sigma 2 beside normal l: the variance lives in samples that are hardly ever seen."""
    loss = chance.normal(size=size)
    return loss, loss - np.exp(2 * chance.normal(size=size))


def scattered(chance: np.random.Generator, size: int) -> tuple[ndarray, ndarray]:
    """Unrelated normal d and l; log R scatters by 0.2 from seed to seed."""
    loss, difference = chance.normal(size=(2, size))
    return loss, loss - difference * math.exp(chance.normal(0, 0.1))


HEAVY = (math.exp(4) - 1) * math.exp(4)
CASES = [
    Case("normal, n = 50", light, 0.4, 50),
    Case("normal, n = 500", light, 0.4, 500),
    Case("exponential, n = 50", skewed, 0.84, 50),
    Case("exponential, n = 200", skewed, 0.84, 200),
    Case("exponential, n = 1000", skewed, 0.84, 1000),
    Case("40 clusters of 5", skewed, 0.84, 200, cluster=5),
    Case("5 seeds of 200", scattered, 1.0, 200, seeds=5),
    Case("12 seeds of 200", scattered, 1.0, 200, seeds=12),
    Case("lognormal, n = 100", heavy, HEAVY, 100),
    Case("lognormal, n = 1000", heavy, HEAVY, 1000),
]


def simulate(case: Case, repetitions: int, *, draws: int = 1000) -> tuple[float, float]:
    """Shares of that many intervals of a case that hold the truth, and whose tails were called unreliable."""
    covered = unreliable = 0
    for repetition in range(repetitions):
        chance = np.random.default_rng(derive(repetition, "coverage", case.name))
        clusters = np.arange(case.size) // case.cluster if case.cluster > 1 else None
        seeds = [case.draw(chance, case.size // case.cluster) for _ in range(case.seeds)]
        pairs = [Samples(loss.repeat(case.cluster), other.repeat(case.cluster), clusters) for loss, other in seeds]
        measured = measure(pairs, draws=draws, seed=repetition)
        covered += measured.ratio.low <= case.ratio <= measured.ratio.high
        unreliable += not measured.reliable
    return covered / repetitions, unreliable / repetitions


def main(repetitions: Annotated[int, typer.Option(min=1, help="Intervals of every case.")] = 500) -> None:
    """Prints the share of 95 % intervals that hold the truth, case by case."""
    rows = []
    for case in CASES:
        covered, unreliable = simulate(case, repetitions)
        error = math.sqrt(covered * (1 - covered) / repetitions)
        share = f"{100 * covered:.1f} +- {100 * error:.1f} %"
        rows.append([case.name, f"{case.ratio:.3g}", share, f"{100 * unreliable:.0f} %"])
    heads = ["true R", "covered", "called unreliable"]
    note = f"{repetitions} repetitions; +- is a standard error of them."
    Console().print(to_rich(Grid.of("Coverage of the 95 % intervals", ["losses"], heads, rows, note)))


if __name__ == "__main__":
    typer.run(main)
