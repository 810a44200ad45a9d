"""Points of four classes, a network for them, and the loop by hand, for adapters of loops."""

from typing import Any

import torch
from loops import weights_of
from torch import nn
from torch.nn.functional import cross_entropy

from steering import Steerer
from steering.references import LossTable

SAMPLES, BATCH, RULE = 48, 32, "cvar(alpha=0.1)"  # the second batch is half full


class Points(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, k: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(k)
        x = torch.randn(3, generator=generator, dtype=torch.float64)
        return {"index": k, "x": x, "y": torch.randint(4, (), generator=generator)}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def losses(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    return cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def epoch_batches() -> list[dict[str, Any]]:
    """The batches of an epoch."""
    return list(torch.utils.data.DataLoader(Points(), BATCH))


def table() -> LossTable:
    with torch.no_grad():
        return LossTable(torch.cat([losses(network(1), batch) for batch in epoch_batches()]))


def by_hand(steerer: Steerer, epochs: int = 1) -> tuple[torch.Tensor, list[float]]:
    model, weighted = network(0), []
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(epochs):
        for batch in epoch_batches():
            with torch.no_grad():
                reference_losses = losses(network(1), batch)
            steered = steerer(losses(model, batch), reference_losses)
            steered.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            weighted.append(float(steered.weighted_loss))
    return weights_of(model), weighted
