"""What is replaced, what is reported as missed, and that the model itself stays as it was."""

import copy
import doctest

import pytest
import torch
from torch import nn
from torch.nn import functional

from steering.curvature import CurvatureUnit, replace, replace_relus, set_beta, units
from steering.errors import UserError


class Functional(nn.Module):
    """ReLU in every way it can be called as a function."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        x = functional.relu(self.linear(x))
        x = torch.relu(self.linear(x) - 0.1)
        x = (self.linear(x) + 0.1).relu()
        x = functional.relu(self.linear(x), inplace=True)
        y = self.linear(x)
        y.relu_()  # what y holds afterwards is read, not what the call gives
        return y - torch.relu_(self.linear(x) - y)


class Reused(nn.Module):
    """One ReLU for three calls, as in the blocks of torchvision's ResNets."""

    def __init__(self, inplace: bool = True):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=inplace)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        out = self.relu(self.first(x))
        out = self.relu(self.second(out))
        out += x
        return self.relu(out)


class Forks(nn.Module):
    """Decides by the values of its input, which cannot be traced."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return functional.relu(x) if x.sum() > 0 else self.relu(-x)


class WritesIntoItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = x * 2
        self.relu(y)
        return y


class Drops(nn.Module):
    def forward(self, x):
        return functional.dropout(functional.relu(x), training=self.training)


class ReadsAView(nn.Module):
    """The view is written into; that its base changes too is seen by nobody who reads the graph."""

    def forward(self, x):
        y = x * 2
        functional.relu_(y.view(-1))
        return y


def alike(one: nn.Module, other: nn.Module, *shape: int) -> bool:
    x = torch.randn(*shape)
    return torch.equal(one(x), other(x))


def test_the_examples_in_the_documentation_are_right():
    assert doctest.testmod(replace).failed == 0


def test_every_functional_relu_becomes_a_unit_of_its_own_that_is_used():
    model = Functional()
    tuned = replace_relus(model, 1.0, example=(torch.randn(2, 4),))
    assert len(tuned.replaced) == len(units(tuned.model)) == 6
    assert tuned.missed == []
    assert alike(model, tuned.model, 5, 4)
    learned = replace_relus(model, 0.5, trainable=True).model
    learned(torch.randn(3, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.abs() > 0 for unit in units(learned) for p in unit.parameters())


@pytest.mark.parametrize("inplace", [True, False])
def test_a_relu_that_is_called_three_times_becomes_three_units(inplace):
    model = Reused(inplace)
    tuned = replace_relus(model, 1.0, example=(torch.randn(2, 4),))
    assert [site.what for site in tuned.replaced] == ["relu, called 3 times"] * 3
    assert alike(model, tuned.model, 5, 4)


def test_a_relu_with_two_names_becomes_two_units():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu)
    tuned = replace_relus(model, 0.9)
    assert [site.name for site in tuned.replaced] == ["1", "3"]
    assert tuned.model[1] is not tuned.model[3]  # type: ignore[index]
    assert model[1] is relu and model[3] is relu


def test_a_model_that_cannot_be_traced_loses_its_modules_and_names_its_functions():
    tuned = replace_relus(nn.Sequential(Forks(), Reused()), 0.9)
    assert [site.name for site in tuned.replaced if site.what == "module"] == ["0.relu"]
    assert len(tuned.replaced) == 4
    (missed,) = tuned.missed
    assert missed.name == "0" and "cannot trace" in missed.what


def test_what_a_relu_writes_into_its_input_is_seen_by_later_readers():
    model = WritesIntoItsInput()
    tuned = replace_relus(model, 0.5)
    x = torch.randn(6, 3)
    assert torch.equal(tuned.model(x), CurvatureUnit(0.5)(2 * x))


def test_an_answer_that_would_change_is_refused():
    model = ReadsAView()
    with pytest.raises(UserError, match="another answer"):
        replace_relus(model, 1.0, example=(torch.randn(3, 3),))


@pytest.mark.parametrize("make", [Functional, Reused, WritesIntoItsInput])
def test_the_model_stays_as_it_was_and_beta_one_makes_the_copy_the_same_again(make):
    model, x = make(), torch.randn(7, 4)
    before = [model(x), *model.named_modules()]
    tuned = replace_relus(model, 0.5).model
    assert not torch.equal(tuned(x), model(x)) and not units(model) and "forward" not in vars(model)
    assert torch.equal(model(x), before[0]) and [*model.named_modules()] == before[1:]
    set_beta(tuned, 1.0)
    assert torch.equal(tuned(x), model(x))


def test_names_and_what_the_forward_pass_does_not_use_stay_and_a_copy_has_units_of_its_own():
    model = Reused()
    tuned = replace_relus(model, 0.5).model
    assert list(tuned.state_dict()) == list(model.state_dict()) and type(tuned) is Reused
    other = copy.deepcopy(tuned)
    set_beta(other, 1.0)
    assert not alike(tuned, other, 3, 4) and {unit.beta for unit in units(tuned)} == {0.5}
    with pytest.raises(UserError, match="already"):
        replace_relus(tuned, 0.5)


def test_channels_are_counted_with_an_example():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 2))
    tuned = replace_relus(model, 0.8, trainable=True, per_channel=True, example=(torch.randn(2, 3, 4, 4),))
    assert [site.channels for site in tuned.replaced] == [5, 7]
    assert sum(p.numel() for unit in units(tuned.model) for p in unit.parameters()) == 2 * (5 + 7)
    with pytest.raises(UserError, match="example"):
        replace_relus(model, 0.8, per_channel=True)


def test_a_unit_the_example_does_not_reach_is_shared_and_says_so():
    model = Forks()
    tuned = replace_relus(model, 0.8, per_channel=True, trainable=True, example=(torch.ones(2, 3),))
    assert tuned.replaced[0].channels is None and "example does not say" in tuned.replaced[0].what


def test_other_activations_are_reported_and_left_alone_and_the_error_names_them():
    tuned = replace_relus(nn.Sequential(nn.ReLU(), nn.GELU(), nn.ReLU6()), 0.9)
    assert [site.name for site in tuned.missed] == ["1", "2"]
    assert type(tuned.model[1]) is nn.GELU  # type: ignore[index]
    for model, message in (
        (nn.Sequential(nn.Linear(2, 2), nn.GELU()), "1: GELU is no ReLU and stays"),
        (nn.Linear(2, 2), "Nor has it another"),
        (nn.RNN(2, 2, nonlinearity="relu"), "kernel cannot be changed"),
    ):
        with pytest.raises(UserError, match=message):
            replace_relus(model, 0.9)


class OtherFunctions(nn.Module):
    def forward(self, x):
        return functional.leaky_relu(functional.relu(x)) + x.clamp(min=0) + torch.tanh(x).tanh()


def test_functions_that_are_no_relu_or_may_be_one_are_reported():
    tuned = replace_relus(OtherFunctions(), 0.9)
    other = ["leaky_relu is no ReLU and stays", "clamp may act as a ReLU; it stays", *["tanh is no ReLU and stays"] * 2]
    assert [site.what.partition(" ")[2] for site in tuned.missed] == other
    assert any("same in training as in evaluation" in site.what for site in replace_relus(Drops(), 0.9).missed)


def test_transformer_layers_are_replaced_by_their_attribute():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 5, 8)
    tuned = replace_relus(layer, 1.0, example=(x,), per_channel=True)
    assert [(site.name, site.channels) for site in tuned.replaced] == [("activation", 16)]
    assert torch.allclose(tuned.model(x), layer(x), atol=1e-6)
    set_beta(tuned.model, 0.5)
    assert not torch.allclose(tuned.model(x), layer(x), atol=1e-3)
    set_beta(tuned.model, 1.0)
    assert torch.allclose(tuned.model(x), layer(x), atol=1e-6)


def test_the_mode_of_every_part_stays():
    model = nn.Sequential(Reused(), nn.ReLU(), nn.BatchNorm1d(4)).train()
    model[2].eval()
    tuned = replace_relus(model, 0.9, example=(torch.randn(3, 4),))
    assert tuned.model.training and not tuned.model[2].training  # type: ignore[index]


def test_random_numbers_and_running_means_are_untouched():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tuned = replace_relus(model, 0.9, example=(torch.ones(3, 4),))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(tuned.model.state_dict()["1.running_mean"], torch.zeros(4))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sites"), [("resnet18", 17), ("densenet121", 121)])
def test_every_relu_of_torchvision_models_is_found(name, sites):
    models = pytest.importorskip("torchvision.models")
    model, x = models.get_model(name, weights=None).eval(), torch.randn(1, 3, 64, 64)
    tuned = replace_relus(model, 1.0, per_channel=True, example=(x,))
    assert len(tuned.replaced) == sites and not tuned.missed
    assert torch.equal(tuned.model(x), model(x))
