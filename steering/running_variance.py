"""Running variances of loss and reference loss, and what follows from them."""

import torch
from torch import Tensor

from steering.distributed import all_reduce_sum, world_size
from steering.rules.solve import true_entries

MEMORY = 0.9  # share of the past kept at every step
PENDING = 64  # batches that wait until somebody reads the averages
PENDING_ENTRIES = 1 << 19  # of them all


class RunningVariance:
    """Moving averages of Var(loss), Var(reference loss) and their covariance, within rows, over all ranks.

    Only what varies inside a row matters: adding a constant to a row changes no weight. With one row (the
    usual per-sample loss) these are the plain variances.

    ``best_scale`` is the control-variate coefficient: Var(loss - b * reference) is smallest at
    b = Cov(loss, reference) / Var(reference), and there never above Var(loss).
    """

    def __init__(self):
        self._values: Tensor | None = None
        self._pending: list[tuple[Tensor, Tensor | None]] = []  # losses and reference [2, rows, columns], and the mask

    @property
    def values(self) -> Tensor | None:
        """Var(loss), Var(reference) and Cov, ``[3]`` double, in squared units of the loss; None before a batch."""
        pending, self._pending = self._pending, []
        for both, mask in pending:
            fresh = _variances(both, mask)
            if self._values is not None:
                old = self._values.to(fresh.device)
                fresh = torch.lerp(fresh, torch.where(old.isfinite().all(), old, fresh), MEMORY)
            self._values = fresh
        return self._values

    def update(self, losses: Tensor, reference: Tensor, mask: Tensor | None = None) -> None:
        """Adds one batch of rows, all ``[rows, columns]`` without gradient, each rank its own rows.

        Between several ranks its variances are computed at once, as all have to take part; else in good time, in a
        loop that is still in the processor's caches, or when they are read.
        """
        both = torch.stack([losses, reference])
        self._pending.append((both, None if mask is None else mask.clone()))
        number = len(self._pending)
        if number >= PENDING or number * both.numel() >= PENDING_ENTRIES or world_size() > 1:
            _ = self.values

    def best_scale(self) -> Tensor:
        """Control-variate coefficient Cov / Var(reference), a scalar kept within 0 and 1."""
        values = self.values
        assert values is not None, "no batch was seen yet"
        _, reference, covariance = values
        return (covariance / reference.clamp(min=1e-300)).clamp(0, 1)

    def ratio(self, scale: float | Tensor = 1.0) -> Tensor:
        """Var(loss - scale * reference) / Var(loss): above 1 the reference adds noise, a scalar."""
        values = self.values
        assert values is not None, "no batch was seen yet"
        loss, reference, covariance = values
        return (loss - 2 * scale * covariance + scale**2 * reference) / loss.clamp(min=1e-300)

    def state_dict(self) -> dict:
        return {"values": self.values}

    def load_state_dict(self, state: dict) -> None:
        self._values, self._pending = state["values"], []


def _variances(both: Tensor, mask: Tensor | None) -> Tensor:
    """Var(loss), Var(reference) and Cov of a batch over all ranks, ``[3]``, of ``[2, rows, columns]``."""
    entries: Tensor | int = both[0].numel()
    if mask is None:
        both = both - both.mean(-1, keepdim=True)
    else:
        counts = true_entries(mask)
        both = both.masked_fill(~mask, 0)
        both = (both - both.sum(-1, keepdim=True) / counts.clamp(min=1)) * mask
        entries = counts.sum()
    both = both.view(2, -1)
    sums = (both @ both.T).double().view(-1)
    if world_size() > 1:
        *_, entries = sums = all_reduce_sum(torch.cat([sums, torch.as_tensor(entries, device=sums.device).view(1)]))
    return sums[[0, 3, 1]] / (entries.clamp(min=1) if isinstance(entries, Tensor) else entries)
