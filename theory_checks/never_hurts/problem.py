"""Small classification problems whose wrong labels and references are bad in known ways."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.errors import UserError
from steering.settings import Metric, Recipe
from steering.task import Batch, Losses
from steering.tasks.digits import Digits, images
from steering.tasks.in_memory import Draw, InMemory, Samples, check_noise, check_sizes, clean, frozen_linear
from steering.training.seeds import generator

HIDDEN = 64  # units of the mlp
CLASSES, DIMENSIONS, CLOUDS = 6, 12, 2  # of a mixture: normal clouds with the identity as covariance, two a class
SPREAD = 0.9  # standard deviation of the clouds' centres
RAREST = 10**-1.5  # samples of the rarest class for one of the most frequent, where classes are imbalanced
TEST = 4000  # test samples of a mixture
UNSEEN = -8.0  # score of a class that the reference has never seen
LEAKED_C = 10.0  # weak regularisation: the reference learns the target's labels nearly by heart
SURE = 3.0  # times its scores

Noise = Literal["symmetric", "pair", "instance"]
Kind = Literal["own", "shuffled", "leaked", "sure"]


@dataclass(frozen=True)
class Problem(InMemory):
    """Digits of scikit-learn, or a mixture of normal clouds; a logistic regression on other samples as reference.

    Args:
        source: ``digits``, 10 classes, or ``mixture``, 6 classes of two clouds each in 12 dimensions.
        samples: training samples.
        noise: share of their labels that are wrong.
        noise_kind: ``symmetric``, any other class; ``pair``, the next class; ``instance``, by the features
            (Xia et al. 2020, "Part-dependent label noise", algorithm 2): some samples are nearly always wrong.
        imbalance: whether the classes of a mixture are unlike in frequency; the error is then the mean over classes.
        reference_samples: samples of the reference, none of which the target sees.
        reference_noise: share of the reference's labels that are wrong likewise.
        reference_c: its inverse strength of regularisation (C of scikit-learn's LogisticRegression).
        reference_kind: ``own``; ``shuffled``, which answers with the scores of another training sample; ``leaked``,
            fitted to the target's own training labels; ``sure``, its scores times 3.
        model: the target, ``linear`` or ``mlp`` (one hidden layer of 64).
        seed: of the draw; repetition s of a run uses seed + s.
    """

    source: Literal["digits", "mixture"] = "digits"
    samples: int = 400
    noise: float = 0.4
    noise_kind: Noise = "symmetric"
    imbalance: bool = False
    reference_samples: int = 100
    reference_noise: float = 0.0
    reference_c: float = 0.05
    reference_kind: Kind = "own"
    model: Literal["linear", "mlp"] = "linear"
    seed: int = 0

    def __post_init__(self):
        check_noise("a problem", self.noise, self.reference_noise)
        if self.imbalance and self.source == "digits":
            raise UserError("the classes of a mixture can be imbalanced, those of digits cannot: leave imbalance out")

    @property
    def recipe(self) -> Recipe:
        return Digits.recipe

    @property
    def classes(self) -> int:
        return 10 if self.source == "digits" else CLASSES

    @property
    def metrics(self) -> Mapping[str, Metric]:
        label = "balanced test error" if self.imbalance else "test error"
        return {"error": Metric(label=label, better="low", chance=1 - 1 / self.classes, percent=True)}

    def target(self) -> nn.Module:
        width = self.draw.train.x.shape[1]
        if self.model == "mlp":
            return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, self.classes))
        return nn.Linear(width, self.classes)

    def reference(self) -> Any:
        """A linear layer; of the shuffled kind a function of a batch."""
        leaked = self.reference_kind == "leaked"
        seen, strength = (self.draw.train, LEAKED_C) if leaked else (self.draw.reference, self.reference_c)
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(seen.x.numpy(), seen.y.numpy())
        weight = torch.zeros(self.classes, seen.x.shape[1])
        bias = torch.full((self.classes,), UNSEEN)
        weight[fitted.classes_], bias[fitted.classes_] = (
            torch.from_numpy(part).float() for part in (fitted.coef_, fitted.intercept_)
        )
        factor = SURE if self.reference_kind == "sure" else 1.0
        model = frozen_linear(factor * weight, factor * bias)
        if self.reference_kind != "shuffled":
            return model
        other = torch.randperm(self.samples, generator=generator(self.seed, "never hurts", "shuffled"))

        def shuffled(batch: Batch) -> Losses:
            scores = model(self.draw.train.x[other[batch.ids]])
            return Losses(cross_entropy(scores, batch["y"], reduction="none"), outputs=scores)

        return shuffled

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        outputs = model(batch["x"])
        return Losses(cross_entropy(outputs, batch["y"], reduction="none"), outputs=outputs)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        x, y, _ = self.draw.test
        wrong = (model(x).argmax(-1) != y).double()
        if not self.imbalance:
            return {"error": float(wrong.mean())}
        return {"error": float(torch.stack([wrong[y == label].mean() for label in y.unique()]).mean())}

    @cached_property
    def draw(self) -> Draw:
        chance = generator(self.seed, "never hurts", self.source)
        both = self.samples + self.reference_samples
        if self.source == "digits":
            x, y = images()
            check_sizes("digits", self.samples, self.reference_samples, len(y), "images")
            order = torch.randperm(len(y), generator=chance)
            x, y = x[order], y[order]
        else:
            x, y = _mixture(both + TEST, self.imbalance, chance)
        size = self.samples
        train = mislabelled(x[:size], y[:size], self.noise, self.noise_kind, self.classes, chance)
        seen = x[size:both], y[size:both]
        reference = mislabelled(*seen, self.reference_noise, self.noise_kind, self.classes, chance)
        return Draw(train, reference, clean(x[both:], y[both:]))


def mislabelled(x: Tensor, y: Tensor, noise: float, kind: Noise, classes: int, chance: torch.Generator) -> Samples:
    """Samples ``[n, d]`` of which about a share ``noise`` gets another label, as ``Problem`` says."""
    n, width = x.shape
    if kind == "instance":
        share = (noise + 0.1 * torch.randn(n, generator=chance)).clamp(0, 1) * (noise > 0)
        weight = torch.randn(classes, width, classes, generator=chance)
        standard = (x - x.mean(0)) / x.std(0).clamp(min=1e-3) / width**0.5
        scores = torch.einsum("nd,ndc->nc", standard, weight[y]).scatter(1, y[:, None], -torch.inf)
        other = scores.softmax(-1).multinomial(1, generator=chance)[:, 0]
    else:
        share = torch.full((n,), noise)
        shift = torch.randint(1, classes, (n,), generator=chance) if kind == "symmetric" else 1
        other = (y + shift) % classes
    wrong = torch.rand(n, generator=chance) < share
    return Samples(x, torch.where(wrong, other, y), wrong)


def _mixture(n: int, imbalance: bool, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points ``[n, d]`` of clouds whose centres are drawn anew for every seed, and their classes ``[n]``."""
    centres = SPREAD * torch.randn(CLASSES, CLOUDS, DIMENSIONS, generator=chance)
    frequency = torch.tensor([RAREST if imbalance else 1.0]) ** torch.linspace(0, 1, CLASSES)
    y = frequency.multinomial(n, replacement=True, generator=chance)
    cloud = torch.randint(CLOUDS, (n,), generator=chance)
    return centres[y, cloud] + torch.randn(n, DIMENSIONS, generator=chance), y
