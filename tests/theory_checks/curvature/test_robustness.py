"""Attacks stay in their ball, do harm, and are not fooled by the limits of the range."""

import pytest
import torch
from torch import nn

from steering.tasks.in_memory import clean
from steering.theory_checks.curvature.robustness import attack, measure, under_attack
from steering.theory_checks.curvature.small import error


def linear() -> nn.Module:
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.bias)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]))
    return model.requires_grad_(False)


@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_attacked_samples_stay_within_ball_and_range(radius):
    samples = clean(torch.rand(20, 4).round(decimals=1), torch.arange(20) % 2)
    moved = attack(linear(), samples, radius)
    assert (moved - samples.x).abs().max() <= radius + 1e-6
    assert moved.min() >= 0 and moved.max() <= 1


def test_on_a_linear_network_the_attack_is_the_known_worst_case():
    samples = clean(torch.full((2, 4), 0.5), torch.tensor([0, 1]))
    expected = 0.5 + 0.1 * torch.tensor([[-1.0, 1.0, -1.0, 1.0], [1.0, -1.0, 1.0, -1.0]])
    assert torch.allclose(attack(linear(), samples, 0.1), expected, atol=1e-6)


def test_values_at_the_limit_of_the_range_are_moved_too():
    """A clamp within the graph would have no gradient at 0, and the attack would see nothing to do."""
    samples = clean(torch.zeros(1, 4), torch.tensor([0]))
    assert torch.allclose(attack(linear(), samples, 0.2), torch.tensor([[0.0, 0.2, 0.0, 0.2]]), atol=1e-6)


def test_an_attack_never_lowers_the_loss():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).requires_grad_(False)
    samples = clean(torch.rand(50, 4), torch.arange(50) % 3)
    moved = attack(model, samples, 0.2)
    before, after = (nn.functional.cross_entropy(model(x), samples.y, reduction="none") for x in (samples.x, moved))
    assert (after >= before).all() and (after > before).any()


def test_a_sample_stands_under_both_only_if_it_stands_under_each():
    model, samples = linear(), clean(torch.rand(40, 4), torch.arange(40) % 2)
    carried = attack(model, samples, 0.5, seed=3)
    accuracy = under_attack(model, samples, 0.05, carried, 0)
    assert accuracy["both"] <= min(accuracy["white"], accuracy["carried"])
    assert accuracy["carried"] == 1 - error(model, clean(carried, samples.y))


@pytest.mark.slow
def test_a_measurement_tests_relu_and_the_chosen_beta_alone():
    result = measure(0, [0.8], radii=(0.1,), steps=20)
    (at,) = result["radii"]
    assert at["betas"] == [1.0, 0.8] and len(at["validation"]) == 2
    assert set(at["test"]) == {"relu", "search"}
    scores = [seen["both"] for seen in at["validation"]]
    assert at["chosen"] == at["betas"][scores.index(max(scores))]
    assert at["validation"][0]["white"] == at["validation"][0]["carried"]  # the ReLU network is its own twin
