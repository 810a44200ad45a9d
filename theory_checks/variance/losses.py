"""Losses of models on held-out samples: the arrays that everything is measured on."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from scipy.special import logsumexp
from torch import Tensor, nn

from steering.contrastive.pairs import Pairs
from steering.errors import RunError, UserError
from steering.task import Batch, HeldOut, Task
from steering.theory_checks.variance.paired import Features, Samples
from steering.training.seeds import untouched

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
    """The held-out samples of a task.

    Raises:
        UserError: it has none.
    """
    if isinstance(task, HeldOut):
        return list(task.held_out(BLOCK))
    raise UserError(
        f"{type(task).__name__} has no held-out samples like its training data: give it a method held_out(batch), as "
        f"steering.task.HeldOut says"
    )


@torch.no_grad()
def score(task: Task, model: nn.Module, batches: list[Batch]) -> Scored | Features:
    """Losses of a model, target or reference, in evaluation mode and without a trace; of Pairs the features.

    Raises:
        RunError: a loss is no finite number.
    """
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
    """Both models' losses of the same samples.

    Raises:
        RunError: the target's losses are all alike.
    """
    if np.ptp(target.losses) == 0:
        raise RunError("all held-out losses of the target are alike: there is no variance to compare")
    return Samples(target.losses, reference.losses, target.rows, reference.tempered())


def trained_on(task: Task, most: int = MOST_TRAINED) -> Batch:
    """Samples that the target is trained on, at most so many."""
    return next(iter(task.stream(min(task.size, most), seed=0)))


def _array(parts: list[Tensor]) -> ndarray:
    return torch.cat(parts).double().cpu().numpy() if parts else np.empty(0)
