"""The choice of beta on a validation split, and a head that is fitted anew for each."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

from steering.curvature import set_beta
from steering.errors import UserError
from steering.theory_checks.curvature.small import Split, outputs

MOST = 200  # values of beta


@dataclass(frozen=True)
class Choice:
    """What a search over beta saw and chose."""

    betas: list[float]  # all that were tried, in falling order; the first is 1
    validation: list[float]  # score of each on the validation split, lower is better
    chosen: float  # of the lowest score, the one nearest to 1


def choose(betas: Sequence[float], score: Callable[[float], float]) -> Choice:
    """Scores every beta and the ReLU, which is always among them, once; a lower score is better."""
    tried = with_relu(betas)
    scores = [score(beta) for beta in tried]
    return Choice(tried, scores, tried[scores.index(min(scores))])


def with_relu(betas: Sequence[float]) -> list[float]:
    """Every beta once, and 1, in falling order.

    Raises:
        UserError: one is not within 0 and 1.
    """
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
        numbers = [float(part) for part in text.split(":" if ":" in text else ",")]
        if ":" in text:
            first, last, step = numbers
            if not step > 0 or last < first:
                raise ValueError
            numbers = [round(first + index * step, 10) for index in range(int((last - first) / step + 1e-9) + 1)]
    except ValueError:
        raise UserError(f"--betas takes 0.5,0.7,0.9 or first:last:step such as 0.5:1:0.05, got {text!r}") from None
    if len(numbers) > MOST:
        raise UserError(f"--betas {text} are {len(numbers)} values: use at most {MOST}")
    return with_relu(numbers)


def probe_error(backbone: nn.Module, beta: float, training: Split, evaluated: Split) -> float:
    """Error of a new head, logistic regression (C = 1) on the features that a backbone gives at ``beta``.

    Args:
        backbone: gives features ``[n, width]``; its units keep this beta.
        beta: of its units.
        training, evaluated: samples that the head is fitted to, and whose share in a wrong class is the error.
    """
    set_beta(backbone, beta)
    features = [outputs(backbone, samples.x).double().numpy() for samples in (training, evaluated)]
    head = LogisticRegression(max_iter=1000)
    with warnings.catch_warnings():  # an unfinished fit is a worse head, which the validation split sees
        warnings.simplefilter("ignore", ConvergenceWarning)
        head.fit(features[0], training.y.numpy())
    return float((torch.as_tensor(head.predict(features[1])) != evaluated.y).double().mean())
