"""skorch: the same steps as a loop by hand, and a reference that clones share."""

from typing import Any

import numpy as np
import pytest
import sklearn.base
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from torch import nn

from steering import Steerer, UserError
from steering.references.predictions import prediction_losses

pytest.importorskip("skorch")
from steering.adapters.skorch import SteeredNetClassifier, SteeredNetRegressor

clone: Any = sklearn.base.clone  # of the type that it is given
X, Y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
REFERENCE = LogisticRegression(max_iter=500).fit(X[:200], Y[:200])
OPTIONS = {"optimizer": torch.optim.SGD, "lr": 0.5, "batch_size": 100, "train_split": None, "verbose": 0}
SHARE = slice(200, 500)


class Linear(nn.Module):
    def __init__(self, inputs: int = 64, outputs: int = 10):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.linear(x)


def net(reference=REFERENCE, **options):
    settings = {"criterion": nn.CrossEntropyLoss, "max_epochs": 2, "iterator_train__shuffle": False}
    return SteeredNetClassifier(Linear, reference=reference, **(OPTIONS | settings | options))


def test_it_trains_as_the_loop_by_hand():
    torch.manual_seed(0)
    trained: Any = net(rule="kl(temperature=0.5)").fit(X[SHARE], Y[SHARE])
    torch.manual_seed(0)
    model, steerer = Linear(), Steerer("kl(temperature=0.5)")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = torch.from_numpy(X[SHARE]), torch.from_numpy(Y[SHARE])
    reference = torch.from_numpy(prediction_losses(REFERENCE, X[SHARE], Y[SHARE]))
    for index in list(torch.arange(300).split(100)) * 2:
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(model(x[index]), y[index], reduction="none")
        steerer(losses, reference[index]).loss.backward()
        optimizer.step()
    for one, other in zip(trained.module_.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert all(loss >= 0 for loss in trained.history[:, "train_loss"])


def test_the_reference_survives_clone_and_a_grid_over_rules():
    assert clone(net()).reference is REFERENCE
    grid = GridSearchCV(net(max_epochs=1), {"rule": ["uniform", "cvar(alpha=0.5)"]}, cv=2).fit(X[SHARE], Y[SHARE])
    assert grid.best_estimator_.reference is REFERENCE
    assert {grid.best_params_["rule"]} <= {"uniform", "cvar(alpha=0.5)"}


def test_a_module_as_reference_a_validation_split_and_a_regression():
    bunch: Any = load_diabetes()
    x, y = bunch.data, bunch.target
    x, y = x.astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)[:, None]
    options = OPTIONS | {"train_split": None, "module__inputs": 10, "module__outputs": 1, "max_epochs": 2}
    for reference in (Ridge().fit(x[:60], y[:60]), Linear(10, 1)):
        model = SteeredNetRegressor(Linear, reference=reference, rule="cvar(alpha=0.9)", **options).fit(x[60:], y[60:])
        assert len(model.history) == 2
    checked: Any = net(**{"train_split": SteeredNetClassifier(Linear).train_split}).fit(X[SHARE], Y[SHARE])
    assert all(loss >= 0 for loss in checked.history[:, "valid_loss"])


def test_a_criterion_that_averages_is_refused():
    with pytest.raises(UserError, match="criterion__reduction='none'"):
        net(criterion__reduction="mean").fit(X[SHARE], Y[SHARE])
