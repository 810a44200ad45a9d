"""Base weights of samples, from what a reference says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from steering.auto.pair_posterior import fit_pair_posterior
from steering.auto.posterior import balanced, fit_posterior, in_words
from steering.contrastive.pairs import Pairs
from steering.errors import UserError


@dataclass(frozen=True)
class FittedWeights:
    """Weights, and how they came about.

    Attributes:
        weights: ``[n]`` float64, 1 on average, within every class where there are classes.
        sentence: what was estimated.
    """

    weights: Tensor
    sentence: str


def fit_weights(scores: "Tensor | Sequence[Tensor] | Pairs", labels: Tensor | None, seed: int = 0) -> FittedWeights:
    """Weights by the posterior that a label, or a pair, is right, so that every class keeps its share.

    Args:
        scores: ``[n, classes]`` before softmax, of the reference or of several models; or the reference's Pairs.
        labels: ``[n]`` int64, of scores.
        seed: of the blocks that pairs are divided into.

    Raises:
        UserError: shapes that do not fit, or numbers that are not finite.
    """
    if isinstance(scores, Pairs):
        fitted = fit_pair_posterior(scores, seed=seed)
        weights = balanced(fitted.right, None)
        return FittedWeights(weights, in_words(fitted.mixture, fitted.right, weights, "pairs"))
    if labels is None:
        raise UserError("scores of classes need the labels they are judged by: fit(scores, labels)")
    posterior = fit_posterior(scores, labels)
    right = posterior(scores, labels)
    weights = balanced(right, labels)
    return FittedWeights(weights, in_words(posterior, right, weights))
