"""R along the training of the plain target, measured at a few of its steps while the one loop trains it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from scipy.stats import t as student
from torch import nn

from steering import atomic_files
from steering.errors import RunError, UserError
from steering.runs.run import Run
from steering.task import Task
from steering.theory_checks.bootstrap import LEVEL
from steering.theory_checks.variance.bench import bench
from steering.theory_checks.variance.words import EARLY, short
from steering.training import loop
from steering.training.reference_losses import ReferenceLosses
from steering.training.seeds import untouched

FIRST, MOMENTS = 5, 8  # first step, and how many; geometric in between
FILE = "variance.json"  # beside the checkpoint of every seed


@dataclass(frozen=True)
class Moment:
    """The variances of the held-out losses after one step.

    Attributes:
        step: gradient steps taken.
        units: independent units of the held-out samples.
        variance, reference_variance, difference_variance: of l, l_ref and l - l_ref.
    """

    step: int
    units: int
    variance: float
    reference_variance: float
    difference_variance: float

    @property
    def ratio(self) -> float:
        return self.difference_variance / self.variance

    @property
    def initial(self) -> bool:
        """Whether sd(l) < sd(l_ref) / 2: then R > 1 whatever the reference knows."""
        return self.reference_variance > EARLY**2 * self.variance


def steps(last: int) -> list[int]:
    """The steps after which to look, geometric from the fifth to the last."""
    return np.unique(np.geomspace(min(FIRST, last), last, MOMENTS).round().astype(int)).tolist()


class Observed(loop.Training):
    """A training that is looked at after some of its steps; it ends with the same bits as one that is not."""

    def __init__(self, *given: Any, observe: Callable[[int, nn.Module], None], **named: Any):
        super().__init__(*given, **named)
        self.observe, self.moments = observe, set(steps(self.recipe.steps))

    def step(self) -> loop.Record:
        figures = super().step()
        if self.done in self.moments:
            model = self.result
            mode = model.training
            with torch.no_grad(), untouched():
                self.observe(self.done, model.eval())
            model.train(mode)
        return figures


@dataclass
class ObservedRun(Run):
    """A run whose plain arm is looked at while it trains.

    What is seen after a step is on disk before the step is in any checkpoint, so a run that goes on lacks none of it.

    Args:
        plain: name of that arm.
        pairs: most image-text pairs.
    """

    plain: str = ""
    pairs: int = 0

    def _training(self, name: str, seed: int, task: Task, reference: ReferenceLosses) -> loop.Training:
        if name != self.plain:
            return super()._training(name, seed, task, reference)
        held, path = bench(task, self.pairs), self._place(name, seed) / FILE
        known = held.ask(reference.model)

        def observe(step: int, model: nn.Module) -> None:
            try:
                pair = next(iter(held.compare(held.ask(model), known).values()))
            except RunError:  # losses that are all alike or not finite, which the training may leave behind
                return
            m = pair.moments()
            figures = map(float, (m.variance, m.reference_variance, m.difference_variance))
            others = [one for one in _saved(path) if one.step != step]
            _save(path, [*others, Moment(step, pair.units, *figures)])

        arm = self.recipe.arms[name]
        return Observed(task, arm, self.recipe, reference=reference, seed=seed, device=self.device, observe=observe)


def read(folder: Path, arm: str, last: int, units: Sequence[int]) -> list[list[Moment]]:
    """What was seen of every seed, at the steps that all of them have.

    Args:
        folder: of the run.
        arm: the plain one.
        last: step of the recipe.
        units: of the held-out samples of every seed; what was seen on others does not count.

    Returns:
        Moments by seed, in order; none where nobody looked.
    """
    asked = set(steps(last))
    found = [_saved(folder / "arms" / arm / f"seed{seed}" / FILE) for seed in range(len(units))]
    found = [[o for o in seed if o.step in asked and o.units == n] for seed, n in zip(found, units, strict=True)]
    common = set.intersection(*({one.step for one in seed} for seed in found))
    return [[one for one in seed if one.step in common] for seed in found] if common else []


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
    if any(_lowest(logs[:, end] - logs[:, least], choices=last) <= 0 for end in (0, last)):
        return None
    where, end = (np.exp(logs[:, place].mean()) for place in (least, last))
    return (
        f"R is smallest in the middle of the training of {name}: {short(where)} after step {along[0][least].step}, "
        f"{short(end)} at its end (means over seeds)."
    )


def as_numbers(along: Sequence[Sequence[Moment]]) -> list[list[dict[str, Any]]]:
    """All of it as plain numbers, by seed."""
    return [[asdict(one) | {"ratio": one.ratio, "init": one.initial} for one in seed] for seed in along]


def _lowest(differences: ndarray, choices: int) -> float:
    """Lower end of the t-interval of a mean difference that was chosen among some."""
    count = len(differences)
    reach = student.ppf(1 - (1 - LEVEL) / 2 / choices, count - 1)
    return float(differences.mean() - reach * differences.std(ddof=1) / np.sqrt(count))


def _saved(path: Path) -> list[Moment]:
    try:
        return [Moment(**one) for one in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged: delete its folder, and that arm is trained again") from None


def _save(path: Path, seen: Sequence[Moment]) -> None:
    atomic_files.write_json(path, [asdict(one) for one in sorted(seen, key=lambda one: one.step)])
