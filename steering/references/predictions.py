"""Losses of what a fitted estimator predicts, in double precision."""

from typing import Any

import numpy as np

from steering.errors import UserError


def prediction_losses(estimator: Any, x: Any, y: Any) -> np.ndarray:
    """The loss of every sample under a fitted estimator, ``[n]`` float64.

    Args:
        estimator: a classifier with ``predict_proba``: the log loss -log p(y | x), with p no smaller than the machine
            epsilon of its type, as in scikit-learn's ``log_loss``. Else a regressor with ``predict``: squared errors,
            summed where there are several outputs.
        x: ``[n, ...]``, whatever the estimator predicts from.
        y: labels ``[n]`` of any type, or numbers ``[n, ...]``.

    Raises:
        UserError: the estimator is not fitted, has never seen a label, or predicts another shape.

    Example:
        >>> from sklearn.linear_model import LinearRegression
        >>> prediction_losses(LinearRegression().fit([[0.0], [1]], [0.0, 1]), [[2.0]], [5.0]).round(4)
        array([9.])
    """
    predictions, y = predicted(estimator, x), np.asarray(y)
    if hasattr(estimator, "predict_proba"):
        return log_losses(predictions, y, getattr(estimator, "classes_", np.arange(predictions.shape[1])))
    return squared_errors(predictions, y)


def predicted(estimator: Any, x: Any) -> np.ndarray:
    """Probabilities ``[n, classes]`` where the estimator knows some, else predictions ``[n, ...]``.

    Raises:
        UserError: it is not fitted.
    """
    predict = getattr(estimator, "predict_proba", None) or estimator.predict
    try:
        return np.asarray(predict(x))
    except Exception as error:
        if type(error).__name__ != "NotFittedError":  # scikit-learn's, which it would be slow to import for this
            raise
        raise UserError(f"a reference is fitted before it answers, got {estimator} as it was made") from None


def log_losses(probabilities: np.ndarray, y: np.ndarray, classes: Any) -> np.ndarray:
    """Log losses ``[n]`` from probabilities ``[n, classes]``.

    Raises:
        UserError: a label is none of the classes.
    """
    classes = np.asarray(classes)
    try:
        column = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    except TypeError:  # text among numbers
        column = np.zeros(len(y), int)
    unseen = classes[column] != y
    if np.any(unseen):
        where = np.flatnonzero(np.broadcast_to(unseen, len(y)))
        raise UserError(
            f"the reference never saw the label {y[where[0]]} of samples {where[:3].tolist()}: fit it on all classes"
        )
    chosen = probabilities[np.arange(len(y)), column]
    return -np.log(chosen.clip(min=np.finfo(probabilities.dtype).eps)).astype(np.float64)


def squared_errors(predictions: np.ndarray, y: np.ndarray, name: str = "targets") -> np.ndarray:
    """Squared errors ``[n]``, summed over the outputs of a sample.

    Raises:
        UserError: predictions and targets are of unlike shapes.
    """
    if predictions.size != y.size:
        raise UserError(f"an estimator predicts {name} of shape {list(y.shape)}, got {list(predictions.shape)}")
    return np.square((predictions.reshape(len(y), -1) - y.reshape(len(y), -1)).astype(np.float64)).sum(1)
