"""scikit-learn: any estimator that takes ``sample_weight`` as target, any fitted one as reference."""

import copy
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, RegressorMixin, clone
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import check_cv, cross_val_predict
from sklearn.utils import indexable
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _num_samples, check_is_fitted, column_or_1d, has_fit_parameter

from steering.engine import Steerer
from steering.errors import UserError
from steering.references.predictions import log_losses, predicted, prediction_losses, squared_errors
from steering.rules.rule import Rule


def _has(name: str) -> Any:
    """Whether the target has a method, fitted or not yet."""
    return available_if(lambda self: hasattr(getattr(self, "estimator_", None) or self._target(), name))


class _Steered(MetaEstimatorMixin, BaseEstimator):
    """A target that is fitted, weighed by a rule and fitted again, for some rounds."""

    def __init__(
        self,
        estimator: Any = None,
        reference: Any = None,
        *,
        rule: str | Rule | None = None,
        reference_scale: Any = 1.0,
        rounds: int = 3,
        cv: Any = 5,
    ):
        self.estimator, self.reference, self.rule = estimator, reference, rule
        self.reference_scale, self.rounds, self.cv = reference_scale, rounds, cv

    _default: type
    _rule: str

    def fit(self, X: Any, y: Any, sample_weight: Any = None, reference_losses: Any = None):
        """Fits the target by iterated reweighting.

        Args:
            X: ``[n, ...]``, whatever target and reference take.
            y: ``[n]``.
            sample_weight: ``[n]``, by which the weights of the rule are multiplied.
            reference_losses: ``[n]``, in place of a reference; ``GridSearchCV(...).fit(X, y, reference_losses=...)``
                gives every fold its share.

        Raises:
            UserError: lengths differ, or the target takes no ``sample_weight``.
        """
        if y is None:
            raise UserError("this estimator requires y to be passed, but the target y is None")
        X, y = indexable(X, y)
        y = self._checked(y)
        given = np.ones(_num_samples(X)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        reference = self._reference_losses(X, y, reference_losses)
        if given.shape != (_num_samples(X),):
            raise UserError(f"sample_weight is one number for each of {_num_samples(X)} samples, got {given.shape}")
        if not (isinstance(self.rounds, int | np.integer) and self.rounds >= 1):
            raise UserError(f"rounds is a whole number of at least 1, got {self.rounds!r}")
        steerer = Steerer(self.rule or self._rule, reference_scale=self.reference_scale, population=_num_samples(X))
        self.weights_ = np.ones(_num_samples(X))
        reference = None if reference is None else torch.from_numpy(reference)
        for number in range(1, self.rounds + 1):
            self.losses_ = self._losses(X, y, given * self.weights_)
            answer = steerer(torch.from_numpy(self.losses_), reference).weights.numpy()
            self.weights_ = answer if number == 1 else self.weights_ + (answer - self.weights_) / number
        self.cautions_ = steerer.cautions()
        self.estimator_ = self._fitted(X, y, given * self.weights_)
        for name in ("n_features_in_", "feature_names_in_", "classes_"):
            if hasattr(self.estimator_, name):
                setattr(self, name, getattr(self.estimator_, name))
        return self

    def predict(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.estimator_.predict(X)

    def _target(self) -> Any:
        return self._default() if self.estimator is None else self.estimator

    def _fitted(self, X: Any, y: Any, weights: np.ndarray) -> Any:
        target: Any = clone(self._target())
        return target.fit(X, y, **{_weight_parameter(target): weights})

    def _losses(self, X: Any, y: Any, weights: np.ndarray) -> np.ndarray:
        """Losses ``[n]`` of the target that is fitted with these weights: on what it saw, or on folds it did not."""
        if isinstance(self.cv, str):
            if self.cv != "in_sample":
                raise UserError(f"cv is a number of folds, a splitter, or 'in_sample', got {self.cv!r}")
            fitted = self._fitted(X, y, weights)
            return self._losses_of(predicted(fitted, X), y)
        target = clone(self._target())
        method = "predict_proba" if hasattr(target, "predict_proba") else "predict"
        folds = check_cv(self.cv, y, classifier=hasattr(target, "predict_proba"))
        options = {"cv": folds, "method": method, "params": {_weight_parameter(target): weights}}
        return self._losses_of(np.asarray(cross_val_predict(target, X, y, **options)), y)

    def _reference_losses(self, X: Any, y: Any, losses: Any) -> np.ndarray | None:
        if losses is None:
            return None if self.reference is None else prediction_losses(self.reference, X, y)
        losses = np.asarray(losses, dtype=np.float64)
        if losses.shape != (_num_samples(X),):
            raise UserError(
                f"reference_losses are one number for each of {_num_samples(X)} samples, got shape {list(losses.shape)}"
            )
        return losses

    def _checked(self, y: Any) -> Any:
        raise NotImplementedError

    def _losses_of(self, predictions: np.ndarray, y: Any) -> np.ndarray:
        raise NotImplementedError

    def __sklearn_clone__(self):
        """A clone whose reference is the same fitted one: scikit-learn would hand on one that is not fitted."""
        bare = copy.copy(self)
        bare.reference = None
        made: Any = super(_Steered, bare).__sklearn_clone__()
        made.reference = self.reference
        return made

    def __sklearn_tags__(self):
        from sklearn.utils import get_tags  # from 1.6 on, which alone asks for tags

        tags, target = super().__sklearn_tags__(), get_tags(self._target())
        tags.input_tags = target.input_tags
        tags.target_tags.multi_output = target.target_tags.multi_output
        tags.non_deterministic = target.non_deterministic
        if tags.classifier_tags is not None and target.classifier_tags is not None:
            tags.classifier_tags = target.classifier_tags
        if tags.regressor_tags is not None and target.regressor_tags is not None:
            tags.regressor_tags = target.regressor_tags
        return tags


class SteeredClassifier(ClassifierMixin, _Steered):
    """A classifier that learns what is still to be learned: large log loss, and small log loss of the reference.

    Each round fits the target, takes its losses, and weighs the samples by the rule over loss - reference_scale *
    reference loss (DRRho, Wei et al. 2025, section 3). The next fit has the mean of the weights of all rounds so far:
    this is fictitious play (Brown 1951) of the game between target and weights, while weights of the last round alone
    swing between what was just learned and what was just left out. The mean of all rounds fits ``estimator_``.

    Args:
        estimator: the target, with ``predict_proba`` and ``sample_weight`` (a Pipeline hands it to its last step);
            None is LogisticRegression.
        reference: a fitted classifier, which stays fitted when this is cloned. Fit it on other samples. None steers by
            the loss alone (DRO).
        rule: ``"cvar(alpha=0.7)"`` if None, any other by its constructor call, or a Rule. Trees with pure leaves have
            losses from 0 to 36, which KL at a small temperature makes too much of, and CVaR does not.
        reference_scale: a number or ``"auto"``, as of Steerer.
        rounds: of fitting and weighing, before the last fit.
        cv: on what the target's losses are taken. A number of folds or a splitter: on samples that the target did not
            see, which is what a flexible one (trees, forests, neighbours) needs: its losses on its own samples are all
            near 0, so that the reference alone would choose. ``"in_sample"``: on its own samples, as in training by
            gradient steps; it needs a fold-th of the fits, and suits linear models.

    Attributes:
        estimator_: the target, fitted.
        weights_: ``[n]``, its weights by the rule, the mean of all rounds; 1 is the weight in a plain average.
        losses_: ``[n]`` of the last round.
        cautions_: what they warn of, one line each.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> reference = LogisticRegression(C=0.01, max_iter=500).fit(X[:200], y[:200])
        >>> target = LogisticRegression(C=0.01, max_iter=500)
        >>> model = SteeredClassifier(target, reference, rounds=1, cv="in_sample").fit(X[200:600], y[200:600])
        >>> round(float(model.weights_.mean()), 6)
        1.0
    """

    _default, _rule = LogisticRegression, "cvar(alpha=0.7)"

    @_has("predict_proba")
    def predict_proba(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.estimator_.predict_proba(X)

    @_has("predict_log_proba")
    def predict_log_proba(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.estimator_.predict_log_proba(X)

    @_has("decision_function")
    def decision_function(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.estimator_.decision_function(X)

    def _checked(self, y: Any) -> np.ndarray:
        check_classification_targets(y)
        if not hasattr(self._target(), "predict_proba"):
            raise UserError(
                f"a log loss needs predict_proba, which {self._target()} has not: wrap or set it up for that"
            )
        return column_or_1d(y, warn=True)

    def _losses_of(self, predictions: np.ndarray, y: np.ndarray) -> np.ndarray:
        return log_losses(predictions, y, np.unique(y))


class SteeredRegressor(RegressorMixin, _Steered):
    """A regressor that learns what is still to be learned: large squared error, and small one of the reference.

    As ``SteeredClassifier``, but for the loss, which is in squared units of y: a temperature has to be in these
    too. The default, ``"cvar(alpha=0.9)"``, has no unit.

    Args:
        estimator: the target, with ``sample_weight``; None is LinearRegression.
        reference: a fitted regressor, which stays fitted when this is cloned. Fit it on other samples.
        rule, reference_scale, rounds, cv: as of ``SteeredClassifier``.
    """

    _default, _rule = LinearRegression, "cvar(alpha=0.9)"

    def _checked(self, y: Any) -> np.ndarray:
        return np.asarray(y, dtype=np.float64)

    def _losses_of(self, predictions: np.ndarray, y: np.ndarray) -> np.ndarray:
        return squared_errors(predictions, y)


def _weight_parameter(estimator: Any) -> str:
    """The name by which ``fit`` takes sample weights: in a pipeline that of its last step.

    Raises:
        UserError: it takes none.
    """
    if hasattr(estimator, "steps"):
        name, last = estimator.steps[-1]
        return f"{name}__{_weight_parameter(last)}"
    if not has_fit_parameter(estimator, "sample_weight"):
        raise UserError(f"a target takes sample_weight in fit, which {estimator} does not: choose another estimator")
    return "sample_weight"
