"""Weights of all training samples, from what a reference says of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steering import registry
from steering.auto.weights import FittedWeights, fit_weights
from steering.contrastive.pairs import Pairs, is_pairs
from steering.distributed import all_gather
from steering.errors import UserError
from steering.references.store import ReferenceLosses
from steering.rules.auto import Auto
from steering.settings import Arm, Recipe
from steering.task import Batch, Losses, Task
from steering.training.seeds import derive, generator
from steering.training.step import Training
from steering.training.training_sets import concatenate, every_sample, train_on

_SURE = 1e-3  # difference, in nats, up to which a loss is that of a class


@dataclass(frozen=True)
class Answer:
    """What one model says of training samples: scores of the classes and their labels, or features of pairs."""

    ids: Tensor
    scores: Tensor | None = None
    labels: Tensor | None = None
    pairs: Pairs | None = None


def base_of(arm: Arm) -> Auto | None:
    """How the base weights of an arm are estimated; None for an arm that has none."""
    rule = registry.build("rules", arm.base or arm.rule)
    return rule if isinstance(rule, Auto) else None


def estimate(
    task: Task,
    reference: ReferenceLosses,
    *,
    recipe: Recipe,
    seed: int,
    folds: int = 0,
    device: torch.device | str = "cpu",
    note: Callable[[str], None] = lambda text: None,
) -> FittedWeights:
    """Weights from the posterior that a label, or a pair, is right: a dose of steering without a knob.

    Args:
        task: drawn for this repetition.
        reference: its losses.
        recipe: how targets are trained, for folds; its baseline is the plain training.
        seed: of the repetition.
        folds: 0 takes the reference alone, at no training. k trains k plain targets, each without one fold of the
            samples, and takes their scores beside the reference's: a reference that knows little is then not mistaken
            for labels that are wrong. Classification in memory only.
        device: where targets are trained.
        note: told what goes on.

    Raises:
        UserError: losses that are neither cross-entropies of scores nor Pairs.
    """
    answer = answers_of(task, reference, recipe.batch)
    data: Any = answer.pairs
    if data is None:
        data = [answer.scores]
        if folds:
            plain = recipe.arms[recipe.baseline]
            scores = cross_fitted(task, plain, recipe, folds=folds, seed=seed, device=device, note=note)
            data.append(scores[answer.ids])
    elif folds:
        raise UserError(f"folds are for classification, got Pairs and folds={folds}: leave folds out")
    fitted = fit_weights(data, answer.labels, seed=derive(seed, "posterior"))
    every = torch.ones(task.size, dtype=torch.float64)
    every[answer.ids] = fitted.weights.cpu()
    return replace(fitted, weights=every)


def answers_of(task: Task, reference: ReferenceLosses, batch: int) -> Answer:
    """What the reference says of every training sample, on all ranks, in the order of their ids."""
    ids, scores, labels, left, right = [], [], [], [], []
    scale: Tensor | float = 1.0
    for part in every_sample(task, batch):
        losses = reference(part.to(reference.device), outputs=True)
        ids.append(part.ids)
        if is_pairs(losses.values):
            left.append(losses.values.left)
            right.append(losses.values.right)
            scale = losses.values.scale
        else:
            label, score = labels_of(losses)
            labels.append(label)
            scores.append(score)
    every_id = all_gather(torch.cat(ids))
    order = torch.from_numpy(_first_of_each(every_id))

    def gathered(parts: list[Tensor]) -> Tensor | None:
        return all_gather(torch.cat(parts)).cpu()[order] if parts else None

    a, b = gathered(left), gathered(right)
    pairs = None if a is None or b is None else Pairs(a, b, scale)
    return Answer(every_id.cpu()[order], gathered(scores), gathered(labels), pairs)


def labels_of(losses: Losses) -> tuple[Tensor, Tensor]:
    """The class whose cross-entropy a loss is, ``[n]``, and the scores of all classes, ``[n, classes]``.

    Raises:
        UserError: losses that are not ``[n]`` cross-entropies of ``Losses.outputs``.
    """
    values, scores = losses.values, losses.outputs
    if is_pairs(values) or values.dim() != 1 or scores is None or scores.dim() != 2:
        raise UserError(
            "auto needs one cross-entropy a sample with its scores (Losses.outputs [n, classes]), or Pairs: of other "
            "losses, such as those of tokens or of a regression, it has no posterior. Use kl(rho=...) or "
            "cvar(alpha=...) there"
        )
    entropies = -scores.double().log_softmax(-1)
    distance, label = (entropies - values.double()[:, None]).abs().min(-1)
    if not (distance < _SURE * (1 + values.double().abs())).all():
        raise UserError(
            "auto needs losses that are cross-entropies of Losses.outputs (without label smoothing or class weights): "
            f"a loss differs from that of every class by {distance.max():.3g}"
        )
    return label, scores


def cross_fitted(
    task: Task,
    arm: Arm,
    recipe: Recipe,
    *,
    folds: int,
    seed: int,
    device: torch.device | str = "cpu",
    note: Callable[[str], None] = lambda text: None,
    reference: ReferenceLosses | None = None,
    base: Tensor | None = None,
) -> Tensor:
    """Scores of every training sample by a target that was trained without it, ``[size, classes]`` by id.

    NaN for ids that are not trained on. The arm's reference is that of all samples, the task's own if not given; so are
    its base weights.
    """
    reference = reference or ReferenceLosses(task, device)
    parts = list(every_sample(task, recipe.batch))
    samples = replace(concatenate(*parts), ids=torch.cat([part.ids for part in parts]))
    samples = samples.take(samples.ids.argsort())
    n = len(samples)
    if not 2 <= folds <= n:
        raise UserError(f"folds are from 2 to the number of samples, {n}, got {folds}")
    fold = torch.randperm(n, generator=generator(seed, "folds")) % folds
    scores: Tensor | None = None
    for k in range(folds):
        note(f"fold {k + 1} of {folds}")
        inside, outside = (fold != k).nonzero()[:, 0], (fold == k).nonzero()[:, 0]
        part = train_on(task, samples.take(inside))
        settings = recipe.model_copy(update={"batch": min(recipe.batch, len(inside))})
        losses = ReferenceOfPart(reference, part, samples.ids[inside])
        weights = None if base is None else base[samples.ids[inside]]
        training = Training(part, arm, settings, reference=losses, seed=seed, device=device, base=weights)
        for _ in range(settings.steps):
            training.step()
        model = training.result.eval()
        with torch.no_grad():
            outputs = task.losses(model, replace(samples.take(outside)).to(device)).outputs
        assert outputs is not None
        if scores is None:
            scores = torch.full((task.size, outputs.shape[-1]), torch.nan, dtype=torch.float64)
        scores[samples.ids[outside]] = outputs.double().cpu()
    assert scores is not None
    return scores


class ReferenceOfPart(ReferenceLosses):
    """The losses of samples ``ids`` of another store, by their positions in ``ids``."""

    def __init__(self, every: ReferenceLosses, part: Task, ids: Tensor):
        super().__init__(part, every.device)
        self.every, self.ids = every, ids

    def __call__(self, batch: Batch, *, outputs: bool = False) -> Losses:
        ids = self.ids[batch.ids.cpu()].to(batch.ids.device)
        return self.every(replace(batch, ids=ids), outputs=outputs)


def _first_of_each(ids: Tensor):
    import numpy as np

    return np.unique(ids.cpu().numpy(), return_index=True)[1]
