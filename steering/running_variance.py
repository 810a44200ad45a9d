"""Running variances of loss and reference loss, and what follows from them."""

import torch
from torch import Tensor

from steering.distributed import all_reduce_sum, world_size
from steering.rules.solve import true_entries

MEMORY = 0.9  # share of the past kept at every step
PENDING = 64  # batches that wait for somebody to read the averages


class RunningVariance:
    """Moving averages of Var(loss), Var(reference loss) and their covariance, within rows, over all ranks.

    Only what varies inside a row matters: adding a constant to a row changes no weight. With one row (the
    usual per-sample loss) these are the plain variances.

    ``best_scale`` is the control-variate coefficient: Var(loss - b * reference) is smallest at
    b = Cov(loss, reference) / Var(reference), and there never above Var(loss).
    """

    def __init__(self):
        self._values: Tensor | None = None
        self._pending: list[Tensor] = []  # of batches, [2, 2]

    @property
    def values(self) -> Tensor | None:
        """Var(loss), Var(reference) and Cov, ``[3]`` double, in squared units of the loss; None before a batch.

        What is left of a batch, four numbers, enters the averages when they are read, or after ``PENDING`` batches.
        """
        if not self._pending:
            return self._values
        fresh = torch.stack(self._pending)[:, [0, 1, 0], [0, 1, 1]]
        values, self._pending = self._values, []
        if values is not None:
            fresh = torch.cat([values.to(fresh.device)[None], fresh])
        finite = fresh.isfinite().all(-1).unbind()
        values, *later = fresh.unbind()
        for before, batch in zip(finite, later, strict=False):
            values = torch.where(before, torch.lerp(batch, values, MEMORY), batch)
        self._values = values
        return values

    def update(self, losses: Tensor, reference: Tensor, mask: Tensor | None = None) -> None:
        """Adds one batch of rows, all ``[rows, columns]`` without gradient, each rank its own rows."""
        both, entries = torch.stack([losses, reference]), losses.numel()
        if mask is None:
            both -= both.sum(-1, keepdim=True) / losses.shape[1]
        else:
            counts = true_entries(mask)
            entries = counts.sum()
            both = both.masked_fill_(~mask, 0)
            both = (both - both.sum(-1, keepdim=True) / counts.clamp(min=1)) * mask
        both = both.view(2, -1)
        products = (both @ both.T).double()
        if world_size() > 1:
            sums = torch.cat([products.view(-1), torch.as_tensor(entries, device=both.device).view(1)])
            *_, entries = sums = all_reduce_sum(sums)
            products = sums[:4].view(2, 2)
        if self._pending and self._pending[0].device != products.device:
            self._pending = [pending.to(products.device) for pending in self._pending]
        self._pending.append(products / (entries.clamp(min=1) if isinstance(entries, Tensor) else entries))
        if len(self._pending) >= PENDING:
            self.values  # noqa: B018

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
