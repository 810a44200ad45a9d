"""Gradient-boosted trees: a custom objective for XGBoost and LightGBM that is weighed by a rule in every round."""

from typing import Any, Literal

import numpy as np
import torch
from scipy.special import expit, softmax

from steering.engine import Steerer
from steering.errors import UserError
from steering.rules.rule import Rule

Kind = Literal["binary", "multiclass", "regression"]


class SteeredObjective:
    """Gradients and hessians of every sample times its weight by a rule over loss - scale * reference loss.

    One object serves both libraries, by their own training functions (``xgboost.train(obj=...)``,
    ``lightgbm.train({"objective": ...})``) and by their scikit-learn classes (``objective=...``). Weights are found
    anew in every round, over all training samples, and multiplied by the sample weights of the data. As with any custom
    objective, predictions are raw scores: ``scipy.special.expit`` or ``softmax`` makes probabilities of them, and the
    scores begin at ``base_score`` (XGBoost) or 0 (LightGBM).

    Args:
        kind: ``"binary"`` (labels 0 and 1, log loss), ``"multiclass"`` (labels from 0 on, log loss of the softmax) or
            ``"regression"`` (squared error).
        reference_losses: ``[n]`` of the training samples in their order
            (``steering.references.predictions.prediction_losses(reference, X, y)``); None steers by the loss alone.
        rule: by its constructor call, or a Rule.
        reference_scale: a number or ``"auto"``, as of Steerer.

    Attributes:
        weights: ``[n]`` of the last round; 1 is the weight in a plain average.

    Example:
        >>> objective = SteeredObjective("binary", reference_losses=[0.1, 2.0], rule="kl(temperature=1)")
        >>> gradient, hessian = objective(np.array([1, 0]), np.zeros(2))
        >>> (gradient / [-0.5, 0.5]).round(2), objective.weights.round(2)
        (array([1.74, 0.26]), array([1.74, 0.26]))
    """

    def __init__(
        self,
        kind: Kind = "binary",
        *,
        reference_losses: Any = None,
        rule: str | Rule = "kl(temperature=1)",
        reference_scale: Any = 1.0,
    ):
        if kind not in ("binary", "multiclass", "regression"):
            raise UserError(f"an objective is 'binary', 'multiclass' or 'regression', got {kind!r}")
        self.kind = kind
        self.reference_losses = None if reference_losses is None else np.asarray(reference_losses, dtype=np.float64)
        self.steerer = Steerer(rule, reference_scale=reference_scale)
        self.weights: np.ndarray | None = None

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Gradients and hessians, shaped like the predictions.

        Args:
            first, second: predictions and the data set (training functions), or labels and predictions (classes).
            sample_weight: ``[n]``, given by the classes.

        Raises:
            UserError: the reference's losses are of more or fewer samples, or labels do not fit the kind.
        """
        y, predictions = np.asarray(first), second
        if hasattr(second, "get_label"):
            y, predictions, sample_weight = second.get_label(), first, second.get_weight()
        y, predictions = np.asarray(y, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
        losses, gradient, hessian = self._derivatives(y, predictions)
        if self.reference_losses is not None and self.reference_losses.shape != losses.shape:
            raise UserError(
                f"reference_losses are one number for each of {len(y)} training samples, got shape "
                f"{list(self.reference_losses.shape)}"
            )
        reference = None if self.reference_losses is None else torch.from_numpy(self.reference_losses)
        self.weights = weights = self.steerer(torch.from_numpy(losses), reference).weights.numpy()
        if sample_weight is not None and np.size(sample_weight):
            weights = weights * np.asarray(sample_weight)
        weights = weights.reshape(-1, *[1] * (predictions.ndim - 1))
        return gradient * weights, hessian * weights

    def __deepcopy__(self, _: dict) -> "SteeredObjective":
        return self  # LightGBM copies its settings, and the weights shall be seen here

    def _derivatives(self, y: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Losses ``[n]``, and by the predictions their first and second derivatives, as XGBoost has them."""
        if self.kind == "regression":
            return np.square(predictions - y), predictions - y, np.ones_like(predictions)
        classes = predictions.shape[1] if predictions.ndim == 2 else 2
        if (predictions.ndim == 2) != (self.kind == "multiclass") or not np.isin(y, np.arange(classes)).all():
            raise UserError(
                f"a {self.kind} objective has labels from 0 to {classes - 1} and scores of each class (of one, where "
                f"binary), got labels from {y.min():g} to {y.max():g} and scores of shape {list(predictions.shape)}"
            )
        if self.kind == "binary":
            p = expit(predictions)
            return np.logaddexp(0, np.where(y == 1, -predictions, predictions)), p - y, (p * (1 - p)).clip(1e-16)
        p, rows, labels = softmax(predictions, 1), np.arange(len(y)), y.astype(int)
        losses = -np.log(p[rows, labels].clip(np.finfo(p.dtype).tiny))
        return losses, p - np.eye(classes)[labels], (2 * p * (1 - p)).clip(1e-16)
