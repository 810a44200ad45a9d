"""Trees: what the custom objective learns, against the libraries' own objectives and against weights by hand."""

from typing import Any, cast

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression

from steering import UserError
from steering.adapters.boosting import SteeredObjective
from steering.references.predictions import prediction_losses

CANCER, DIGITS, DIABETES = (load(return_X_y=True) for load in (load_breast_cancer, load_digits, load_diabetes))
SMALL = slice(0, 300)


def test_the_weights_of_a_round_are_those_of_kl_by_hand():
    rng = np.random.default_rng(0)
    y, scores, reference = rng.integers(0, 2, 50), rng.normal(size=50), rng.exponential(size=50)
    objective = SteeredObjective("binary", reference_losses=reference, rule="kl(temperature=0.5)")
    gradient, hessian = objective(y, scores)
    p = 1 / (1 + np.exp(-scores))
    tilted = np.exp((-np.log(np.where(y == 1, p, 1 - p)) - reference) / 0.5)
    weights = tilted / tilted.mean()
    assert objective.weights is not None
    np.testing.assert_allclose(objective.weights, weights, rtol=1e-12)
    np.testing.assert_allclose(gradient, weights * (p - y), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(hessian, weights * p * (1 - p), rtol=1e-12)


@pytest.mark.parametrize(("kind", "data", "classes"), [("binary", CANCER, 2), ("multiclass", DIGITS, 10)])
def test_gradients_are_those_of_the_loss_and_weights_of_the_data_multiply(kind, data, classes):
    y = data[1][:20]
    scores = np.random.default_rng(1).normal(size=(20, classes) if classes > 2 else 20)
    gradient, _ = SteeredObjective(cast(Any, kind), rule="uniform", reference_scale=0)(y, scores)
    twice, _ = SteeredObjective(cast(Any, kind), rule="uniform", reference_scale=0)(y, scores, 2 * np.ones(20))
    step = 1e-6
    for index in [(3, 1), (7, 4)] if classes > 2 else [(3,), (7,)]:
        moved = [scores.copy(), scores.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        up, down = (SteeredObjective(kind)._derivatives(y.astype(float), x)[0].sum() for x in moved)
        assert gradient[index] == pytest.approx((up - down) / (2 * step), abs=1e-6)
    np.testing.assert_allclose(twice, 2 * gradient)


def test_a_uniform_rule_grows_xgboosts_own_trees():
    xgboost = pytest.importorskip("xgboost")
    for kind, name, (X, y), more in (
        ("binary", "binary:logistic", CANCER, {}),
        ("multiclass", "multi:softprob", DIGITS, {"num_class": 10}),
        ("regression", "reg:squarederror", DIABETES, {}),
    ):
        data = xgboost.DMatrix(X[SMALL], y[SMALL], weight=np.linspace(0.5, 1.5, len(y[SMALL])))
        settings = {"max_depth": 2, "base_score": 0.5, "nthread": 1, **more}
        plain = xgboost.train(settings | {"objective": name}, data, 3)
        settings["base_score"] = 0.0 if kind == "binary" else 0.5  # of a raw score, and not of a probability
        steered = xgboost.train(
            settings, data, 3, obj=SteeredObjective(cast(Any, kind), rule="uniform", reference_scale=0)
        )
        difference = plain.predict(data, output_margin=True) - steered.predict(data, output_margin=True)
        np.testing.assert_allclose(difference, 0, atol=2e-4 * (1 if kind != "regression" else 100))


def test_a_uniform_rule_grows_lightgbms_own_trees():
    lightgbm = pytest.importorskip("lightgbm")
    X, y = DIABETES
    settings = {"num_leaves": 4, "verbose": -1, "num_threads": 1, "boost_from_average": False, "deterministic": True}
    objective = SteeredObjective("regression", rule="uniform", reference_scale=0)
    models = [
        lightgbm.train(settings | {"objective": name}, lightgbm.Dataset(X, y), 5) for name in ("regression", objective)
    ]
    np.testing.assert_allclose(*(model.predict(X) for model in models), rtol=1e-6)


def test_both_libraries_take_it_in_their_classes_and_steer_away_from_wrong_labels():
    xgboost, lightgbm = pytest.importorskip("xgboost"), pytest.importorskip("lightgbm")
    X, y = CANCER
    rng = np.random.default_rng(0)
    wrong = rng.random(300) < 0.3
    reference = LogisticRegression(C=0.01, max_iter=10_000).fit(X[300:400], y[300:400])
    y = np.asarray(y)
    labels = np.where(wrong, 1 - y[:300], y[:300])
    losses = prediction_losses(reference, X[:300], labels)
    classes = [
        lambda f: xgboost.XGBRegressor(objective=f, n_estimators=20, max_depth=2, n_jobs=1, base_score=0),
        lambda f: lightgbm.LGBMRegressor(objective=f, n_estimators=20, num_leaves=4, n_jobs=1, verbose=-1),
    ]
    for make in classes:
        objective = SteeredObjective("binary", reference_losses=losses, rule="kl(temperature=0.5)")
        model = make(objective).fit(X[:300], labels)
        assert objective.weights is not None
        assert objective.weights[wrong].mean() < 0.5 * objective.weights[~wrong].mean()
        assert ((model.predict(X[400:]) > 0) == y[400:]).mean() > 0.85


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SteeredObjective(cast(Any, "ranking")), "'binary', 'multiclass' or 'regression', got 'ranking'"),
        (
            lambda: SteeredObjective("binary")(np.array([0, 3]), np.zeros(2)),
            "labels from 0 to 1 .* from 0 to 3",
        ),
        (lambda: SteeredObjective("multiclass")(np.array([0, 1]), np.zeros(2)), "scores of shape"),
        (
            lambda: SteeredObjective("binary", reference_losses=[1.0])(np.array([0, 1]), np.zeros(2)),
            r"each of 2 training samples, got shape \[1\]",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(make, words):
    with pytest.raises(UserError, match=words):
        make()
