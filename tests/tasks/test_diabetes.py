"""Diabetes with swapped targets: the data, the losses, the reference."""

import pytest
import torch

from steering import UserError, registry
from steering.tasks.diabetes import Diabetes, _patients


def everything(task):
    batch = next(task.stream(task.size, seed=0))
    return batch.take(batch.ids.argsort())


def right_targets(x):
    """Targets of patients, looked up by their features (no two patients are alike)."""
    features, targets = _patients()
    places = (x[:, None] == features[None]).all(-1).nonzero()
    assert len(places) == len(x)
    return targets[places[:, 1]]


def test_a_target_is_a_training_patients_and_differs_only_where_the_facts_say_so():
    batch = everything(Diabetes())
    right = right_targets(batch["x"])
    wrong = batch.facts["wrong"]
    assert torch.equal(batch["y"][~wrong], right[~wrong])
    assert (batch["y"][wrong] != right[wrong]).double().mean() > 0.9, "two patients may share a target"
    assert set(batch["y"].tolist()) <= set(right.tolist())


def test_the_share_of_wrong_targets_is_the_noise():
    """250 draws at 0.3: 0.12 is four standard errors."""
    shares = [float(everything(Diabetes(noise=noise)).facts["wrong"].double().mean()) for noise in (0, 0.3, 1)]
    assert shares == [0, pytest.approx(0.3, abs=0.12), 1]


def test_training_reference_and_test_patients_are_all_different_and_are_all_there_are():
    data = Diabetes().draw
    parts = [data.train.x, data.reference.x, data.test.x]
    assert [len(part) for part in parts] == [250, 60, 132]
    assert len(torch.cat(parts).unique(dim=0)) == 442
    assert torch.equal(data.reference.y, right_targets(data.reference.x))
    assert torch.equal(data.test.y, right_targets(data.test.x))


def test_the_loss_is_the_squared_error_near_zero_and_linear_from_the_threshold_on():
    """Error 0.5 -> 0.25 and error 3 -> 1 + 2 * (3 - 1) = 5 at a threshold of 1; 9 without one."""
    task = Diabetes(huber=1.0)
    batch = everything(task).take(torch.tensor([0, 1]))
    model = torch.nn.Linear(10, 1)
    guess = model(batch["x"])[:, 0].detach()
    batch["y"].copy_(guess + torch.tensor([0.5, -3.0]))
    values, squares = task.losses(model, batch).values, Diabetes(huber=None).losses(model, batch).values
    assert isinstance(values, torch.Tensor) and isinstance(squares, torch.Tensor)
    assert torch.allclose(values, torch.tensor([0.25, 5.0]))
    assert torch.allclose(squares, torch.tensor([0.25, 9.0]))


def test_r2_is_zero_for_the_mean_and_the_reference_is_between_that_and_what_is_known():
    """Least squares explains about half the variance of these data."""
    task = Diabetes()
    model = torch.nn.Linear(10, 1)
    model.weight.data.zero_()
    model.bias.data.fill_(float(task.draw.test.y.mean()))
    assert task.evaluate(model)["r2"] == pytest.approx(0, abs=1e-6)
    assert 0.2 < task.evaluate(task.reference())["r2"] < 0.6


def test_a_repetition_redraws_split_noise_and_reference():
    one, other = Diabetes(), Diabetes(seed=1).seeded(1)
    assert other == Diabetes(seed=2)
    assert not torch.equal(everything(one)["x"], everything(other)["x"])
    assert not torch.equal(next(one.reference().parameters()), next(other.reference().parameters()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("samples=400", "diabetes has 442 patients and needs some to test on, got samples=400"),
        ("noise=2", "diabetes needs a noise within 0 and 1, got 2"),
        ("huber=0", "diabetes needs a huber above 0, or None for the squared error, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        registry.build("tasks", f"diabetes({options})")
