"""Anything that answers a batch can be a reference, and gives the numbers that one gets by hand."""

import copy
from math import log

import numpy as np
import pytest
import torch
from torch import nn

from steering import Batch, Losses, Pairs, UserError
from steering.references import Checkpoint, CrossFitted, Estimator, LossTable, OwnPast, ReferenceLosses, as_reference
from steering.settings import Arm
from steering.task import exchange
from steering.tasks.blobs import Blobs
from steering.training import checkpoint
from steering.training.loop import Training, evaluate

TASK = Blobs(samples=24)
STEERED = Arm(rule="kl(temperature=0.5)")
RECIPE = TASK.recipe.model_copy(update={"batch": 8, "steps": 3})


def values(losses: Losses) -> list:
    assert isinstance(losses.values, torch.Tensor)
    return losses.values.tolist()


def samples() -> Batch:
    """All samples of the task, by id."""
    batch = next(TASK.stream(TASK.size, seed=0))
    return batch.take(batch.ids.argsort())


def train(reference, steps: int = 3, arm: Arm = STEERED) -> Training:
    """An arm that was trained for some steps with this reference."""
    task = exchange(TASK, reference=lambda: reference)
    training = Training(task, arm, RECIPE, reference=ReferenceLosses(task), seed=0)
    training.losses = [training.step()["loss"] for _ in range(steps)]  # type: ignore[attr-defined]
    return training


class Softmax:
    """The classifier of the task's own reference, as scikit-learn would have it."""

    classes_ = np.arange(6)

    def __init__(self, model: nn.Module):
        self.model = model

    def predict(self, x):
        return self.predict_proba(x).argmax(1)

    def predict_proba(self, x):
        return self.model(torch.from_numpy(x)).double().softmax(-1).numpy()


@pytest.fixture(scope="module")
def expected():
    return train(TASK.reference()).losses  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["function", "array", "file", "estimator", "folds", "checkpoint"])
def test_every_kind_trains_as_the_module_with_the_same_losses_does(kind, expected, tmp_path):
    model = TASK.reference()
    values = TASK.losses(model, samples()).values
    assert isinstance(values, torch.Tensor)
    if kind == "checkpoint":  # of a target that is what the reference is
        task = exchange(TASK, target=lambda: nn.Linear(2, 6), reference=lambda: Checkpoint(tmp_path / "checkpoint.pt"))
        checkpoint.save(tmp_path / "checkpoint.pt", {"done": 3, "average": None, "model": model.state_dict()})
        losses = ReferenceLosses(task)(samples()).values
        torch.testing.assert_close(losses, values)
        return
    reference = {
        "function": lambda batch: TASK.losses(model, batch).values.numpy(),  # type: ignore[union-attr]
        "array": values.double().numpy(),
        "file": LossTable(values.flip(0), ids=torch.arange(24).flip(0)).save(tmp_path / "losses.safetensors"),
        "estimator": Estimator(Softmax(model), x="x", y="y"),
        "folds": CrossFitted([values, model, LossTable(values)], folds=torch.arange(24) % 3),
    }[kind]
    training = train(reference)
    assert training.losses == pytest.approx(expected, rel=1e-5)  # type: ignore[attr-defined]
    assert evaluate(training.task, training.reference.model) == {}
    with pytest.raises(UserError, match="this needs a reference that is a model, got"):
        training.reference.as_model()


def test_a_function_may_have_a_model_that_is_evaluated():
    class WithModel:
        model = TASK.reference()

        def __call__(self, batch):
            return TASK.losses(self.model, batch)

    task = exchange(TASK, reference=WithModel)
    assert evaluate(task, ReferenceLosses(task).model) == evaluate(TASK, TASK.reference()) != {}


def test_a_function_answers_with_losses_of_any_form():
    batch = Batch(torch.tensor([4, 5]), {})
    columns = as_reference(lambda batch: np.ones((2, 3)))(batch)
    assert values(columns) == [[1, 1, 1]] * 2
    features = torch.eye(2)
    pairs = as_reference(lambda batch: Pairs(features, features, 2.0))(batch).values
    assert isinstance(pairs, Pairs) and pairs.scale == 2
    flat = as_reference(lambda batch: Losses(torch.ones(3), rows=torch.tensor([0, 0, 1])))(batch)
    assert flat.rows is not None and flat.rows.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (3, "a reference is a function of a batch, a module, an array or file of losses by id, an .* got int"),
        (nn.Linear(1, 1), "a module has losses under a task only"),
        (Checkpoint("x.pt"), "a module has losses under a task only"),
        (Softmax(nn.Linear(1, 1)), "an estimator needs the field x, but a batch has"),
        (lambda batch: None, "a loss for each of 1 samples, got {'values': 'NoneType'}"),
        (lambda batch: 0.5, "a loss for each of 1 samples, got {'values': 'float'}"),
        ("losses.csv", "losses.csv cannot be read as losses"),
    ],
)
def test_what_cannot_be_a_reference_is_refused(reference, message):
    with pytest.raises(UserError, match=message):
        as_reference(reference)(Batch(torch.tensor([0]), {}))


# ------------------------------------------------------------------------------------------------- estimators


class Fixed:
    """Predicts what it is given."""

    def __init__(self, **methods):
        for name, value in methods.items():
            setattr(self, name, value if name == "classes_" else lambda x, value=value: np.array(value))


def batch(y, ids=(7, 8)) -> Batch:
    return Batch(torch.tensor(ids), {"pixels": torch.zeros(len(ids), 2, 2), "label": torch.tensor(y)})


def test_a_classifier_has_log_losses_by_its_own_classes():
    probabilities = [[0.25, 0.75], [1.0, 0.0]]
    labels = Estimator(Fixed(predict_proba=probabilities, classes_=np.array([2, 5])), "pixels", "label")
    losses = labels(batch([5, 5]))
    assert values(losses) == pytest.approx([-log(0.75), -log(np.finfo(float).eps)]) and losses.outputs is None
    numbers = Estimator(Fixed(predict_proba=probabilities), "pixels", "label")(batch([0, 0]))
    assert values(numbers) == pytest.approx([log(4), 0])
    assert numbers.outputs is not None and numbers.outputs[0].softmax(-1).tolist() == pytest.approx([0.25, 0.75])


def test_a_regressor_has_squared_errors():
    assert values(Estimator(Fixed(predict=[1.0, 2.0]), "pixels", "label")(batch([3.0, 2.0]))) == [4, 0]
    several = Estimator(Fixed(predict=[[1.0, 2.0], [0.0, 0.0]]), "pixels", "label")
    assert values(several(batch([[3.0, 3.0], [0.0, 1.0]]))) == [5, 1]


def test_an_estimator_that_does_not_fit_the_batch_is_refused():
    from sklearn.linear_model import LogisticRegression

    classes = Fixed(predict_proba=[[1.0, 0.0]] * 2, classes_=np.array([0, 1]))
    for estimator, message in (
        (Estimator(classes, "pixels", "label"), "never saw the label 3 of ids \\[8\\]: fit it on all classes"),
        (Estimator(classes, "x", "label"), "an estimator needs the field x, but a batch has pixels, label"),
        (Estimator(Fixed(predict=[1.0]), "pixels", "label"), "predicts label of shape \\[2\\], got \\[1\\]"),
        (
            Estimator(LogisticRegression(), "pixels", "label"),
            "is fitted before it answers, got LogisticRegression\\(\\)",
        ),
    ):
        with pytest.raises(UserError, match=message):
            estimator(batch([1, 3]))


# -------------------------------------------------------------------------------------------------- own past


def test_the_own_past_is_the_moving_average_of_the_weights_and_resumes():
    training = train(OwnPast(decay=0.75), steps=0)
    average = copy.deepcopy(training.model)
    losses, state = [], {}
    for _ in range(4):
        before = copy.deepcopy(training.stream.state_dict())
        batch = next(training.stream)
        training.stream.load_state_dict(before)
        torch.testing.assert_close(training.reference(batch).values, TASK.losses(average, batch).values)
        losses.append(training.step()["loss"])
        with torch.no_grad():
            for past, now in zip(average.parameters(), training.model.parameters(), strict=True):
                past.mul_(0.75).add_(0.25 * now)
        if len(losses) == 2:
            state = copy.deepcopy(training.state_dict())
    resumed = train(OwnPast(decay=0.75), steps=0)
    resumed.load_state_dict(state)
    assert torch.equal(
        torch.cat([x.flatten() for x in resumed.state_dict()["reference"].values()]),
        torch.cat([x.flatten() for x in state["reference"].values()]),
    )
    assert [resumed.step()["loss"] for _ in range(2)] == losses[2:]


def test_the_own_past_is_of_one_training_and_never_stored(tmp_path):
    task = exchange(TASK, reference=lambda: OwnPast(0.5))
    store = ReferenceLosses(task, folder=tmp_path)
    assert store.model is None
    with pytest.raises(UserError, match="OwnPast is the past of a target in training, and here is none: use a Chec"):
        store(samples())
    ones, others = (store.following(TASK.target()) for _ in range(2))
    assert not torch.equal(*(one(samples()).values for one in (ones, others)))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir()) and store.state_dict() == {}
    for decay in (-0.1, 1.0):
        with pytest.raises(UserError, match="the decay of OwnPast is at least 0 and below 1, got"):
            OwnPast(decay)


def test_a_plain_arm_makes_no_average():
    assert train(OwnPast(), arm=Arm(subtract=False)).state_dict()["reference"] == {}


# ------------------------------------------------------------------------------------------------------ folds


def test_a_sample_is_answered_by_the_reference_that_was_not_fitted_on_it():
    def tokens(value):
        def losses(batch):
            rows = torch.arange(len(batch)).repeat_interleave(batch.ids)
            return Losses(value + torch.arange(len(rows)) / 10, rows=rows)

        return losses

    losses = CrossFitted([tokens(0), tokens(1)], folds=[1, 1, 0, 1])(Batch(torch.tensor([1, 2, 3]), {}))
    torch.testing.assert_close(losses.values, torch.tensor([1.0, 0.0, 0.1, 1.1, 1.2, 1.3]))
    assert losses.rows is not None and losses.rows.tolist() == [0, 1, 1, 2, 2, 2]


def test_folds_that_do_not_fit_are_refused():
    for folds in ([0, 2], [0.5], 1):
        with pytest.raises(UserError, match=r"folds are \[size\] integers from 0 to 1, as there are 2 references"):
            CrossFitted([[1.0], [2.0]], folds)
    with pytest.raises(UserError, match="there are folds of 2 samples, got the id 5"):
        CrossFitted([[1.0], [2.0]], [0, 1])(Batch(torch.tensor([5]), {}))
    pairs = [lambda batch: Pairs(torch.ones(1, 1), torch.ones(1, 1))]
    with pytest.raises(UserError, match="a loss for each sample, got Pairs, which compare samples"):
        CrossFitted(pairs, [0])(Batch(torch.tensor([0]), {}))
