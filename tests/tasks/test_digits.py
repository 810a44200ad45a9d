"""Digits with wrong labels: the data, the reference, and what its recipe shows."""

import pytest
import torch
from sklearn.datasets import load_digits

from steering import UserError, registry
from steering.references.store import ReferenceLosses
from steering.tasks.digits import Digits
from steering.training.loop import Training, evaluate


def everything(task):
    """The whole training set as one batch, in the order of the ids."""
    batch = next(task.stream(task.size, seed=0))
    return batch.take(batch.ids.argsort())


def right_labels(x):
    """Labels of images, looked up in the original data by their pixels (no two images are alike)."""
    pixels, labels = load_digits(return_X_y=True)
    known = {tuple(row): label for row, label in zip(pixels.tolist(), labels.tolist(), strict=True)}
    assert len(known) == len(pixels)
    return torch.tensor([known[tuple(row)] for row in (x * 4).tolist()])


def test_a_label_is_wrong_exactly_where_the_facts_say_so():
    batch = everything(Digits())
    assert torch.equal(batch["y"] != right_labels(batch["x"]), batch.facts["wrong"])


def test_the_share_of_wrong_labels_is_the_noise():
    """400 draws at 0.4: 0.1 is four standard errors. At 0 and 1 there is no chance."""
    shares = [float(everything(Digits(noise=noise)).facts["wrong"].double().mean()) for noise in (0, 0.4, 1)]
    assert shares == [0, pytest.approx(0.4, abs=0.1), 1]


def test_training_reference_and_test_images_are_all_different_and_are_all_there_are():
    task = Digits()
    data = task.draw
    parts = [data.train.x, data.reference.x, data.test.x]
    assert [len(part) for part in parts] == [400, 100, 1297]
    assert len(torch.cat(parts).unique(dim=0)) == 1797
    assert torch.equal(data.reference.y, right_labels(data.reference.x)), "the reference's labels are clean"
    assert torch.equal(data.test.y, right_labels(data.test.x)), "the test set's labels are clean"


def test_a_repetition_redraws_split_noise_and_reference():
    one, other = Digits(), Digits().seeded(1)
    assert other == Digits(seed=1) and Digits(seed=4).seeded(3) == Digits(seed=7)
    assert not torch.equal(everything(one)["x"], everything(other)["x"])
    assert not torch.equal(everything(one).facts["wrong"], everything(other).facts["wrong"])
    weights = [next(task.reference().parameters()) for task in (one, other)]
    assert not torch.equal(*weights)


def test_the_references_own_samples_are_right_unless_noise_is_asked_for():
    batch = Digits().reference_batch()
    assert torch.equal(batch["y"], right_labels(batch["x"])) and not batch.facts["wrong"].any()
    noisy = Digits(reference_samples=500, reference_noise=0.4).reference_batch()
    assert torch.equal(noisy["y"] != right_labels(noisy["x"]), noisy.facts["wrong"])
    assert float(noisy.facts["wrong"].double().mean()) == pytest.approx(0.4, abs=0.1)


def test_noise_of_the_reference_leaves_the_targets_data_as_they_are():
    task, other = Digits(), Digits(reference_noise=0.5)
    assert torch.equal(everything(task)["y"], everything(other)["y"])
    assert task.evaluate(task.reference())["error"] < other.evaluate(other.reference())["error"]


def test_the_target_has_as_many_layers_as_its_name_says():
    widths = {model: [list(p.shape) for p in Digits(model=model).target().parameters()] for model in ("linear", "mlp")}
    assert widths == {"linear": [[10, 64], [10]], "mlp": [[64, 64], [64], [10, 64], [10]]}


def test_the_reference_is_far_better_than_chance_and_worse_than_what_is_known_of_digits():
    assert 0.05 < Digits().evaluate(Digits().reference())["error"] < 0.25


def test_the_reference_tells_wrong_labels_from_right_ones():
    """Area under the curve: the chance that a wrong label has the larger loss of the two."""
    task = Digits()
    batch = everything(task)
    losses = task.losses(task.reference(), batch).values
    assert isinstance(losses, torch.Tensor)
    wrong, right = losses[batch.facts["wrong"]], losses[~batch.facts["wrong"]]
    assert (wrong[:, None] > right[None]).double().mean() > 0.95


def test_nothing_is_loaded_before_it_is_asked_for():
    assert "draw" not in vars(registry.build("tasks", "digits(noise=0.2)"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("samples=1700", "digits has 1797 images and needs some to test on, got samples=1700"),
        ("samples=0", "use at least 1 of each"),
        ("noise=1.5", "digits needs a noise within 0 and 1, got 1.5"),
        ("reference_noise=-0.1", "digits needs a noise within 0 and 1, got -0.1"),
        ("reference_c=0", "digits needs a reference_c above 0, got 0"),
        ("model='resnet'", "model: input should be 'linear' or 'mlp', got 'resnet'"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        registry.build("tasks", f"digits({options})")


def test_a_reference_that_saw_too_few_digits_is_refused():
    with pytest.raises(UserError, match="of 10 digits: use a larger reference_samples"):
        Digits(reference_samples=8).reference()


@pytest.mark.slow
def test_steering_by_the_reference_beats_plain_training_dro_and_the_reference():
    """Frozen settings, 8 seeds of their own; the docstring's gains are 4.6, 4.3 and 2.6 points."""
    gains = []
    for seed in range(8):
        task = Digits().seeded(seed)
        reference = ReferenceLosses(task)
        errors = {"reference": evaluate(task, reference.model)["error"]}
        for name in ("erm", "dro", "drrho_kl"):
            training = Training(task, task.recipe.arms[name], task.recipe, reference=reference, seed=seed)
            for _ in range(task.recipe.steps):
                training.step()
            errors[name] = evaluate(task, training.result)["error"]
            if name == "drrho_kl":
                assert training.counters.means()["wrong"] < 0.3, "wrong labels weigh less than their share of 0.4"
        gains.append([errors[name] - errors["drrho_kl"] for name in ("erm", "dro", "reference")])
    gains = torch.tensor(gains)
    error = gains.std(0) / 8**0.5
    assert (gains.mean(0) > 2.36 * error).all(), f"95 % intervals exclude zero: {gains.mean(0)} +- {2.36 * error}"
