"""Models to measure: those of a run's checkpoints, and those trained for a measurement alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from steering.errors import UserError
from steering.runs.config import RunConfig
from steering.runs.progress import Interrupted, Interrupts, Watch
from steering.runs.run import Stopped
from steering.settings import Arm, Metric, Recipe
from steering.task import Batch, Losses, Stream, Task
from steering.training import loop
from steering.training.loader import ShuffledLoader
from steering.training.reference_losses import ReferenceLosses


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


@dataclass(frozen=True)
class Variant:
    """A task with another reference, or with other training data.

    Args:
        task: what all else is of.
        other: its reference, if another one; may see the samples in a way of its own (``losses``).
        data: its training data, if others; ids are places among them.
    """

    task: Task
    other: nn.Module | None = None
    data: Batch | None = None

    @property
    def size(self) -> int:
        return self.task.size if self.data is None else len(self.data)

    @property
    def rows(self) -> int:
        return 1 if self.data is not None else self.task.rows

    @property
    def recipe(self) -> Recipe:
        return self.task.recipe

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return self.task.metrics

    def seeded(self, seed: int) -> Self:
        return self

    def target(self) -> nn.Module:
        return self.task.target()

    def reference(self) -> nn.Module:
        return self.task.reference() if self.other is None else self.other

    def stream(self, batch: int, *, seed: int) -> Stream:
        if self.data is None:
            return self.task.stream(batch, seed=seed)
        return ShuffledLoader(self._load, size=self.size, batch=min(batch, self.size), seed=seed)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        if isinstance(model, OfOthers):
            return model.losses(self.task, batch)
        return self.task.losses(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.task.evaluate(model)

    def _load(self, ids: torch.Tensor, _: torch.Generator) -> Batch:
        assert self.data is not None
        found = self.data.take(ids)
        return Batch(ids, found.fields, found.facts)


class OfOthers(nn.Module):
    """A reference that gives every sample the losses of another one: it knows how losses spread, and nothing else."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def losses(self, task: Task, batch: Batch) -> Losses:
        values, mask, outputs = task.losses(self.model, batch)
        return Losses(*(None if part is None else part.roll(1, 0) for part in (values, mask, outputs)))  # type: ignore[union-attr]


class Scaled(nn.Module):
    """A classifier with its scores multiplied: the same answers, more or less sure of them."""

    def __init__(self, model: nn.Module, factor: float):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, *inputs: Any) -> torch.Tensor:
        return self.factor * self.model(*inputs)


def joined(*batches: Batch) -> Batch:
    """Batches as one, with ids of their own."""
    fields = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0].fields}
    return Batch(torch.arange(sum(map(len, batches))), fields)


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
            Stopped: the user asked for an end.
        """
        reference = ReferenceLosses(task, self.device)
        training = loop.Training(task, arm, recipe, reference=reference, seed=seed, device=self.device)
        self.watch.begin(f"{name} (seed {seed})", recipe.steps, 0)

        def record(figures: dict[str, Any]) -> None:
            if "loss" in figures:
                self.watch.step(figures["step"], figures["samples"], figures["loss"])

        self.interrupts.training = True
        try:
            path = self.folder / name / f"seed{seed}" / "checkpoint.pt"
            whole = loop.run(training, path, record=record, stopped=self.interrupts)
        finally:
            self.interrupts.training = False
        if not whole or self.interrupts():
            raise Interrupted
        self.watch.finished(recipe.steps)
        return training.result.eval()


def stopped(folder: Path, interrupts: Interrupts) -> Stopped:
    """What to raise when the user asked for an end."""
    return Stopped(advice(folder), interrupts.received or 2)


def advice(folder: Path) -> str:
    """How to go on after a stop."""
    return f"stopped; the same command with --out {folder} goes on"


def halves(batches: list[Batch], share: float = 0.5) -> Iterator[Batch]:
    """The first share of the samples, and the rest."""
    whole = joined(*batches)
    cut = round(share * len(whole))
    for places in (torch.arange(cut), torch.arange(cut, len(whole))):
        yield whole.take(places)
