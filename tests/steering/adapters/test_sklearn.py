"""scikit-learn: weights against those by hand, clones, grids and scikit-learn's own checks."""

from typing import Any

import numpy as np
import pytest
import sklearn.base
from scipy.special import logsumexp
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator

from steering import UserError
from steering.adapters.sklearn import SteeredClassifier, SteeredRegressor
from steering.references.predictions import prediction_losses

clone: Any = sklearn.base.clone  # of the type that it is given
X, Y = load_digits(return_X_y=True)
REFERENCE = LogisticRegression(C=0.01, max_iter=1000).fit(X[:150], Y[:150])
TARGET = LogisticRegression(C=0.001, max_iter=1000)
SHARE = slice(150, 450)


def kl_by_hand(excess, temperature):
    return np.exp(excess / temperature - logsumexp(excess / temperature) + np.log(len(excess)))


def test_weights_and_coefficients_are_those_of_the_loop_by_hand():
    x, y = X[SHARE], Y[SHARE]
    rows, weights = np.arange(len(y)), np.ones(len(y))
    reference = -np.log(REFERENCE.predict_proba(x)[rows, y].clip(np.finfo(float).eps))
    for rounds, tolerance in ((1, 1e-12), (2, 1e-9)):  # a fit that ends early carries the last bits of its weights on
        model = SteeredClassifier(TARGET, REFERENCE, rule="kl(temperature=2)", rounds=rounds, cv="in_sample").fit(x, y)
        losses = -np.log(clone(TARGET).fit(x, y, sample_weight=weights).predict_proba(x)[rows, y])
        answer = kl_by_hand(losses - reference, 2)
        weights = answer if rounds == 1 else (weights + answer) / 2
        np.testing.assert_allclose(model.weights_, weights, rtol=tolerance)
        by_hand = clone(TARGET).fit(x, y, sample_weight=model.weights_)
        np.testing.assert_array_equal(model.predict_proba(x), by_hand.predict_proba(x))


def test_losses_of_a_regression_are_cross_fitted_as_by_hand():
    x, y = load_diabetes(return_X_y=True)
    folds, reference = KFold(3), Ridge().fit(x[:60], y[:60])
    model = SteeredRegressor(LinearRegression(), reference, rule="kl(temperature=5000)", rounds=1, cv=folds)
    model.fit(x[60:], y[60:])
    losses = (np.asarray(cross_val_predict(LinearRegression(), x[60:], y[60:], cv=folds)) - y[60:]) ** 2
    np.testing.assert_allclose(model.losses_, losses, rtol=1e-12)
    excess = losses - (reference.predict(x[60:]) - y[60:]) ** 2
    np.testing.assert_allclose(model.weights_, kl_by_hand(excess, 5000), rtol=1e-12)


def test_the_reference_survives_clone_pipelines_and_a_grid_over_rules():
    model = SteeredClassifier(make_pipeline(StandardScaler(), TARGET), REFERENCE, rounds=1, cv="in_sample")
    assert clone(make_pipeline(model)).steps[0][1].reference is REFERENCE
    grid = GridSearchCV(model, {"rule": ["kl(temperature=1)", "cvar(alpha=0.7)"], "reference_scale": [0, 1.0]}, cv=2)
    grid.fit(X[SHARE], Y[SHARE])
    assert grid.best_estimator_.reference is REFERENCE
    assert len(np.unique(grid.cv_results_["mean_test_score"])) > 1


@pytest.mark.slow
def test_reference_losses_are_shared_out_to_folds():
    losses = prediction_losses(REFERENCE, X[SHARE], Y[SHARE])
    model = SteeredClassifier(TARGET, rounds=1, cv="in_sample")
    grid = GridSearchCV(model, {"rule": ["uniform", "cvar(alpha=0.7)"]}, cv=2)
    grid.fit(X[SHARE], Y[SHARE], reference_losses=losses)
    with_reference = clone(model).set_params(reference=REFERENCE).fit(X[SHARE], Y[SHARE])
    alone = clone(model).fit(X[SHARE], Y[SHARE], reference_losses=losses)
    np.testing.assert_array_equal(with_reference.weights_, alone.weights_)


def test_wrong_labels_weigh_little_and_text_labels_are_labels():
    x, y = load_breast_cancer(return_X_y=True)
    names, wrong = np.array(["malignant", "benign"])[y], np.random.default_rng(0).random(300) < 0.3
    labels = np.where(wrong, np.array(["malignant", "benign"])[1 - y[:300]], names[:300])
    reference = make_pipeline(StandardScaler(), LogisticRegression()).fit(x[300:400], names[300:400])
    tree = DecisionTreeClassifier(max_depth=3, random_state=0)
    model = SteeredClassifier(tree, reference, cv=3).fit(x[:300], labels)
    assert model.weights_[wrong].mean() < 0.5 * model.weights_[~wrong].mean()
    assert model.score(x[400:], names[400:]) >= clone(tree).fit(x[:300], labels).score(x[400:], names[400:])
    assert list(model.estimator_.classes_) == ["benign", "malignant"]


# A weight of 2 is not the same as two samples: the rows of a rule are samples, and so are the folds.
EXPECTED = {
    f"check_sample_weight_equivalence_on_{kind}_data": "weights of the data multiply those of the rule"
    for kind in ("dense", "sparse")
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", [SteeredClassifier(), SteeredRegressor(cv="in_sample")], ids=repr)
def test_scikit_learns_own_checks_pass_but_for_those_of_repeated_samples(model):
    results = check_estimator(model, expected_failed_checks=EXPECTED, on_fail=None, on_skip=None)
    assert not [result["check_name"] for result in results if result["status"] == "failed"]


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (SteeredClassifier(KNeighborsClassifier()), {}, "takes sample_weight in fit, which KNeighborsClassifier"),
        (SteeredClassifier(LinearSVC()), {}, "needs predict_proba, which LinearSVC"),
        (SteeredClassifier(reference=LogisticRegression()), {}, "fitted before it answers"),
        (
            SteeredClassifier(reference=LogisticRegression(max_iter=1000).fit(X[:99], Y[:99] > 4)),
            {},
            "never saw the label",
        ),
        (SteeredClassifier(rounds=0), {}, "at least 1, got 0"),
        (SteeredClassifier(cv="out"), {}, "'in_sample', got 'out'"),
        (SteeredClassifier(rule="kl(warmth=1)"), {}, "warmth"),
        (SteeredClassifier(), {"reference_losses": [1.0]}, r"each of 60 samples, got shape \[1\]"),
        (SteeredClassifier(), {"sample_weight": [1.0]}, "each of 60 samples, got"),
        (SteeredRegressor(RandomForestRegressor(5), cv="no"), {}, "'in_sample', got 'no'"),
    ],
)
def test_what_does_not_fit_is_one_line(model, options, words):
    with pytest.raises(UserError, match=words):
        model.fit(X[:60], Y[:60], **options)
