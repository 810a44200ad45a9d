"""What one call of a Steerer gives: the loss to differentiate, the weights, and figures to log."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from steering.distributed import all_reduce_sum, world_size


class RowFigures(NamedTuple):
    """What is computed of a batch only when somebody reads it, all detached.

    Attributes:
        weighted_loss: scalar to log: the weighted mean of the target's loss alone, the reference's part left out.
        entries: how many entries of every row count, ``[rows]``; a row without any counts for nothing, here and below.
        sums: of the weights of every row, and of their squares, ``[rows]`` each, in any unit of weight.
        gated: 1 for rows whose weights average less than a half, ``[rows]``: anchors so far beyond the reference that
            an epsilon, or a memory of worse days, quiets them.
        risk: of every row, ``[rows]``, where the rule can tell; else None.
        row_temperature: of every row, ``[rows]``, or one number for all, where the rule has a temperature; else None.
    """

    weighted_loss: Tensor
    entries: Tensor
    sums: tuple[Tensor, Tensor]
    gated: Tensor
    risk: Tensor | None = None
    row_temperature: Tensor | float | None = None


@dataclass(frozen=True)
class Steered:
    """The steered loss of a batch; all but ``loss`` are detached.

    Attributes:
        loss: scalar that carries the gradient: the weighted mean of the excess loss, or the risk of a rule that learns
            a temperature. Averaged over ranks, as DistributedDataParallel averages gradients, it gives the gradient of
            one process with the whole batch. Where a reference is subtracted it may be negative.
        weights: like the losses; 1 is the weight in a plain average. For Pairs ``[n]``: the mean weight of the
            negatives of a pair's two anchors, which is what pulls the pair together.
        scale: factor of the reference loss that was used, a scalar.
        measure: gives the figures of the rows; called once, when the first of them is read.
    """

    loss: Tensor
    weights: Tensor
    scale: Tensor
    measure: Callable[[], RowFigures]

    @cached_property
    def rows(self) -> RowFigures:
        """Figures of this rank's rows."""
        with torch.no_grad():
            return self.measure()

    @property
    def weighted_loss(self) -> Tensor:
        """Weighted mean of the target's loss alone, the reference's part left out, a scalar to log."""
        return self.rows.weighted_loss

    @property
    def entries(self) -> Tensor:
        """How many entries of every row count, ``[rows]``."""
        return self.rows.entries

    @property
    def effective_share(self) -> Tensor:
        """Effective sample size (sum w)^2 / sum w^2 of every row as a share of its entries, ``[rows]``, 0 to 1."""
        first, second = self.rows.sums
        return first.square() / (second * self.entries.clamp(min=1)).clamp(min=torch.finfo(first.dtype).tiny)

    @property
    def effective_sample_size(self) -> Tensor:
        """Effective sample size of every row, in entries, ``[rows]``."""
        return self.effective_share * self.entries

    @property
    def objective(self) -> Tensor:
        """The risk that is minimised, a scalar, of this rank's rows; the loss where the rule does not tell."""
        return self.loss.detach() if self.rows.risk is None else self._mean(self.rows.risk)

    @property
    def temperature(self) -> Tensor | None:
        """Mean temperature of this rank's rows, a scalar, where the rule has one."""
        return None if self.rows.row_temperature is None else self._mean(self._temperatures())

    def figures(self) -> dict[str, float | None]:
        """Means over the rows of all ranks that have any entry; every rank has to ask for them.

        Returns:
            ``effective`` (share) and ``effective_sample_size``, ``gated`` (share of the rows), ``objective``,
            ``weighted_loss``, and ``temperature``, None where the rule has none.
        """
        counted = self.entries > 0
        unknown = torch.zeros_like(self.entries)
        columns = {
            "rows": torch.ones_like(unknown),
            "effective": self.effective_share,
            "effective_sample_size": self.effective_sample_size,
            "gated": self.rows.gated,
            "objective": unknown if self.rows.risk is None else self.rows.risk.to(unknown),
            "temperature": unknown if self.rows.row_temperature is None else self._temperatures(),
        }
        sums = torch.stack([column.double() for column in columns.values()]).masked_fill(~counted, 0).sum(-1)
        scalars = torch.stack([self.loss.detach(), self.weighted_loss]).to(sums)
        *row_sums, loss, weighted_loss = all_reduce_sum(torch.cat([sums, scalars])).tolist()
        rows = max(1.0, row_sums[0])
        means: dict[str, float | None] = {
            name: value / rows for name, value in zip(list(columns)[1:], row_sums[1:], strict=True)
        }
        means["weighted_loss"] = weighted_loss / world_size()
        if self.rows.risk is None:
            means["objective"] = loss / world_size()
        if self.rows.row_temperature is None:
            means["temperature"] = None
        return means

    def _temperatures(self) -> Tensor:
        return torch.as_tensor(self.rows.row_temperature).to(self.entries).expand_as(self.entries)

    def _mean(self, values: Tensor) -> Tensor:
        """Mean over the rows that have any entry, of ``[rows]``."""
        counted = self.entries > 0
        return values.masked_fill(~counted, 0).sum() / counted.sum().clamp(min=1)
