"""What a reference may be, and how each kind comes to answer a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from steering.errors import UserError
from steering.references.answers import Answers
from steering.references.files import read_reference
from steering.references.predictions import predicted, squared_errors
from steering.references.table import LossTable
from steering.task import Batch, Losses, Task
from steering.training.checkpoint import trained


class Reference(Protocol):
    """Anything that answers a batch with its losses, one for each sample.

    It may have ``model``, a module that the task can evaluate (without one a reference has no metrics), and ``keep``,
    which is False where its losses change with time or are at hand anyway, so that they are not stored.
    """

    def __call__(self, batch: Batch) -> Losses:
        """The losses of a batch."""
        ...


@dataclass(frozen=True)
class Function:
    """A function of a batch that gives Losses, Pairs, or losses ``[n]`` or ``[n, columns]``.

    Args:
        function: without side effects.
        about: what may have ``model`` and ``keep``, the function itself if not given.
    """

    function: Callable[[Batch], Any]
    about: Any = None

    @property
    def model(self) -> nn.Module | None:
        return getattr(self.about or self.function, "model", None)

    @property
    def keep(self) -> bool:
        return getattr(self.about or self.function, "keep", True)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Losses:
        return Answers.of(self.function(batch), len(batch)).losses(batch.ids.device)


@dataclass(frozen=True)
class Estimator:
    """A fitted classifier (``predict_proba``) or regressor (``predict``), and the fields of a batch that it is about.

    The loss of a classifier is the log loss -log p(y | x), with p no smaller than the machine epsilon of its type, as
    in scikit-learn's ``log_loss``; that of a regressor is the squared error, summed where there are several outputs.

    Args:
        estimator: fitted.
        x: the field that it predicts from, ``[n, ...]``, of which every sample is made a line of features.
        y: the field that it predicts: labels ``[n]``, or numbers ``[n, ...]``.

    Example:
        >>> from sklearn.linear_model import LinearRegression
        >>> batch = Batch(torch.arange(3), {"x": torch.tensor([[0.0], [1], [2]]), "y": torch.tensor([0.0, 1, 5])})
        >>> reference = Estimator(LinearRegression().fit([[0.0], [1]], [0.0, 1]), x="x", y="y")
        >>> reference(batch).values.round(decimals=4)
        tensor([0., 0., 9.])
    """

    estimator: Any
    x: str = "x"
    y: str = "y"

    def __call__(self, batch: Batch) -> Losses:
        """The losses of a batch.

        Raises:
            UserError: the batch lacks a field, or the estimator is not fitted or has never seen the label of a sample.
        """
        lacking = [name for name in (self.x, self.y) if name not in batch.fields]
        if lacking:
            raise UserError(
                f"an estimator needs the field {lacking[0]}, but a batch has {', '.join(batch.fields)}: "
                f"Estimator(model, x=..., y=...) says what it is about"
            )
        x, y = (batch[name].detach().cpu().numpy() for name in (self.x, self.y))
        prediction = predicted(self.estimator, x.reshape(len(x), -1))
        if hasattr(self.estimator, "predict_proba"):
            return self._log_losses(prediction, y, batch.ids)
        return Losses(torch.from_numpy(squared_errors(prediction, y, self.y)).float().to(batch.ids.device))

    def _log_losses(self, probabilities: np.ndarray, y: np.ndarray, ids: Tensor) -> Losses:
        """Log losses; log probabilities are the outputs where the classes are the numbers from 0 on."""
        numbers = np.arange(probabilities.shape[1])
        classes = np.asarray(getattr(self.estimator, "classes_", numbers))
        column = np.searchsorted(classes, y).clip(max=len(classes) - 1)
        unseen = classes[column] != y
        if unseen.any():
            shown = ids.cpu().numpy()[unseen][:3].tolist()
            raise UserError(f"the reference never saw the label {y[unseen][0]} of ids {shown}: fit it on all classes")
        log = np.log(probabilities.clip(min=np.finfo(probabilities.dtype).eps))
        scores = torch.from_numpy(log).float().to(ids.device)
        outputs = scores if np.array_equal(classes, numbers) else None
        return Losses(-scores[np.arange(len(y)), column], outputs=outputs)


@dataclass(frozen=True)
class OwnPast:
    """A moving average of the weights of the target in training, from its first weights on.

    After every step average = decay * average + (1 - decay) * weights. ``steer run`` makes one for each arm
    and seed and saves it with the checkpoint.

    Args:
        decay: share of the past, at least 0 and below 1.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> past = OwnPast(decay=0.99).following(model)  # past.module has the losses of the reference
        >>> past.update_parameters(model)  # after a step of the optimizer
    """

    decay: float = 0.999

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise UserError(f"the decay of OwnPast is at least 0 and below 1, got {self.decay:g}")

    def __call__(self, batch: Batch) -> Losses:
        raise UserError("OwnPast is the past of a target in training, and here is none: use a Checkpoint")

    def following(self, target: nn.Module) -> AveragedModel:
        """The moving average of a target, which begins with its weights and buffers as they are now."""
        if any(hasattr(weight, "full_tensor") for weight in target.parameters()):
            raise UserError("OwnPast needs the whole target on every rank: use recipe.parallel=ddp")
        average = AveragedModel(target, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)
        average.update_parameters(target)  # the first call copies, and does not average
        return average.eval().requires_grad_(False)


@dataclass(frozen=True)
class Checkpoint:
    """The target as an earlier training left it in a file, ``runs/digits-001/arms/erm/seed0/checkpoint.pt`` say."""

    path: str | Path


@dataclass(frozen=True)
class CrossFitted:
    """References each of which was fitted without one fold of the samples, and answers for that fold alone.

    So no sample is kept from training for the reference's sake, and none has a loss that was fitted on it.

    Args:
        references: K of them, of any kind.
        folds: ``[size]``, the fold of every id from 0 to K - 1: ``references[k]`` was not fitted on fold k.

    Example:
        >>> reference = CrossFitted([lambda batch: batch["x"], lambda batch: -batch["x"]], folds=[0, 1, 0])
        >>> reference(Batch(torch.tensor([1, 2]), {"x": torch.tensor([5.0, 6.0])})).values
        tensor([-5.,  6.])
    """

    references: Sequence[Any]
    folds: Any

    def __post_init__(self):
        folds, number = torch.as_tensor(np.asarray(self.folds)), len(self.references)
        if folds.dim() != 1 or folds.is_floating_point() or not ((folds >= 0) & (folds < number)).all():
            raise UserError(f"folds are [size] integers from 0 to {number - 1}, as there are {number} references")
        object.__setattr__(self, "folds", folds)

    def __call__(self, batch: Batch) -> Losses:
        ids = batch.ids.cpu()
        if len(ids) and (ids.min() < 0 or ids.max() >= len(self.folds)):
            raise UserError(f"there are folds of {len(self.folds)} samples, got the id {int(ids.max())}")
        parts = [(self.folds[ids] == k).nonzero()[:, 0] for k in range(len(self.references))]
        pairs = [(as_reference(x), part) for x, part in zip(self.references, parts, strict=True) if len(part)]
        answers = [Answers.of(reference(batch.take(part)), len(part)) for reference, part in pairs]
        if any(answer.scale is not None for answer in answers):
            raise UserError("references of folds have a loss for each sample, got Pairs, which compare samples")
        if not all("outputs" in answer.parts for answer in answers):
            answers = [answer.only(["values", "mask"]) for answer in answers]
        return Answers.join(answers).take(torch.cat(parts).argsort()).losses(batch.ids.device)


def of_model(model: nn.Module, task: Task, *, keep: bool = True) -> Function:
    """A frozen module, under which the task has losses."""
    return Function(partial(task.losses, model), SimpleNamespace(model=model, keep=keep))


def as_reference(reference: Any, task: Task | None = None, device: torch.device | str | None = None) -> Reference:
    """Makes what answers a batch of anything that can be a reference.

    Args:
        reference: a function ``Batch -> Losses`` (or a tensor of losses); a module, which goes through ``task.losses``;
            losses by id, ``[size]`` or ``[size, columns]``, or the path of a file of them (``LossTable``); a fitted
            estimator of the fields x and y, or its file (``sklearn:model.skops``); an ``Estimator``, ``OwnPast``,
            ``Checkpoint`` or ``CrossFitted``.
        task: which a module and a checkpoint need, and which losses by id are compared with.
        device: of modules.

    Raises:
        UserError: this cannot be a reference, or not without a task.

    Example:
        >>> reference = as_reference([0.5, 2.0, 1.0])
        >>> reference(Batch(torch.tensor([2, 0]), {})).values
        tensor([1.0000, 0.5000])
    """
    if isinstance(reference, nn.Module | Checkpoint):
        if task is None:
            raise UserError("a module has losses under a task only: as_reference(module, task)")
        model = trained(task, Path(reference.path)) if isinstance(reference, Checkpoint) else reference
        for name, weight in model.state_dict().items():  # not the masks of -inf that are no part of it
            if weight.is_floating_point() and not weight.isfinite().all():
                raise UserError(
                    f"the reference's weights {name} are not finite: the model is damaged, or its training diverged; "
                    f"use another one"
                )
        return of_model(model.to(device).eval().requires_grad_(False), task)
    if isinstance(reference, CrossFitted):
        return replace(reference, references=[as_reference(x, task, device) for x in reference.references])
    if isinstance(reference, str | Path):
        reference = read_reference(reference)
    elif isinstance(reference, np.ndarray | Tensor | list):
        reference = LossTable(reference)
    if isinstance(reference, LossTable):
        return reference if task is None else reference.check(task)
    if isinstance(reference, Estimator | OwnPast | Function):
        return reference
    if hasattr(reference, "predict"):
        return Estimator(reference)
    if not callable(reference):
        raise UserError(
            f"a reference is a function of a batch, a module, an array or file of losses by id, an Estimator, OwnPast, "
            f"a Checkpoint or CrossFitted, got {type(reference).__name__}"
        )
    return Function(reference)
