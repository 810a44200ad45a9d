"""References out of the class itself: never much worse than the reference, and how many samples that takes.

The class is that of ``finite_class``, but the 30 hypotheses that fail rarely are variants of the reference: whatever
is one of the class has such variants, and those of others matter to no choice. What DRRho may return by mistake then
lies close to the reference, which is what the paper's O(1/n) is about.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steering.theory_checks.bootstrap import DRAWS, Drawn, Estimate, interval, means
from steering.theory_checks.bound import atoms
from steering.theory_checks.bound.atoms import Array
from steering.theory_checks.bound.claims import slope
from steering.theory_checks.bound.finite_class import ABOVE_BEST, BEST, EXCESS, LOSSES, NAMES, ORDINARY, draw, methods
from steering.training.seeds import derive

VARIANTS = slice(ORDINARY, BEST)
MIDDLING = 42  # index of a hypothesis of excess risk 0.02
ALONE = "ERM without variants"  # of the class that fitted references come from
FACTOR = 2.0  # times the reference's excess risk: what "reaches the reference" means


def with_references(references: np.ndarray) -> tuple[Array, Array, Array]:
    """The class, with an ordinary hypothesis or ``BEST`` as the reference, an index for each repetition.

    Returns:
        Losses, and their differences to the reference's, zero of itself, ``[repetitions, hypotheses, 8]`` each;
        population risks minus the reference's, ``[repetitions, hypotheses]``.
    """
    # What the reference loses beyond the best hypothesis: its sign is e_ref.
    beyond = ABOVE_BEST[references].reshape(-1, 2, 2, 2).swapaxes(2, 3).reshape(-1, 1, 8)
    differences, above = ABOVE_BEST - beyond, EXCESS - EXCESS[references][:, None]
    differences[:, VARIANTS], above[:, VARIANTS] = ABOVE_BEST[VARIANTS], EXCESS[VARIANTS]
    differences[np.arange(len(differences)), references] = 0
    return differences + (beyond + LOSSES[BEST]), differences, above


def against(references: np.ndarray, n: int, rng: np.random.Generator, names: Sequence[str] = NAMES) -> dict[str, Array]:
    """R(target) - R(reference) of every method, exactly, ``[repetitions]`` each; all see the same samples."""
    losses, differences, above = with_references(references)
    counts, chosen = draw(n, len(references), rng), {}
    for name in names:
        method = methods(n)[name]
        index = method.risk(differences if method.subtract else losses, counts).argmin(-1)
        chosen[name] = np.take_along_axis(above, index[:, None], -1)[:, 0]
    return chosen


def upper_quantile(values: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """95 % quantiles over repetitions, ``[sizes, repetitions]`` -> ``[sizes]``, and bootstrap ``[draws, sizes]``."""
    taken = rng.integers(values.shape[1], size=(DRAWS, values.shape[1]))
    drawn = np.stack([np.quantile(row[taken], 0.95, axis=-1) for row in values], -1)
    return np.quantile(values, 0.95, axis=-1), drawn


def fitted(m: int, repetitions: int, rng: np.random.Generator) -> np.ndarray:
    """References that ERM returns on m samples, ``[repetitions]``; variants are not among them."""
    candidates = np.r_[:ORDINARY, BEST]
    counts = draw(m, repetitions, rng)[:, candidates]
    return candidates[atoms.mean(LOSSES[candidates], counts).argmin(-1)]


@dataclass(frozen=True)
class SamplesNeeded:
    """Samples until a method's mean excess risk is ``FACTOR`` times that of references fitted on m samples."""

    m: int
    reference: float  # mean excess risk of the references
    by_method: dict[str, Drawn]  # an end of the sizes tried where the number lies beyond them
    sizes: tuple[int, ...]  # tried
    repetitions: int  # number of references

    @property
    def intervals(self) -> dict[str, Estimate]:
        return {name: interval(drawn, self.repetitions) for name, drawn in self.by_method.items()}


def samples_needed(m: int, repetitions: int, seed: int) -> SamplesNeeded:
    """Searches how many samples ERM and DRRho need to come within ``FACTOR`` of references fitted on m samples."""
    references = fitted(m, repetitions, np.random.default_rng(derive(seed, "fitted reference", m)))
    excess = EXCESS[references]
    sizes = tuple(16 * 2**power for power in range(2 + int(np.log2(m / 8))))
    columns: dict[str, list[Array]] = {name: [excess] for name in ("ERM", "DRRho", ALONE)}
    for n in sizes:
        rng = np.random.default_rng(derive(seed, "target of a fitted reference", m, n))
        for name, above in against(references, n, rng, ("ERM", "DRRho")).items():
            columns[name].append(excess + above)
        columns[ALONE].append(EXCESS[fitted(n, repetitions, rng)])
    by_method = {}
    for name, rows in columns.items():
        curves = np.stack(rows, 1)
        drawn = means(curves, rng=np.random.default_rng(derive(seed, "needed", m, name)))
        by_method[name] = Drawn(float(_reached(curves.mean(0), sizes)), _reached(drawn, sizes))
    return SamplesNeeded(m, float(excess.mean()), by_method, sizes, repetitions)


def _reached(curves: Array, sizes: tuple[int, ...]) -> Array:
    """Size from which on the curve is low enough, ``[..., 1 + sizes]`` (reference first) -> ``[...]``."""
    over = np.log(curves[..., 1:]) - np.log(FACTOR * curves[..., :1])
    last = np.where(over > 0, np.arange(len(sizes)), -1).max(-1, keepdims=True)
    before, after = np.clip(last, 0, None), np.clip(last + 1, None, len(sizes) - 1)
    high, low = (np.take_along_axis(over, index, -1) for index in (before, after))
    part = np.where(after > before, high / np.where(high > low, high - low, 1), 0)
    log_size = np.log(sizes)[before] + np.clip(part, 0, 1) * (np.log(sizes)[after] - np.log(sizes)[before])
    return np.exp(log_size)[..., 0]


def exponent(results: list[SamplesNeeded], name: str) -> Estimate:
    """Of the samples needed against m; no finite interval if a size needed often lies beyond those tried."""
    drawn = [result.by_method[name] for result in results]
    draws = np.stack([needed.draws for needed in drawn], 1)
    values = np.array([needed.value for needed in drawn])
    estimate = slope([result.m for result in results], values, draws, results[0].repetitions)
    smallest, largest = ([result.sizes[end] for result in results] for end in (0, -1))
    if (((draws <= smallest) | (draws >= largest)).mean(0) > 0.01).any():
        return Estimate(estimate.value, -np.inf, np.inf)
    return estimate
