"""A batch in parts has the gradient of the batch as a whole."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from steering import KL, Pairs, Steerer
from steering.rules import GlobalContrastive, InfoNCE
from steering.settings import Arm, Recipe
from steering.task import Batch, Losses
from steering.training.forward import Forward


class Towers(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.left, self.right = nn.Linear(5, 4, dtype=torch.float64), nn.Linear(5, 4, dtype=torch.float64)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.dropout = nn.Dropout(dropout)


@dataclass
class Task:
    kind: str

    def losses(self, model: Towers, batch: Batch) -> Losses:
        left, right = model.dropout(model.left(batch["x"])), model.right(batch["y"])
        if self.kind == "pairs":
            return Losses(Pairs(normalize(left, dim=-1), normalize(right, dim=-1), model.scale.exp()))
        if self.kind == "rows":
            return Losses((left - right).square(), batch["mask"])
        return Losses((left - right).square().mean(-1))


def batch(n=8) -> Batch:
    x, y = (torch.randn(n, 5, dtype=torch.float64) for _ in range(2))
    return Batch(torch.arange(n), {"x": x, "y": y, "mask": torch.rand(n, 4) < 0.8})


def gradients(kind: str, rule, size: int | None, model: Towers, some: Batch) -> list[Tensor]:
    recipe = Recipe(steps=1, batch=8, micro_batch=size, arms={"a": Arm()}, baseline="a")
    losses, backward = Forward(Task(kind), model, recipe, seed=5)(some, 3)  # type: ignore[arg-type]
    model.zero_grad()
    backward(Steerer(rule, population=50)(losses.values, mask=losses.mask).loss)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("size", [1, 3, 4, 7])
@pytest.mark.parametrize(
    "kind, rule",
    [
        ("samples", KL(rho=8)),
        ("rows", KL(temperature=0.5)),
        ("pairs", KL(temperature=0.1)),
        ("pairs", KL(rho=8)),
        ("pairs", InfoNCE()),
        ("pairs", GlobalContrastive(radius=2.0)),
    ],
    ids=repr,
)
def test_parts_add_up_to_the_gradient_of_the_whole_temperature_included(kind, rule, size):
    model, some = Towers(), batch()
    wanted = gradients(kind, rule, None, model, some)
    found = gradients(kind, rule, size, model, some)
    assert any(float(x.abs().max()) > 1e-4 for x in wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-13)


def test_both_runs_of_a_part_drop_the_same_units():
    """By finite differences of the loss with the dropout that the seeds imply."""
    model, some = Towers(dropout=0.5), batch()
    recipe = Recipe(steps=1, batch=8, micro_batch=4, arms={"a": Arm()}, baseline="a")
    forward = Forward(Task("samples"), model, recipe, seed=5)  # type: ignore[arg-type]

    def loss() -> Tensor:
        values = forward(some, 3)[0].values
        assert isinstance(values, Tensor)
        return values.mean()

    losses, backward = forward(some, 3)
    assert isinstance(losses.values, Tensor)
    backward(losses.values.mean())
    assert model.left.bias.grad is not None
    for place in range(4):
        with torch.no_grad():
            model.left.bias[place] += 1e-6
            up = loss()
            model.left.bias[place] -= 2e-6
            down = loss()
            model.left.bias[place] += 1e-6
        assert float(model.left.bias.grad[place]) == pytest.approx(float(up - down) / 2e-6, abs=1e-6)


def test_running_means_move_once_a_step():
    class Normed(Towers):
        def __init__(self):
            super().__init__()
            self.dropout = nn.BatchNorm1d(4, dtype=torch.float64)  # type: ignore[assignment]

    model = Normed()
    gradients("samples", KL(rho=8), 4, model, batch())
    assert dict(model.named_buffers())["dropout.num_batches_tracked"] == 2, "once for each of the two parts"
