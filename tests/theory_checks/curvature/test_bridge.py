"""A tuned network as a reference: the task around another, and the variance ratio."""

import numpy as np
import pytest
import torch
from torch import nn

from steering import registry
from steering.curvature import units
from steering.errors import UserError
from steering.task import HeldOut, Task
from steering.tasks.blobs import Blobs
from steering.tasks.in_memory import clean
from steering.testing import check_task
from steering.theory_checks.curvature.bridge import measure, tuned_reference, variance_ratio
from steering.theory_checks.curvature.small import classification, recipe, trained


def small(refer=None) -> Task:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    samples = clean(x, (x[:, 0] > 0).long())

    def reference() -> nn.Module:
        first, last = nn.utils.skip_init(nn.Linear, 3, 4), nn.utils.skip_init(nn.Linear, 4, 2)
        model = nn.Sequential(first, nn.ReLU(), last)
        values = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=values))
        return model.eval()

    return classification(lambda: nn.Linear(3, 2), samples, samples, samples, recipe(5, 8, 0.01), refer or reference)


def test_classification_and_the_task_with_a_tuned_reference_keep_the_contract_of_tasks():
    check_task(small(), batch=8)
    check_task(tuned_reference(small(), 0.7), batch=8)


def test_the_reference_has_units_and_everything_else_is_the_other_task():
    task = small()
    tuned = tuned_reference(task, 0.5)
    assert [unit.beta for unit in units(tuned.reference())] == [0.5]
    assert not units(task.reference())
    assert isinstance(tuned, HeldOut)
    assert tuned.size == task.size and tuned.metrics == task.metrics and tuned.recipe == task.recipe


def test_at_beta_one_it_is_the_reference_as_it_was():
    task, x = small(), torch.randn(9, 3)
    assert torch.equal(tuned_reference(task, 1.0).reference()(x), task.reference()(x))


def test_it_can_be_named_on_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "relu_reference.py").write_text(
        "from torch import nn\nfrom steering.tasks.blobs import Blobs\n"
        "class Own(Blobs):\n"
        "    def reference(self):\n"
        "        return nn.Sequential(super().reference(), nn.ReLU())\n"
    )
    monkeypatch.chdir(tmp_path)
    text = "steering.theory_checks.curvature.bridge:tuned_reference(task='relu_reference:Own(seed=3)', beta=0.6)"
    task = registry.build("tasks", text)
    for drawn, seed in ((task, 3), (task.seeded(1), 4)):
        assert [unit.beta for unit in units(drawn.reference())] == [0.6]
        weight = Blobs(seed=seed).reference().state_dict()["weight"]
        assert torch.equal(drawn.reference().state_dict()["0.weight"], weight)


def test_a_wrong_option_and_a_reference_without_relu_and_none_at_all_are_named():
    with pytest.raises(UserError, match=r"tuned_reference: .*valid number.*, got 'x'"):
        registry.build("tasks", "steering.theory_checks.curvature.bridge:tuned_reference(task='blobs', beta='x')")
    with pytest.raises(UserError, match="no ReLU to replace"):
        tuned_reference(small(lambda: nn.Linear(3, 2).eval()), 0.9).reference()
    samples = clean(torch.randn(8, 3), torch.arange(8) % 2)
    task = classification(lambda: nn.Linear(3, 2), samples, samples, samples, recipe(1, 4, 0.1))
    with pytest.raises(UserError, match="without a reference"):
        task.reference()


def test_the_variance_ratio_is_that_of_the_difference():
    losses = np.array([0.0, 1.0, 2.0, 5.0])
    assert variance_ratio(losses, np.zeros(4)) == 1
    assert variance_ratio(losses, losses + 3) == 0
    assert variance_ratio(losses, -losses) == pytest.approx(4)
    assert variance_ratio(losses, 0.5 * losses) == pytest.approx(0.25)


def test_training_depends_on_the_seed_alone():
    task = small()
    models = [trained(task, task.recipe, seed) for seed in (0, 0, 1)]
    first, second, third = (model.state_dict()["weight"] for model in models)
    assert torch.equal(first, second) and not torch.equal(first, third)


@pytest.mark.slow
def test_a_measurement_has_a_ratio_and_an_error_for_every_beta():
    result = measure(0, [0.5], steps=10)
    assert result["betas"] == [1.0, 0.5]
    assert all(ratio > 0 for ratio in result["ratio"])
    assert all(0 <= share <= 1 for key in ("reference", "steered") for share in result[key])
