"""What every method learns, how many parameters that is, and that nothing else moves."""

import pytest
import torch
from torch import nn

from steering.curvature.classification import Classification, Split, recipe, trained
from steering.curvature.methods import METHODS, LowRank, add_low_rank, learned, network, prepare, without_head
from steering.errors import UserError


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


@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("probe", 0),
        ("curvature", 2 * (4 + 4 + 6)),
        ("low_rank", (9 + 4) + (16 + 6)),  # the convolution with groups is left out
        ("full", (9 * 4 + 4) + 8 + (9 * 2 * 4 + 4) + (16 * 6 + 6)),
    ],
)
def test_a_method_learns_the_head_and_this_many_more(method, number):
    body = convolutional()
    model = prepare(method, body, 6, 3, torch.randn(2, 1, 8, 8))
    assert learned(model) == number + 3 * (6 + 1)
    assert all(parameter.requires_grad for parameter in body.parameters())  # the original is untouched


@pytest.mark.parametrize("method", METHODS)
def test_training_moves_what_is_learned_and_nothing_else(method):
    x, y = torch.randn(24, 1, 8, 8), torch.arange(24) % 3
    samples = Split(x, y)

    def start() -> nn.Module:
        return prepare(method, convolutional_once, 6, 3, x[:2])

    convolutional_once = convolutional()
    torch.manual_seed(0)
    task = Classification(start, samples, samples, samples, recipe(3, 12, 0.1))
    model = trained(task, task.recipe, 0)
    moved = {name for name, p in model.named_parameters() if p.requires_grad}
    backbone = model.get_submodule("backbone")
    kept = dict(convolutional_once.named_parameters())
    for name, parameter in backbone.named_parameters():
        twin = kept.get(name.replace("layer.", ""))
        if f"backbone.{name}" not in moved and twin is not None:
            assert torch.equal(parameter, twin), name
    changed = [n for n, p in backbone.named_parameters() if n in kept and not torch.equal(p, kept[n])]
    assert bool(changed) == (method == "full")
    assert torch.equal(model.state_dict()["backbone.1.running_mean"], torch.zeros(4))


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2)])
def test_low_rank_begins_as_the_layer_and_adds_a_map_of_that_rank(layer):
    low = LowRank(layer, rank=1)
    x = torch.randn(6, 5) if isinstance(layer, nn.Linear) else torch.randn(6, 2, 9, 9)
    assert torch.equal(low(x), layer(x))
    nn.init.normal_(low.up.weight)
    added = (low(x) - layer(x)).movedim(1, -1).flatten(0, -2)
    assert torch.linalg.matrix_rank(added, rtol=1e-4) == 1


def test_low_rank_layers_are_not_added_to_themselves():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert add_low_rank(model) == 2
    assert sum(isinstance(part, LowRank) for part in model.modules()) == 2


def test_the_head_is_the_last_linear_layer():
    model = network(8, 6, 2, 3)
    body, head = without_head(model)
    x = torch.randn(5, 8)
    assert head.out_features == 3 and body(x).shape == (5, 6)
    assert torch.allclose(head(body(x)), model(x))
    with pytest.raises(UserError, match="no linear layer"):
        without_head(nn.Sequential(nn.ReLU()))
