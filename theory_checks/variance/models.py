"""Models to measure: those of a run's checkpoints, and those trained for a measurement alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steering.errors import UserError
from steering.references.store import ReferenceLosses
from steering.runs.config import RunConfig
from steering.runs.folder import Interrupted, Interrupts
from steering.runs.progress import Watch
from steering.settings import Arm, Recipe
from steering.task import Batch, Losses, Task, exchange
from steering.theory_checks.training_sets import concatenate
from steering.training import loop


def of_run(folder: Path, config: RunConfig, task: Task, arm: str, seed: int, device: torch.device) -> nn.Module:
    """The model that an arm of a run ended with.

    Args:
        task: drawn for that repetition.

    Raises:
        UserError: it is not there, or not trained to the end.
    """
    path = folder / "arms" / arm / f"seed{seed}" / "checkpoint.pt"
    if not path.exists():
        raise UserError(f"{folder} has no {arm} of seed {seed}: finish it first, steer run --resume {folder}")
    return loop.trained(task, path, device, steps=config.recipe.steps)


def steered_by(task: Task, model: nn.Module) -> Task:
    """A task with another reference, which is asked as the task's own would be."""
    return exchange(task, reference=lambda: model)


def steered_by_shuffled(task: Task, model: nn.Module) -> Task:
    """One whose reference gives every sample the losses of another: it knows how losses spread, and nothing else."""

    def losses(which: nn.Module, batch: Batch) -> Losses:
        answers = task.losses(which, batch)
        if which is not model:
            return answers
        parts = {name: getattr(answers, name) for name in ("values", "mask", "outputs")}
        return answers._replace(**{name: part.roll(1, 0) for name, part in parts.items() if part is not None})

    return exchange(task, reference=lambda: model, losses=losses)


class Scaled(nn.Module):
    """A classifier with its scores multiplied: the same answers, more or less sure of them."""

    def __init__(self, model: nn.Module, factor: float):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, *inputs: Any) -> torch.Tensor:
        return self.factor * self.model(*inputs)


@dataclass
class Trainer:
    """Trains what a measurement needs, each in a folder of its own, and picks up where it stopped."""

    folder: Path
    watch: Watch
    interrupts: Interrupts
    device: torch.device

    def __call__(self, name: str, task: Task, arm: Arm, recipe: Recipe, seed: int) -> nn.Module:
        """The model that an arm ends with.

        Raises:
            Interrupted: the user asked for an end.
        """
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


def split(batches: list[Batch], share: float) -> tuple[Batch, Batch]:
    """The first share of the samples, and the rest."""
    samples = concatenate(*batches)
    cut = round(share * len(samples))
    return samples.take(torch.arange(cut)), samples.take(torch.arange(cut, len(samples)))
