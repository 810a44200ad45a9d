"""Estimators and weights from files, and that nothing in them is run."""

import os
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn

from steering import Batch, UserError
from steering.references import as_reference
from steering.references.files import load_weights, read_reference

X, Y = load_breast_cancer(return_X_y=True)
BATCH = Batch(torch.arange(20), {"x": torch.from_numpy(X[:20]), "y": torch.from_numpy(Y[:20])})


@pytest.fixture
def skops():
    return pytest.importorskip("skops.io")


def test_a_file_of_skops_answers_as_the_estimator_itself_by_either_name(skops, tmp_path):
    for model in (make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y), Ridge().fit(X, Y)):
        path = tmp_path / "model.skops"
        skops.dump(model, path)
        expected = as_reference(model)(BATCH).values
        for name in (path, str(path), f"sklearn:{path}"):
            torch.testing.assert_close(as_reference(name)(BATCH).values, expected)


class Harmful:
    def __reduce__(self):
        return (print, ("this runs",))


def test_what_would_run_code_or_is_no_estimator_is_one_line(skops, tmp_path, capsys):
    path = tmp_path / "model.skops"
    skops.dump(Ridge().fit(X, Y), path)
    stranger, array, torn = (tmp_path / f"{name}.skops" for name in ("stranger", "array", "torn"))
    skops.dump(FunctionTransformer(os.system).fit(X), stranger)
    skops.dump(np.zeros(3), array)
    torn.write_bytes(path.read_bytes()[:200])
    for name, words in {
        stranger: "names types that skops does not trust (posix.system)",
        array: "holds a ndarray: a reference has predict_proba or predict",
        torn: "cannot be read as an estimator of skops",
        tmp_path / "none.skops": "No such file",
    }.items():
        with pytest.raises(UserError) as error:
            read_reference(f"sklearn:{name}")
        assert words in str(error.value) and "\n" not in str(error.value)
    for suffix in ("pkl", "joblib", "pickle"):
        file = tmp_path / f"model.{suffix}"
        file.write_bytes(pickle.dumps(Harmful()))
        with pytest.raises(UserError, match=r"is a pickle.*skops\.io\.dump"):
            read_reference(f"sklearn:{file}")
    assert "this runs" not in capsys.readouterr().out


def net() -> Any:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod.", "module.", "model._orig_mod.", "module.model."])
def test_weights_are_found_under_the_prefixes_of_lightning_and_compilation(prefix, tmp_path):
    model, path = net(), tmp_path / "last.ckpt"
    state = {f"{prefix}{name}": x for name, x in model.state_dict().items()}
    others = {"criterion.weight": torch.ones(2)} if prefix else {}
    for content in (
        state,
        {"state_dict": state | others, "epoch": 3, "hyper_parameters": {"width": 4}},
        {"model": state},
    ):
        torch.save(content, path)
        loaded = load_weights(net(), path)
        assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in model.state_dict().items())
        assert not loaded.training
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(load_weights(net(), tmp_path / "model.safetensors")[0].weight, model[0].weight)


def test_weights_of_another_module_or_pickles_are_one_line(tmp_path, capsys):
    def saved(content):
        torch.save(content, tmp_path / "x.pt")
        return tmp_path / "x.pt"

    wide = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    for make, words in [
        (lambda: tmp_path / "none.pt", "No such file"),
        (lambda: saved({"state_dict": nn.Linear(3, 4).state_dict()}), "are of another module: they lack"),
        (lambda: saved(wide.state_dict()), "are of another size: 0.weight is [5, 3] for [4, 3]"),
        (lambda: saved(Harmful()), "cannot be read as weights"),
        (lambda: saved([1, 2]), "are of another module"),
    ]:
        with pytest.raises(UserError) as error:
            load_weights(net(), make())
        assert words in str(error.value) and "\n" not in str(error.value)
    assert "this runs" not in capsys.readouterr().out
