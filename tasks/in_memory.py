"""What tasks on a few samples in memory have in common."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.errors import UserError
from steering.settings import Metric
from steering.task import Batch, Losses
from steering.training.loader import ShuffledLoader


class Samples(NamedTuple):
    """Features ``[n, d]``, targets ``[n]``, and which targets are wrong, ``[n]`` bool."""

    x: Tensor
    y: Tensor
    wrong: Tensor

    def batch(self, ids: Tensor) -> Batch:
        return Batch(ids, {"x": self.x[ids], "y": self.y[ids]}, {"wrong": self.wrong[ids]})

    def batches(self, size: int) -> Iterator[Batch]:
        """All samples in their order."""
        return map(self.batch, torch.arange(len(self.y)).split(size))


class Draw(NamedTuple):
    """One draw of a task: noisy training samples, those of the reference, and right ones to test on."""

    train: Samples
    reference: Samples
    test: Samples


class InMemory:
    """A task on a draw of samples; repetition s of a run redraws them with seed + s."""

    samples: int
    seed: int
    rows = 1

    @cached_property
    def draw(self) -> Draw:
        raise NotImplementedError

    @property
    def size(self) -> int:
        return self.samples

    def seeded(self, seed: int) -> Self:
        task: Any = self
        return replace(task, seed=self.seed + seed)

    def load(self, ids: Tensor, _: torch.Generator) -> Batch:
        return self.draw.train.batch(ids)

    def stream(self, batch: int, *, seed: int) -> ShuffledLoader:
        return ShuffledLoader(self.load, size=self.size, batch=batch, seed=seed)


class Classification(InMemory):
    """Labels from 0 to ``classes`` - 1 under the cross-entropy; what counts is the share of test labels not guessed."""

    classes: ClassVar[int]

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {"error": Metric(label="test error", better="low", chance=1 - 1 / self.classes, percent=True)}

    def reference_batch(self) -> Batch:
        """What the reference was trained on."""
        return self.draw.reference.batch(torch.arange(len(self.draw.reference.y)))

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        outputs = model(batch["x"])
        return Losses(cross_entropy(outputs, batch["y"], reduction="none"), outputs=outputs)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        guessed = model(self.draw.test.x.to(device)).argmax(-1)
        return {"error": float((guessed != self.draw.test.y.to(device)).double().mean())}


def clean(x: Tensor, y: Tensor) -> Samples:
    return Samples(x, y, torch.zeros(len(y), dtype=torch.bool))


def corrupted(x: Tensor, y: Tensor, noise: float, classes: int, chance: torch.Generator) -> Samples:
    """Samples of which a share has its label replaced by another class, uniformly."""
    wrong = torch.rand(len(y), generator=chance) < noise
    shift = torch.randint(1, classes, (len(y),), generator=chance)  # never back to the right class
    return Samples(x, torch.where(wrong, (y + shift) % classes, y), wrong)


def check_noise(task: str, *shares: float) -> None:
    for noise in shares:
        if not 0 <= noise <= 1:
            raise UserError(f"{task} needs a noise within 0 and 1, got {noise:g}")


def frozen_linear(weight: Tensor, bias: Tensor) -> nn.Module:
    """A linear layer with weights ``[outputs, inputs]``, in evaluation mode."""
    model = nn.utils.skip_init(nn.Linear, *reversed(weight.shape))  # draws no weights from the global generator
    model.load_state_dict({"weight": weight, "bias": bias})
    return model.eval().requires_grad_(False)


def logistic_regression(task: str, x: Tensor, y: Tensor, classes: int, c: float) -> nn.Module:
    """A frozen linear layer with the weights of scikit-learn's LogisticRegression, two classes included.

    Raises:
        UserError: not every class is among the labels.
    """
    from sklearn.linear_model import LogisticRegression

    if len(y.unique()) < classes:
        raise UserError(
            f"the {len(y)} samples of the reference of {task} show only {len(y.unique())} of {classes} classes: use a "
            f"larger reference_share, or group rare classes"
        )
    fitted = LogisticRegression(C=c, max_iter=2000).fit(x.numpy(), y.numpy())
    weight, bias = (torch.from_numpy(part).float() for part in (fitted.coef_, fitted.intercept_))
    if classes == 2:  # of the second one alone
        weight, bias = torch.cat([0 * weight, weight]), torch.cat([0 * bias, bias])
    return frozen_linear(weight, bias)


def check_sizes(task: str, samples: int, reference_samples: int, total: int, kind: str) -> None:
    if min(samples, reference_samples) < 1 or samples + reference_samples >= total:
        raise UserError(
            f"{task} has {total} {kind} and needs some to test on, got samples={samples} and "
            f"reference_samples={reference_samples}: use at least 1 of each and fewer in all"
        )
