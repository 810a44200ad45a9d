"""References out of the class itself: never much worse than the reference, and how many samples that takes.

The class is that of ``finite_class``, but the 30 hypotheses that fail rarely are variants of the reference: whatever
is one of the class has such variants, and those of others matter to no choice. What DRRho may return by mistake then
lies close to the reference, which is what the paper's O(1/n) is about.
"""

from dataclasses import dataclass

import numpy as np

from steering.theory_checks.bootstrap import DRAWS, Drawn, Estimate, interval, means
from steering.theory_checks.bound import atoms
from steering.theory_checks.bound.atoms import Array
from steering.theory_checks.bound.claims import slopes
from steering.theory_checks.bound.finite_class import ORDINARY, RARE, FiniteClass, methods
from steering.training.seeds import derive

NAMES = ("ERM", "DRO", "DRRho")
BEST = ORDINARY + RARE  # index of the best hypothesis
VARIANTS = slice(ORDINARY, BEST)
MIDDLING = 42  # index of a hypothesis of excess risk 0.02
ALONE = "ERM without variants"  # of the class that fitted references come from
FACTOR = 2.0  # times the reference's excess risk: what "reaches the reference" means


@dataclass(frozen=True)
class OwnReference:
    """The class, with one of its hypotheses as the reference in every repetition.

    Args:
        references: index of an ordinary hypothesis or ``BEST``, ``[repetitions]``.
    """

    references: np.ndarray

    @property
    def above(self) -> Array:
        """Population risk of every hypothesis minus the reference's, ``[repetitions, hypotheses]``."""
        plain = FiniteClass().excess
        found = plain - plain[self.references][:, None]
        found[:, VARIANTS] = plain[VARIANTS]
        return found

    def differences(self) -> Array:
        """Loss minus the reference's, ``[repetitions, hypotheses, 8]``; the reference's own is exactly zero."""
        plain = FiniteClass().differences()
        found = plain - self._reference()[:, None]
        found[:, VARIANTS] = plain[VARIANTS]
        found[np.arange(len(found)), self.references] = 0
        return found

    def losses(self) -> Array:
        """Loss of every hypothesis at every atom, ``[repetitions, hypotheses, 8]``."""
        return self.differences() + (self._reference() + FiniteClass().losses()[BEST])[:, None]

    def _reference(self) -> Array:
        """What the reference loses beyond the best hypothesis, ``[repetitions, 8]``: its sign is ``e_ref``."""
        by_own = FiniteClass().differences()[self.references]
        return by_own.reshape(-1, 2, 2, 2).swapaxes(2, 3).reshape(-1, 8)


def against(
    references: np.ndarray, n: int, random: np.random.Generator, names: tuple[str, ...] = NAMES
) -> dict[str, Array]:
    """R(target) - R(reference) of every method, exactly, ``[repetitions]`` each; all see the same samples."""
    problem = OwnReference(references)
    counts = FiniteClass().draw(n, len(references), random)
    above, found = problem.above, {}
    for name in names:
        method = methods(n)[name]
        values = problem.differences() if method.subtract else problem.losses()
        chosen = method.risk(values, counts).argmin(-1)
        found[name] = np.take_along_axis(above, chosen[:, None], -1)[:, 0]
    return found


def upper(values: Array, chance: np.random.Generator) -> tuple[Array, Array]:
    """95 % quantiles over repetitions, ``[sizes, repetitions]`` -> ``[sizes]``, and bootstrap ``[draws, sizes]``."""
    taken = chance.integers(values.shape[1], size=(DRAWS, values.shape[1]))
    drawn = np.stack([np.quantile(row[taken], 0.95, axis=-1) for row in values], -1)
    return np.quantile(values, 0.95, axis=-1), drawn


def fitted(m: int, repetitions: int, random: np.random.Generator) -> np.ndarray:
    """References that ERM finds on m samples of their own, ``[repetitions]``; variants are not among them."""
    plain, kept = FiniteClass(), np.r_[:ORDINARY, BEST]
    counts = plain.draw(m, repetitions, random)[:, kept]
    return kept[atoms.mean(plain.losses()[kept], counts).argmin(-1)]


@dataclass(frozen=True)
class Needed:
    """Samples until a method's mean excess risk is ``FACTOR`` times that of references fitted on m samples.

    Attributes:
        m: of the references.
        reference: their mean excess risk.
        by_method: how many samples, with draws of that number; an end of the sizes tried where it lies beyond.
        sizes: tried.
        repetitions: references.
    """

    m: int
    reference: float
    by_method: dict[str, Drawn]
    sizes: tuple[int, ...]
    repetitions: int


def needed(m: int, repetitions: int, seed: int) -> Needed:
    """Finds how many samples ERM and DRRho need to come within ``FACTOR`` of references fitted on m samples."""
    references = fitted(m, repetitions, np.random.default_rng(derive(seed, "fitted reference", m)))
    own = FiniteClass().excess[references]
    sizes = tuple(16 * 2**place for place in range(2 + int(np.log2(m / 8))))
    found: dict[str, list[Array]] = {"ERM": [], "DRRho": [], ALONE: []}
    for n in sizes:
        random = np.random.default_rng(derive(seed, "target of a fitted reference", m, n))
        for name, above in against(references, n, random, ("ERM", "DRRho")).items():
            found[name].append(own + above)
        found[ALONE].append(FiniteClass().excess[fitted(n, repetitions, random)])
    by_method = {}
    for name, rows in found.items():
        columns = np.stack([own, *rows], 1)
        drawn = means(columns, chance=np.random.default_rng(derive(seed, "needed", m, name)))
        by_method[name] = Drawn(float(_reached(columns.mean(0), sizes)), _reached(drawn, sizes))
    return Needed(m, float(own.mean()), by_method, sizes, repetitions)


def _reached(columns: Array, sizes: tuple[int, ...]) -> Array:
    """Size from which on the curve is low enough, ``[..., 1 + sizes]`` (reference first) -> ``[...]``."""
    over = np.log(columns[..., 1:]) - np.log(FACTOR * columns[..., :1])
    places = np.arange(len(sizes))
    last = np.where(over > 0, places, -1).max(-1, keepdims=True)
    before, after = np.clip(last, 0, None), np.clip(last + 1, None, len(sizes) - 1)
    high, low = (np.take_along_axis(over, place, -1) for place in (before, after))
    part = np.where(after > before, high / np.where(high > low, high - low, 1), 0)
    found = np.log(sizes)[before] + np.clip(part, 0, 1) * (np.log(sizes)[after] - np.log(sizes)[before])
    return np.exp(found)[..., 0]


def exponent(found: list[Needed], name: str) -> Estimate:
    """Of the samples needed against m; no finite interval if a size needed often lies beyond those tried."""
    sizes = np.array([one.m for one in found], dtype=float)
    each = [one.by_method[name] for one in found]
    value = float(slopes(sizes, np.array([one.value for one in each])))
    for one, drawn in zip(found, each, strict=True):
        beyond = (drawn.draws <= one.sizes[0]) | (drawn.draws >= one.sizes[-1])
        if beyond.mean() > 0.01:
            return Estimate(value, -np.inf, np.inf)
    drawn = slopes(sizes, np.stack([one.draws for one in each], 1))
    return interval(Drawn(value, drawn), units=found[0].repetitions)
