"""A batch in parts has the gradient of the batch as a whole."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from steering import KL, Pairs, Steerer
from steering.rules import GlobalContrastive, InfoNCE
from steering.settings import Arm, Recipe
from steering.task import Batch, Losses
from steering.training.forward import Forward, score


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
        if self.kind == "packed":
            return Losses((left - right).square().mean(-1), None, left, batch.rows, batch.ids % 3)
        return Losses((left - right).square().mean(-1))


def batch(n=8) -> Batch:
    x, y = (torch.randn(n, 5, dtype=torch.float64) for _ in range(2))
    return Batch(torch.arange(n), {"x": x, "y": y, "mask": torch.rand(n, 4) < 0.8})


def gradients(kind: str, rule, size: int | None, model: Towers, samples: Batch) -> list[Tensor]:
    recipe = Recipe(steps=1, batch=8, micro_batch=size, arms={"a": Arm()}, baseline="a")
    losses, backward = Forward(Task(kind), model, recipe, seed=5)(samples, 3)  # type: ignore[arg-type]
    model.zero_grad()
    backward(Steerer(rule, population=50)(losses.values, mask=losses.mask).loss)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "kind, rule, size",
    [
        ("samples", KL(rho=8), 3),
        ("rows", KL(temperature=0.5), 1),
        ("pairs", KL(temperature=0.1), 7),
        ("pairs", KL(rho=8), 3),
        ("pairs", InfoNCE(), 4),
        ("pairs", GlobalContrastive(radius=2.0), 1),
    ],
    ids=repr,
)
def test_parts_add_up_to_the_gradient_of_the_whole_temperature_included(kind, rule, size):
    model, samples = Towers(), batch()
    expected = gradients(kind, rule, None, model, samples)
    assert any(float(x.abs().max()) > 1e-4 for x in expected)
    torch.testing.assert_close(gradients(kind, rule, size, model, samples), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_packed_samples_add_up_to_the_gradient_of_the_whole(size):
    """Samples of 2, 0, 3, 1, 0, 2 entries, with answers; the loss depends on all entries at once."""
    model, rows = Towers(), torch.tensor([0, 0, 2, 2, 2, 3, 5, 5])
    samples = Batch(torch.arange(6), batch().fields, rows=rows)
    results = []
    for micro_batch in (None, size):
        recipe = Recipe(steps=1, batch=6, micro_batch=micro_batch, arms={"a": Arm()}, baseline="a")
        losses, backward = Forward(Task("packed"), model, recipe, seed=5)(samples, 3)  # type: ignore[arg-type]
        assert losses.rows is not None and losses.groups is not None and losses.outputs is not None
        assert losses.rows.tolist() == rows.tolist() and losses.groups.tolist() == [0, 1, 2, 0, 1, 2]
        model.zero_grad()
        backward((losses.values + losses.outputs.square().mean(-1)).logsumexp(0))  # type: ignore[operator]
        results.append([p.grad.clone() for p in (model.left.weight, model.right.bias) if p.grad is not None])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-13)
    assert len(results[0]) == 2


def test_both_runs_of_a_part_drop_the_same_units():
    """By finite differences of the loss with the dropout that the seeds imply."""
    model, samples = Towers(dropout=0.5), batch()
    recipe = Recipe(steps=1, batch=8, micro_batch=4, arms={"a": Arm()}, baseline="a")
    forward = Forward(Task("samples"), model, recipe, seed=5)  # type: ignore[arg-type]

    def loss() -> Tensor:
        values = forward(samples, 3)[0].values
        assert isinstance(values, Tensor)
        return values.mean()

    losses, backward = forward(samples, 3)
    assert isinstance(losses.values, Tensor)
    backward(losses.values.mean())
    assert model.left.bias.grad is not None
    for unit in range(4):
        with torch.no_grad():
            model.left.bias[unit] += 1e-6
            up = loss()
            model.left.bias[unit] -= 2e-6
            down = loss()
            model.left.bias[unit] += 1e-6
        assert float(model.left.bias.grad[unit]) == pytest.approx(float(up - down) / 2e-6, abs=1e-6)


def test_running_means_move_once_a_step():
    class Normed(Towers):
        def __init__(self):
            super().__init__()
            self.dropout = nn.BatchNorm1d(4, dtype=torch.float64)  # type: ignore[assignment]

    model = Normed()
    gradients("samples", KL(rho=8), 4, model, batch())
    assert dict(model.named_buffers())["dropout.num_batches_tracked"] == 2, "once for each of the two parts"


@pytest.mark.parametrize("kind", ["samples", "rows", "pairs", "packed"])
def test_candidates_scored_in_parts_have_the_losses_of_one_pass(kind):
    model, samples = Towers(dropout=0.5), replace(batch(), rows=torch.tensor([0, 0, 2, 2, 2, 3, 5, 7]))
    samples = samples if kind == "packed" else replace(samples, rows=None)
    before, one, parts = (
        torch.get_rng_state(),
        *(
            score(Task(kind), model, samples, Recipe(steps=1, batch=8, micro_batch=size, arms={}, baseline=""))  # type: ignore[arg-type]
            for size in (None, 3)
        ),
    )
    assert torch.equal(torch.get_rng_state(), before) and one.outputs is None
    torch.testing.assert_close(parts, one, rtol=1e-14, atol=1e-14)
