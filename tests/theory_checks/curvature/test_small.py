"""The choice of beta: what is always tried, and what is chosen."""

import pytest
import torch
from torch import nn

from steering.curvature import CurvatureUnit, units
from steering.errors import UserError
from steering.tasks.in_memory import clean
from steering.theory_checks.curvature.small import choose, parse, probe_error


def test_relu_is_always_among_the_candidates_and_each_is_scored_once():
    scored = []
    choice = choose([0.5, 0.9, 0.5], lambda beta: scored.append(beta) or beta)
    assert scored == choice["betas"] == [1.0, 0.9, 0.5]
    assert choice["chosen"] == 0.5


def test_of_equal_scores_the_nearest_to_relu_is_chosen():
    assert choose([0.5, 0.7, 0.9], lambda beta: 0.0 if beta < 0.8 else 1.0)["chosen"] == 0.7
    assert choose([0.5, 0.7], lambda _: 0.3)["chosen"] == 1.0


@pytest.mark.parametrize(
    ("text", "betas"),
    [
        ("0.5,0.9", [1.0, 0.9, 0.5]),
        ("0.7:0.9:0.1", [1.0, 0.9, 0.8, 0.7]),
        ("1", [1.0]),
        ("0.5:0.5:0.1", [1.0, 0.5]),
    ],
)
def test_betas_are_a_list_or_a_range(text, betas):
    assert parse(text) == betas


@pytest.mark.parametrize("text", ["", "0.5:0.9", "0.9:0.5:0.1", "0.5:1:0", "0:1:0.0001", "1.2", "nan"])
def test_other_betas_are_refused_in_one_line(text):
    with pytest.raises(UserError) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_the_head_is_fitted_anew_for_every_beta():
    """Classes differ below zero alone: a ReLU hides that from any head, a smooth unit does not."""
    y = torch.arange(80) % 2
    x = torch.where(y == 1, -0.1, -3.0)[:, None] + 0.01 * torch.randn(80, 1)
    body = nn.Sequential(CurvatureUnit(1.0, 0.0), nn.Linear(1, 1, bias=False))
    nn.init.constant_(body[1].weight, 100.0)  # type: ignore[arg-type]
    samples = clean(x, y)
    choice = choose([0.2], lambda beta: probe_error(body, beta, samples, samples))
    assert choice["validation"] == [0.5, 0.0] and choice["chosen"] == 0.2
    assert units(body)[0].beta == 0.2
