"""Answers of models to held-out samples, seed by seed, and the models that a measurement trains for itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import ndarray
from scipy.special import logsumexp
from torch import Tensor, nn

from steering.contrastive.pairs import Pairs
from steering.errors import RunError, UserError
from steering.references.store import ReferenceLosses
from steering.runs.config import RunConfig
from steering.runs.folder import Interrupted, Interrupts
from steering.runs.progress import Watch
from steering.settings import Arm, Recipe
from steering.task import Batch, HeldOut, Task
from steering.theory_checks.training_sets import concatenate, frozen_reference, train_on
from steering.theory_checks.variance.paired import Features, Paired, Samples, views
from steering.training import loop
from steering.training.seeds import untouched

STAR = "theta_star"
BLOCK = 512  # samples that go through a model at a time
MOST_TRAINED = 4096  # training samples of the leak check
MOST_WHOLE = 1 << 16  # training samples of the best model at hand, which are held in memory


class Scored(NamedTuple):
    """A model's answers to samples."""

    losses: ndarray  # [n]
    outputs: ndarray | None = None  # [n, classes] scores of a classifier whose cross-entropy these losses are
    rows: ndarray | None = None  # [n] row of each loss where a sample has several

    @property
    def wrong(self) -> ndarray:
        """Where the right class has not the largest score, ``[n]`` bool; needs outputs."""
        assert self.outputs is not None
        return _of_label(self.losses, self.outputs) < self.outputs.max(1) - 1e-5

    def tempered(self) -> Callable[[float], ndarray] | None:
        """Losses with the scores divided by a temperature; none where there are no scores."""
        if self.outputs is None:
            return None
        outputs, right = self.outputs, _of_label(self.losses, self.outputs)
        return lambda temperature: logsumexp(outputs / temperature, axis=1) - right / temperature


def _of_label(losses: ndarray, outputs: ndarray) -> ndarray:
    """The score of every sample's own class, ``[n]``: its cross-entropy tells it without the label."""
    return logsumexp(outputs, axis=1) - losses


def held_out(task: Task) -> list[Batch]:
    """The held-out samples of a task; a UserError if it has none."""
    if isinstance(task, HeldOut):
        return list(task.held_out(BLOCK))
    raise UserError(
        f"{type(task).__name__} has no held-out samples like its training data: give it a method held_out(batch), as "
        f"steering.task.HeldOut says"
    )


@torch.no_grad()
def score(task: Task, model: nn.Module, batches: list[Batch]) -> Scored | Features:
    """Losses of a model, target or reference, in evaluation mode and without a trace; of Pairs the features."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    with untouched():
        parts = [task.losses(model, batch.to(device)) for batch in batches]
    if isinstance(parts[0].values, Pairs):
        return Features(*(_array([getattr(part.values, side) for part in parts]) for side in ("left", "right")))
    values, masks, outputs = (
        _array([x for part in parts if (x := getattr(part, name)) is not None])
        for name in ("values", "mask", "outputs")
    )
    mask = masks.astype(bool) if len(masks) else np.ones(values.shape, dtype=bool)
    infinite = int((~np.isfinite(values[mask])).sum())
    if infinite:
        raise RunError(f"{infinite} of {mask.sum()} held-out losses are no finite numbers: clip what the model gives")
    if values.ndim > 1:
        return Scored(values[mask], rows=np.nonzero(mask)[0])
    # Outputs are kept as scores if the losses are their cross-entropy with one of the classes.
    gaps = np.abs(outputs - _of_label(values, outputs)[:, None]).min(1) if len(outputs) else np.ones(1)
    near = bool((gaps < 1e-3 * (1 + np.abs(outputs).max(initial=0))).all())
    return Scored(values[mask], outputs if len(outputs) and near else None)


def paired(target: Scored, reference: Scored) -> Samples:
    """Both models' losses of the same samples; a RunError if the target's are all alike."""
    if np.ptp(target.losses) == 0:
        raise RunError("all held-out losses of the target are alike: there is no variance to compare")
    return Samples(target.losses, reference.losses, target.rows, reference.tempered())


def trained_on(task: Task, most: int = MOST_TRAINED) -> Batch:
    """Samples that the target is trained on, at most so many."""
    return next(iter(task.stream(min(task.size, most), seed=0)))


def _array(parts: list[Tensor]) -> ndarray:
    return torch.cat(parts).double().cpu().numpy() if parts else np.empty(0)


@dataclass(frozen=True)
class Bench:
    """Held-out samples of a drawn task, and its reference's answers to them, with which every target is compared."""

    task: Any  # drawn
    reference: nn.Module

    @cached_property
    def answers(self) -> Any:
        return self.score(self.reference)

    @cached_property
    def batches(self) -> list[Batch]:
        return held_out(self.task)

    @cached_property
    def temperature(self) -> float:
        """Of an anchor's whole loss."""
        return 1.0

    def score(self, model: nn.Module) -> Scored | Features:
        """A model's answers."""
        return score(self.task, model, self.batches)

    def compare(self, model: nn.Module) -> dict[str, Paired]:
        """The views of a target and the reference, by name; the only one of losses a sample has none."""
        target = self.score(model)
        if isinstance(target, Features):
            return views(target, self.answers, self.temperature)
        return {"": paired(target, self.answers)}

    def leak(self) -> tuple[ndarray, ndarray] | None:
        """The reference's losses on these samples and on training samples, if both can be had."""
        trained = (
            score(self.task, self.reference, [trained_on(self.task)]) if isinstance(self.answers, Scored) else None
        )
        return (self.answers.losses, trained.losses) if isinstance(trained, Scored) else None


def bench_of(task: Task, pairs: int, device: torch.device | str, last: Bench | None) -> Bench:
    """The bench of a drawn task, with at most so many image-text pairs; ``last`` if that is of this very task."""
    if last is not None and last.task is task:
        return last
    if hasattr(task, "held_out_pairs"):  # image-text pairs, which every model sees its own way
        from steering.theory_checks.variance.clip import ClipBench  # slow to import, and its task has done so

        made: Any = ClipBench(task, frozen_reference(task, device), pairs)
        return made
    return Bench(task, frozen_reference(task, device))


@dataclass
class Collected:
    """Answers of models, ready to be measured."""

    pairs: dict[tuple[str, str], list[Paired]] = field(default_factory=dict)  # by target and view, one a seed
    leaks: list[tuple[ndarray, ndarray]] = field(default_factory=list)  # fresh and training losses, one a seed
    crossed: bool = False  # all seeds have the same held-out samples
    size: int = 0  # training samples of the targets


Model = Callable[[Task, str, int], nn.Module]  # of a drawn task, an arm, a seed


def collect(
    task: Task, seeds: int, arms: Sequence[str], model: Model, *, pairs: int, device: torch.device, star: Model | None
) -> Collected:
    """Losses of the models of all arms and seeds, and of the reference.

    Args:
        pairs: most image-text pairs.
        star: trains a stand-in for the best model on the samples of a task; None leaves it out.
    """
    collected, bench = Collected(size=task.seeded(0).size), None
    for seed in range(seeds):
        drawn = task.seeded(seed)
        last, bench = bench, bench_of(drawn, pairs, device, bench)
        if bench is last:
            collected.crossed = True
        elif (leak := bench.leak()) is not None:
            collected.leaks.append(leak)
        pairs_of_seed = {(arm, v): p for arm in arms for v, p in bench.compare(model(drawn, arm, seed)).items()}
        if star is not None and isinstance(bench.answers, Scored) and bench.answers.rows is None:
            pairs_of_seed[STAR, ""] = cross_fitted(drawn, bench.answers, star, seed)
        for key, pair in pairs_of_seed.items():
            collected.pairs.setdefault(key, []).append(pair)
    return collected


def cross_fitted(task: Task, reference: Scored, star: Model, seed: int) -> Samples:
    """A stand-in for the best model: trained on one half of the held-out samples too, scored on the other."""
    samples, trained = concatenate(*held_out(task)), trained_on(task, MOST_WHOLE)
    fold, target = torch.arange(len(samples)) % 2, np.zeros(len(samples))
    for part in range(2):
        data = concatenate(trained, samples.take((fold != part).nonzero()[:, 0]))
        model = star(train_on(task, data), f"{STAR}-{part}", seed)
        scored = score(task, model, [samples.take((fold == part).nonzero()[:, 0])])
        assert isinstance(scored, Scored)
        target[fold == part] = scored.losses
    return paired(Scored(target), reference)


def plain_and_steered(recipe: Recipe) -> tuple[str, str | None]:
    """Names of the arm without reference and of the first one with it."""
    plain = [name for name, arm in recipe.arms.items() if not arm.subtract and arm.selector is None]
    steered = [name for name, arm in recipe.arms.items() if arm.subtract]
    if not plain:
        raise UserError("no arm is trained without the reference, so its variance cannot be told: add --arms erm")
    return recipe.baseline if recipe.baseline in plain else plain[0], next(iter(steered), None)


def of_run(folder: Path, config: RunConfig, task: Task, arm: str, seed: int, device: torch.device) -> nn.Module:
    """The model that an arm of a run ended with on a drawn task; a UserError if it is not there."""
    path = folder / "arms" / arm / f"seed{seed}" / "checkpoint.pt"
    if not path.exists():
        raise UserError(f"{folder} has no {arm} of seed {seed}: finish it first, steer run --resume {folder}")
    return loop.trained(task, path, device, steps=config.recipe.steps)


@dataclass
class Trainer:
    """Trains what a measurement needs, each in a folder of its own, and picks up where it stopped."""

    folder: Path
    watch: Watch
    interrupts: Interrupts
    device: torch.device

    def __call__(self, name: str, task: Task, arm: Arm, recipe: Recipe, seed: int) -> nn.Module:
        """The model that an arm ends with."""
        reference = ReferenceLosses(task, self.device)
        training = loop.Training(task, arm, recipe, reference=reference, seed=seed, device=self.device)
        self.watch.begin(f"{name} (seed {seed})", recipe.steps)

        def record(figures: dict[str, Any]) -> None:
            if "loss" in figures:
                self.watch.step(figures["step"], figures["samples"], figures["loss"])

        path = self.folder / name / f"seed{seed}" / "checkpoint.pt"
        with self.interrupts.training():
            finished = loop.run(training, path, record=record, stopped=self.interrupts)
        if not finished or self.interrupts():
            raise Interrupted
        self.watch.finished(recipe.steps)
        return training.result.eval()
