"""How likely a label is right, by scores of models that did not learn it: a mixture fitted to the noisy labels.

A label is right with probability 1 - e, and then the models' answer to it is calibrated; or it is wrong with
probability e, and then any class. The share e of wrong labels and the inverse temperature of every model's scores
maximise the likelihood of the labels as they are, so no clean label is needed and no knob is left. Weighting by the
posterior is importance weighting for label noise (Liu & Tao 2016, "Classification with noisy labels by importance
reweighting", section 4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steering.errors import UserError

LEAST_WEIGHT = 1e-4  # of a sample that is surely wrong, so that no class is ever without any weight
MOST_FITTED = 1 << 24  # scores that two numbers are fitted to; of more, every k-th sample
SCALES, NOISES = (0.0, 8.0), (0.0, 0.8)  # bounds of the inverse temperatures and of e
UNIFORM = 0.99  # share of the samples that stays effective where weights say nothing


@dataclass(frozen=True)
class Posterior:
    """The fitted mixture ``(1 - noise) softmax(sum over models of scale * scores) + noise / classes``.

    Attributes:
        scales: inverse temperature of every model's scores, 0 for one that knows nothing of these labels.
        noise: share of the labels that are wrong, e.
        classes: number of classes, or of pairs in a block.
        log_likelihood: mean over the labels, in nats; minus it is the profile loss that arms are compared by.
    """

    scales: tuple[float, ...]
    noise: float
    classes: int
    log_likelihood: float

    def __call__(self, scores: "Tensor | Sequence[Tensor]", labels: Tensor) -> Tensor:
        """The probability that each label is right, ``[n]`` float64, of scores ``[n, classes]`` of every model."""
        return self.likelihoods(scores, labels)[0]

    def likelihoods(self, scores: "Tensor | Sequence[Tensor]", labels: Tensor) -> tuple[Tensor, Tensor]:
        """The probability that each label is right, and the log likelihood of each label as it is, ``[n]`` float64."""
        scores = _checked(scores, labels)
        right = (1 - self.noise) * _log_probability(scores, labels, torch.tensor(self.scales).double()).exp()
        either = right + self.noise / self.classes
        return right / either, either.log()


def fit_posterior(scores: "Tensor | Sequence[Tensor]", labels: Tensor) -> Posterior:
    """Fits the share of wrong labels and the temperature of each model's scores by maximum likelihood.

    With scores of a reference alone, a reference that knows little is taken for labels that are wrong. Beside it,
    scores of targets that were trained without the sample (cross-fitted) tell the two apart.

    Args:
        scores: ``[n, classes]`` before softmax, of a model that was not trained on these labels, or several of those.
        labels: ``[n]`` int64, as they are.

    Raises:
        UserError: shapes that do not fit, labels outside the classes, or scores that are not finite.

    Example:
        >>> scores = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) * 3
        >>> right = scores.softmax(-1).multinomial(1, generator=torch.Generator().manual_seed(1))[:, 0]
        >>> labels = torch.where(torch.arange(4000) < 1000, (right + 1) % 5, right)  # a quarter is wrong
        >>> posterior = fit_posterior(scores, labels)
        >>> round(posterior.noise, 1), round(posterior.scales[0], 1)
        (0.3, 1.1)
    """
    scores = _checked(scores, labels)
    step = math.ceil(sum(x.numel() for x in scores) / MOST_FITTED)
    classes = scores[0].shape[1]
    models = [x[::step] for x in scores]
    values, likelihood = maximise(lambda scales: _log_probability(models, labels[::step], scales), len(models), classes)
    return Posterior(tuple(values[:-1].tolist()), float(values[-1]), classes, likelihood)


def maximise(log_probability, models: int, classes: int) -> tuple[np.ndarray, float]:
    """The scales of so many models and the noise that make labels most likely, and that mean log likelihood.

    Args:
        log_probability: of ``[models]`` scales, float64 with gradient, to that of every label, ``[n]``.
    """

    from scipy.optimize import minimize  # slow to import

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        noise = point[-1]
        mean = -((1 - noise) * log_probability(point[:-1]).exp() + noise / classes).log().mean()
        (gradient,) = torch.autograd.grad(mean, point)
        return mean.item(), gradient.numpy()

    # A mixture may have several maxima: sure or unsure models, many or few wrong labels, one model or the other.
    starts = [[scale] * models + [noise] for scale, noise in ((1.0, 0.05), (0.3, 0.3), (2.0, 0.5), (0.02, 0.1))]
    starts += [[1.0 if k == j else 0.02 for k in range(models)] + [0.2] for j in range(models) if models > 1]
    bounds = [SCALES] * models + [NOISES]
    fits = [minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
    best = min(fits, key=lambda fit: fit.fun)
    return best.x, -float(best.fun)


def balanced(weights: Tensor, groups: Tensor | None) -> Tensor:
    """Weights ``[n]`` whose mean is 1 within each of the groups ``[n]``, so that every class keeps its share.

    Example:
        >>> balanced(torch.tensor([1.0, 3.0, 0.1, 0.1]), torch.tensor([0, 0, 1, 1]))
        tensor([0.5000, 1.5000, 1.0000, 1.0000])
    """
    weights = weights.clamp(min=LEAST_WEIGHT)
    if groups is None:
        return weights / weights.mean()
    _, group = groups.unique(return_inverse=True)
    counts = group.bincount()
    sums = weights.new_zeros(len(counts)).index_add(0, group, weights)
    return weights * (counts / sums)[group]


def effective_share(weights: Tensor) -> float:
    """The effective sample size ``(sum w)^2 / sum w^2`` of weights ``[n]``, as a share of n."""
    return float(weights.sum().square() / weights.square().sum() / len(weights))


def in_words(posterior: Posterior, right: Tensor, weights: Tensor, what: str = "labels") -> str:
    """What was estimated, in a sentence, of the posterior ``[n]`` that each label is right and the weights ``[n]``."""
    if effective_share(weights) > UNIFORM:
        informed = posterior.log_likelihood + math.log(posterior.classes) > 0.02  # nats above guessing
        if not informed:
            return f"the reference knows nothing about these {what}: ignored"
        return f"{what} look clean to this reference: training plainly"
    wrong = 1 - right.double()
    left = float((weights.double() * wrong).sum() / weights.double().sum())
    return f"{100 * wrong.mean():.0f} % of {what} look wrong; {100 * left:.0f} % of the weight is left on them"


def _log_probability(scores: Sequence[Tensor], labels: Tensor, scales: Tensor) -> Tensor:
    """That of every label by the models together, ``[n]`` float64."""
    joint = sum(scale * x.double() for scale, x in zip(scales, scores, strict=True))
    assert isinstance(joint, Tensor)
    return joint.log_softmax(-1).gather(-1, labels[:, None])[:, 0]


def _checked(scores: "Tensor | Sequence[Tensor]", labels: Tensor) -> Sequence[Tensor]:
    """The scores of every model, if they are of these labels."""
    scores = [scores] if isinstance(scores, Tensor) else list(scores)
    shapes = {tuple(x.shape) for x in scores}
    if len(shapes) != 1 or any(x.dim() != 2 for x in scores) or labels.shape != scores[0].shape[:1] or not len(labels):
        raise UserError(
            f"a posterior needs scores [n, classes] of every model and labels [n], got {sorted(shapes)} and "
            f"{list(labels.shape)}"
        )
    classes = scores[0].shape[1]
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"labels are whole numbers from 0 to {classes - 1}, one of the classes that scores are of, got "
            f"{labels.dtype} from {labels.min().item()} to {labels.max().item()}"
        )
    if not all(x.isfinite().all() for x in scores):
        raise UserError("scores must be finite numbers, got NaN or infinity: clamp log probabilities of 0, at -100 say")
    return scores
