"""Running variances of loss and reference loss, and what follows from them."""

import torch
from torch import Tensor

from steering.distributed import all_reduce_sum, world_size
from steering.rules.solve import true_entries

MEMORY = 0.9  # share of the past kept at every step


class RunningVariance:
    """Moving averages of Var(loss), Var(reference loss) and their covariance, within rows, over all ranks.

    Only what varies inside a row matters: adding a constant to a row changes no weight. With one row (the
    usual per-sample loss) these are the plain variances.

    ``best_scale`` is the control-variate coefficient: Var(loss - b * reference) is smallest at
    b = Cov(loss, reference) / Var(reference), and there never above Var(loss).
    """

    def __init__(self):
        self.values: Tensor | None = None  # [3]: Var(loss), Var(reference), Cov, in squared units of the loss

    @torch.no_grad()
    def update(self, losses: Tensor, reference: Tensor, mask: Tensor | None = None) -> None:
        """Adds one batch of rows, all ``[rows, columns]``, each rank its own rows."""
        both = torch.stack([losses, reference])
        if mask is None:
            both = both - both.mean(-1, keepdim=True)
            entries = losses.new_full((1,), losses.numel()) if world_size() > 1 else losses.numel()
        else:
            counts = true_entries(mask)
            both = both.masked_fill(~mask, 0)
            both = (both - both.sum(-1, keepdim=True) / counts.clamp(min=1)) * mask
            entries = counts.sum()[None].to(losses)
        both = both.view(2, -1)
        sums = (both @ both.T).double()
        if isinstance(entries, Tensor):
            *_, entries = sums = all_reduce_sum(torch.cat([sums.view(-1), entries.double()]))
            sums, entries = sums[:4].view(2, 2), entries.clamp(min=1)
        fresh = torch.cat([sums.diagonal(), sums[0, 1:]]) / entries
        if self.values is not None:
            old = self.values.to(fresh.device)
            fresh = torch.lerp(fresh, torch.where(old.isfinite().all(), old, fresh), MEMORY)
        self.values = fresh

    def best_scale(self) -> Tensor:
        """Control-variate coefficient Cov / Var(reference), a scalar kept within 0 and 1."""
        assert self.values is not None, "no batch was seen yet"
        _, reference, covariance = self.values
        return (covariance / reference.clamp(min=1e-300)).clamp(0, 1)

    def ratio(self, scale: float | Tensor = 1.0) -> Tensor:
        """Var(loss - scale * reference) / Var(loss): above 1 the reference adds noise, a scalar."""
        assert self.values is not None, "no batch was seen yet"
        loss, reference, covariance = self.values
        return (loss - 2 * scale * covariance + scale**2 * reference) / loss.clamp(min=1e-300)

    def state_dict(self) -> dict:
        return {"values": self.values}

    def load_state_dict(self, state: dict) -> None:
        self.values = state["values"]
