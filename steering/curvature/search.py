"""The choice of beta on a validation split, and a head that is fitted anew for each."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from steering.curvature.classification import Split, answers
from steering.curvature.unit import set_beta
from steering.errors import UserError

MOST = 200  # values of beta


@dataclass(frozen=True)
class Choice:
    """What a search over beta saw and chose.

    Attributes:
        betas: all that were tried, in falling order; the first is 1.
        scores: of each on the validation split, lower is better.
        chosen: of the lowest score, the one nearest to 1.
    """

    betas: list[float]
    scores: list[float]
    chosen: float


def choose(betas: Sequence[float], score: Callable[[float], float]) -> Choice:
    """Scores every beta and the ReLU, which is always among them.

    Args:
        betas: within 0 and 1.
        score: of a beta on the validation split, lower is better.

    Raises:
        UserError: a beta is out of range.
    """
    tried = with_relu(betas)
    scores = [score(beta) for beta in tried]
    return Choice(tried, scores, tried[scores.index(min(scores))])


def with_relu(betas: Sequence[float]) -> list[float]:
    """Every beta once, and 1, in falling order."""
    for beta in betas:
        if not 0 <= beta <= 1:
            raise UserError(f"beta is within 0 and 1, got {beta:g}")
    return sorted({1.0, *betas}, reverse=True)


def parse(text: str) -> list[float]:
    """``0.5,0.9`` or ``first:last:step`` as numbers, and 1.

    Raises:
        UserError: it is neither, or one is out of range.
    """
    try:
        numbers = _range(text) if ":" in text else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--betas takes 0.5,0.7,0.9 or first:last:step such as 0.5:1:0.05, got {text!r}") from None
    if len(numbers) > MOST:
        raise UserError(f"--betas {text} are {len(numbers)} values: use at most {MOST}")
    return with_relu(numbers)


def _range(text: str) -> list[float]:
    first, last, step = (float(part) for part in text.split(":"))
    if not step > 0 or last < first:
        raise ValueError
    return [round(first + place * step, 10) for place in range(int((last - first) / step + 1e-9) + 1)]


class Probe:
    """Logistic regression on the features of a backbone: a new head, which needs no learning rate.

    Args:
        backbone: gives features ``[n, width]``; its units have whatever beta they have now.
        samples: to fit.
        strength: scikit-learn's C, the inverse of the L2 penalty.
    """

    def __init__(self, backbone: nn.Module, samples: Split, strength: float = 1.0):
        self.model = LogisticRegression(C=strength, max_iter=1000)
        with warnings.catch_warnings():  # an unfinished fit is a worse head, which the validation split sees
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(_features(backbone, samples.x), samples.y.numpy())

    def error(self, backbone: nn.Module, samples: Split) -> float:
        """Share of samples in a wrong class."""
        guessed = torch.as_tensor(self.model.predict(_features(backbone, samples.x)))
        return float((guessed != samples.y).double().mean())

    @property
    def parameters(self) -> int:
        return np.size(self.model.coef_) + np.size(self.model.intercept_)


def search_with_probe(backbone: nn.Module, betas: Sequence[float], training: Split, validation: Split) -> Choice:
    """Chooses beta of a backbone's units by the validation error of a head that is fitted anew for every beta."""

    def score(beta: float) -> float:
        set_beta(backbone, beta)
        return Probe(backbone, training).error(backbone, validation)

    return choose(betas, score)


def _features(backbone: nn.Module, x: Tensor):
    return answers(backbone, x).to(torch.float64).numpy()
