"""What every method learns, how many parameters that is, and that nothing else moves."""

import sys

import pytest
import torch
from torch import nn

from steering.errors import UserError
from steering.tasks.in_memory import clean
from steering.theory_checks.curvature import transfer
from steering.theory_checks.curvature.small import classification, network, recipe, trained
from steering.theory_checks.curvature.transfer import prepare, without_head

LOW_RANK = pytest.param("low_rank", marks=pytest.mark.slow)  # the import of peft


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(),
    ).eval()


PARAMETERS = {
    "probe": 0,
    "curvature": 2 * (4 + 4 + 6),
    "low_rank": (9 + 4) + (16 + 6),  # the convolution with groups is left out
    "full": (9 * 4 + 4) + 8 + (9 * 2 * 4 + 4) + (16 * 6 + 6),
}


@pytest.mark.parametrize("method", ["probe", "curvature", LOW_RANK, "full"])
def test_a_method_learns_the_head_and_its_own_parameters_and_moves_nothing_else(method):
    if method == "low_rank":
        pytest.importorskip("peft")
    x, y = torch.randn(24, 1, 8, 8), torch.arange(24) % 3
    samples, body = clean(x, y), convolutional()
    original = {name: parameter.clone() for name, parameter in body.named_parameters()}
    start = prepare(method, body, 6, 3, x[:2])
    learned = sum(parameter.numel() for parameter in start.parameters() if parameter.requires_grad)
    assert learned == PARAMETERS[method] + 3 * (6 + 1)
    assert all(parameter.requires_grad for parameter in body.parameters())  # the original is untouched
    task = classification(lambda: start, samples, samples, samples, recipe(3, 12, 0.1))
    before = {name: parameter.clone() for name, parameter in start.named_parameters()}
    tuned = trained(task, task.recipe, 0)
    for name, parameter in tuned.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    assert all(torch.equal(parameter, original[name]) for name, parameter in body.named_parameters())
    assert torch.equal(dict(tuned.named_buffers())["backbone.1.running_mean"], torch.zeros(4))


@pytest.mark.slow
def test_low_rank_begins_as_the_network():
    pytest.importorskip("peft")
    body, x = convolutional(), torch.randn(2, 1, 8, 8)
    assert torch.equal(prepare("low_rank", body, 6, 3, x).eval().get_submodule("backbone")(x), body(x))


def test_without_peft_low_rank_is_no_method_and_says_so(monkeypatch):
    monkeypatch.setattr(transfer, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert transfer.available() == ("probe", "curvature", "full")
    with pytest.raises(UserError, match="low_rank needs peft: pip install"):
        prepare("low_rank", convolutional(), 6, 3, torch.randn(2, 1, 8, 8))


def test_the_head_is_the_last_linear_layer():
    model = network(8, 6, 2, 3)
    body, head = without_head(model)
    x = torch.randn(5, 8)
    assert head.out_features == 3 and body(x).shape == (5, 6)
    assert torch.allclose(head(body(x)), model(x))
    with pytest.raises(UserError, match="no linear layer"):
        without_head(nn.Sequential(nn.ReLU()))
