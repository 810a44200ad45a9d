"""Tables: splits, losses and references of a task on one's own data, and bad input in one line."""

from typing import Any

import numpy as np
import pandas
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from steering import UserError, registry
from steering.references import LossTable
from steering.references.predictions import prediction_losses
from steering.references.store import ReferenceLosses
from steering.runs.compare import compare
from steering.tasks.tabular.task import Tabular, from_arrays
from steering.testing import check_task

X, Y = load_breast_cancer(return_X_y=True)
FOREST = RandomForestClassifier(5, random_state=0).fit(X[:100], Y[:100])


def values(losses: Any) -> Any:
    return losses.values


@pytest.fixture
def frame():
    """People with numbers and texts; whether they bought depends on both."""
    rng = np.random.default_rng(0)
    age, city = rng.normal(40, 10, 200), rng.choice(["Ulm", "Bonn", "Kiel"], 200)
    bought = np.where((age > 40) ^ (city == "Ulm"), "yes", "no")
    return pandas.DataFrame({"age": age, "city": city, "member": rng.random(200) < 0.5, "bought": bought})


TASKS = [Tabular("wine"), Tabular("diabetes", model="linear", noise=0.3), Tabular("iris", noise=0.2)]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_sets_of_scikit_learn_keep_the_contract(task):
    check_task(task)
    name, options = repr(task).split("(", 1)
    assert registry.build("tasks", f"{name.lower()}({options}") == task


def test_rows_are_split_without_overlap_and_the_reference_of_the_task_is_fitted_on_its_own():
    task = Tabular()
    parts = [set(task.split[name].tolist()) for name in ("train", "reference", "test")]
    assert [len(part) for part in parts] == [284, 114, 171] and len(set.union(*parts)) == 569
    assert set(next(task.stream(284, seed=0)).ids.tolist()) == parts[0]
    assert len(from_arrays(X, Y, reference=FOREST).split["reference"]) == 0
    assert task.population == 284 and task.seeded(1).split["test"].tolist() != task.split["test"].tolist()


def test_losses_under_a_fitted_reference_are_its_log_losses_by_row():
    task = from_arrays(X, Y, reference=FOREST)
    batch = next(task.stream(50, seed=0))
    losses, ids = values(ReferenceLosses(task)(batch)), batch.ids.numpy()
    np.testing.assert_allclose(losses, prediction_losses(FOREST, X[ids], Y[ids]), atol=1e-5)
    assert task.evaluate(task.reference())["error"] == pytest.approx(
        (FOREST.predict(X[task.split["test"]]) != Y[task.split["test"]]).mean()
    )


def test_a_regression_is_in_variances_and_its_reference_answers_alike():
    x, y = load_diabetes(return_X_y=True)
    fitted = LinearRegression().fit(x[:100], y[:100])
    task = from_arrays(x, y, reference=fitted)
    batch = next(task.stream(50, seed=0))
    expected = prediction_losses(fitted, x[batch.ids], y[batch.ids]) / y[task.split["train"]].var()
    np.testing.assert_allclose(values(ReferenceLosses(task)(batch)), expected, rtol=1e-4)
    test = task.split["test"]
    assert task.evaluate(task.reference())["r2"] == pytest.approx(fitted.score(x[test], y[test]), abs=1e-5)


@pytest.mark.slow
def test_texts_are_features_and_a_pipeline_takes_the_columns_by_name(frame, tmp_path):
    skops = pytest.importorskip("skops.io")
    columns = make_column_transformer((OneHotEncoder(), ["city"]), (StandardScaler(), ["age"]))
    fitted = make_pipeline(columns, LogisticRegression()).fit(frame.drop(columns="bought")[:80], frame["bought"][:80])
    skops.dump(fitted, tmp_path / "model.skops")
    frame.to_csv(tmp_path / "people.csv", index=False)
    frame.to_parquet(tmp_path / "people.parquet")
    losses = []
    for name in ("people.csv", "people.parquet"):
        task = Tabular(str(tmp_path / name), label="bought", ref=f"sklearn:{tmp_path / 'model.skops'}")
        check_task(task)
        assert task.x.shape == (200, 5) and task.classes.tolist() == ["no", "yes"]
        losses.append(values(ReferenceLosses(task)(task.load(torch.arange(200)))))
    expected = prediction_losses(fitted, frame.drop(columns="bought"), frame["bought"].to_numpy())
    for part in losses:
        np.testing.assert_allclose(part, expected, atol=1e-5)


def test_a_table_of_losses_by_row_is_a_reference_and_one_of_other_data_is_refused(tmp_path):
    by_row = prediction_losses(FOREST, X, Y)
    task = from_arrays(X, Y, reference=LossTable(by_row))
    batch = next(task.stream(20, seed=0))
    np.testing.assert_allclose(values(ReferenceLosses(task)(batch)), by_row[batch.ids], rtol=1e-6)
    other = LossTable(by_row, provenance={"data": "0123"}).save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"are of other data \(0123\)"):
        from_arrays(X, Y, reference=str(other)).reference()
    with pytest.raises(UserError, match="got 569 losses for 500 samples"):
        ReferenceLosses(from_arrays(X[:500], Y[:500], reference=LossTable(by_row))).reference  # noqa: B018


@pytest.mark.slow
def test_five_lines_compare_on_arrays_with_a_fitted_model(tmp_path):
    """The five lines of docs/tasks.md, on fewer steps."""
    reference = RandomForestClassifier(50, random_state=0).fit(X[:150], Y[:150])
    task = from_arrays(X[150:], Y[150:], reference=reference, noise=0.3)
    summary = compare(task, tmp_path / "run", quiet=True, steps=60, seeds=2)
    assert set(summary.arms) == {"reference", "erm", "dro", "drrho_kl", "drrho_cvar"}
    means = {n: np.mean([result.metrics["error"] for result in arm.results]) for n, arm in summary.arms.items()}
    assert means["reference"] < 0.15 and means["drrho_cvar"] < 0.5
    assert (tmp_path / "run" / "report.html").exists()


def csv(folder, text):
    (folder / "x.csv").write_text(text)
    return {"data": str(folder / "x.csv"), "label": "y"}


ROWS = "".join(f"{k},{k % 3},{k % 2}\n" for k in range(30))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: csv(f, f"a,b,z\n{ROWS}"), r"has no column 'y'\. It has a, b, z"),
        (lambda f: csv(f, f"a,b,z\n{ROWS}") | {"label": None}, "which column is to be predicted"),
        (lambda f: csv(f, "a,b,y\n" + "t,1,0\n" * 5), "has 5 rows and 2 columns"),
        (lambda f: csv(f, f"a,b,y\n{ROWS},,1\n,2,0\n"), r"missing values in a \(2\), b \(1\): fill them"),
        (lambda f: csv(f, f"a,b,y\n{ROWS}inf,1,0\n"), r"infinite values in a \(1\)"),
        (
            lambda f: csv(f, "a,b,y\n" + "".join(f"t{k},1,{k % 2}\n" for k in range(60))),
            "60 different texts in column a",
        ),
        (lambda f: csv(f, "a,b,y\n" + "".join(f"{k},1,7\n" for k in range(30))), "all labels of x.csv are 7"),
        (lambda f: csv(f, "\x00\x01,,\n\n"), "x.csv"),
        (lambda f: csv(f, ""), "cannot be read as a table"),
        (lambda f: {"data": str(f / "none.csv")}, "no file at"),
        (lambda f: {"data": "model.xlsx"}, "a file .csv or .parquet, or one of breast_cancer"),
        (lambda f: {"data": "wine", "label": "y"}, "wine has its own label"),
        (lambda f: {"kind": "ranking"}, "classification or regression, got 'ranking'"),
        (lambda f: {"test_share": 0.9}, "above 0 and below 1 in all"),
        (lambda f: {"model": "tree"}, "linear and mlp"),
        (lambda f: {"data": 3}, r"got a int: use from_arrays"),
        (lambda f: {"ref": str(f / "model.pkl")}, "is a pickle, which runs code"),
        (lambda f: {"ref": LinearRegression().fit(X, Y)}, "need a classifier with predict_proba as reference"),
        (lambda f: {"ref": LogisticRegression().fit(X[:99, :5], Y[:99])}, "was fitted on 5 features, .* has 30"),
        (lambda f: {"ref": LogisticRegression(max_iter=9999).fit(X, Y + 1)}, "never saw the label 0"),
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_bad_input_is_one_line(make, words, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        task = Tabular(**make(tmp_path))
        task.recipe, task.metrics, task.reference()
    assert "\n" not in str(error.value)


def test_a_reference_of_other_columns_and_arrays_of_unlike_lengths_are_one_line(frame):
    features = frame.drop(columns="bought")
    fitted = LogisticRegression(max_iter=999).fit(features[["age", "member"]].rename(columns={"age": "years"}), Y[:200])
    with pytest.raises(UserError, match="fitted on the columns years, member, arrays has no years"):
        from_arrays(features, Y[:200], reference=fitted).reference()
    with pytest.raises(UserError, match=r"a label for each of 569 rows of X, got shape \[5\]"):
        from_arrays(X, Y[:5])
    with pytest.raises(UserError, match=r"\[n, columns\] or a DataFrame, got shape \[569\]"):
        from_arrays(Y, Y)
