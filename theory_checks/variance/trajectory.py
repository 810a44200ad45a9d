"""R along the training of the plain target, measured at a few of its steps while the one loop trains it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from scipy.stats import ttest_1samp

from steering import atomic_files
from steering.errors import RunError, UserError
from steering.theory_checks.bootstrap import LEVEL
from steering.theory_checks.variance.bench import Bench, bench_of
from steering.theory_checks.variance.verdicts import EARLY, short
from steering.training.loop import Training
from steering.training.seeds import untouched

FIRST, MOMENTS = 5, 8  # first step, and how many; geometric in between
FILE = "variance.json"  # beside the checkpoint of every seed


@dataclass(frozen=True)
class Moment:
    """The variances of the held-out losses after one step."""

    step: int  # gradient steps taken
    units: int  # independent units of the held-out samples
    variance: float  # of l
    reference_variance: float  # of l_ref
    difference_variance: float  # of l - l_ref

    @property
    def ratio(self) -> float:
        return self.difference_variance / self.variance

    @property
    def initial(self) -> bool:
        """Whether sd(l) < sd(l_ref) / 2: then R > 1 whatever the reference knows."""
        return self.reference_variance > EARLY**2 * self.variance


def steps(last: int) -> list[int]:
    """The steps after which R is measured, geometric from the fifth to the last."""
    return np.unique(np.geomspace(min(FIRST, last), last, MOMENTS).round().astype(int)).tolist()


@dataclass
class Observer:
    """Measures R after some steps of a run's plain arm; the training ends with the same bits as without.

    What is measured after a step is on disk before the step is in any checkpoint, so a run that goes on lacks none.
    """

    folder: Path  # of the run
    plain: str  # name of that arm
    pairs: int  # most image-text pairs
    _bench: Bench | None = field(init=False, default=None)

    def __call__(self, arm: str, training: Training) -> None:
        """Called after every step of every arm."""
        if arm != self.plain or training.done not in steps(training.recipe.steps):
            return
        self._bench = bench_of(training.task, self.pairs, training.device, self._bench)
        model, path = training.result, _path(self.folder, arm, training.seed)
        was_training = model.training
        try:
            with torch.no_grad(), untouched():
                pair = next(iter(self._bench.compare(model.eval()).values()))
        except RunError:  # losses that are all alike or not finite, which the training may leave behind
            return
        finally:
            model.train(was_training)
        m = pair.moments()
        variances = map(float, (m.variance, m.reference_variance, m.difference_variance))
        moments = {one.step: one for one in _saved(path)} | {
            training.done: Moment(training.done, pair.units, *variances)
        }
        atomic_files.write_json(path, [asdict(moments[step]) for step in sorted(moments)])


def read(folder: Path, arm: str, last: int, units: Sequence[int]) -> list[list[Moment]]:
    """What was measured of every seed, in order, at the steps that all of them have.

    ``units`` are those of the held-out samples of every seed; what was measured on others does not count.
    """
    saved = [_saved(_path(folder, arm, seed)) for seed in range(len(units))]
    seeds = [{one.step: one for one in moments if one.units == n} for moments, n in zip(saved, units, strict=True)]
    common = sorted(set(steps(last)).intersection(*seeds))
    return [[moments[step] for step in common] for moments in seeds] if common else []


def ratios(along: Sequence[Sequence[Moment]]) -> ndarray:
    """``[seeds, steps]``."""
    return np.array([[one.ratio for one in seed] for seed in along])


def initial(along: Sequence[Sequence[Moment]]) -> ndarray:
    """``[steps]`` bool: whether most seeds are at their beginning there."""
    return np.mean([[one.initial for one in seed] for seed in along], 0) > 0.5


def finding(along: Sequence[Sequence[Moment]], name: str) -> str | None:
    """Says that R is least in the middle of the training, if the seeds agree on it.

    Both ends have to lie above the least, by intervals of paired differences over seeds that allow for its choice.
    """
    logs = np.log(ratios(along))
    least, last = int(logs.mean(0).argmin()), logs.shape[1] - 1
    if len(logs) < 2 or least in (0, last) or initial(along)[least]:
        return None
    level = 1 - (1 - LEVEL) / last  # the least is the lowest of so many others
    tests = [ttest_1samp(logs[:, end] - logs[:, least], 0) for end in (0, last)]
    if any(test.confidence_interval(level).low <= 0 for test in tests):
        return None
    where, end = (np.exp(logs[:, index].mean()) for index in (least, last))
    return (
        f"R is smallest in the middle of the training of {name}: {short(where)} after step {along[0][least].step}, "
        f"{short(end)} at its end (means over seeds)."
    )


def _path(folder: Path, arm: str, seed: int) -> Path:
    return folder / "arms" / arm / f"seed{seed}" / FILE


def _saved(path: Path) -> list[Moment]:
    try:
        return [Moment(**one) for one in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged: delete its folder, and that arm is trained again") from None
