"""How the losses of a batch fall into rows: one over all ranks, or many, each a distribution of its own."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steering.collect import gather, total, world_size
from steering.errors import UserError
from steering.levels import Levels
from steering.rules.rule import Rule


@dataclass(frozen=True)
class Steered:
    """What one call of a Steerer gives; all but ``loss`` are detached.

    Attributes:
        loss: scalar that carries the gradient. Averaged over ranks, as DistributedDataParallel averages
            gradients, it gives the gradient of one process with the whole batch.
        weights: like the losses; 1 is the weight in a plain average. For Pairs ``[n]``: the mean weight of the
            negatives of a pair's two anchors, which is what pulls the pair together.
        effective: effective sample size of every row as a share of its entries, ``[rows]``, 0 to 1.
        scale: factor of the reference loss that was used, a scalar.
        entries: how many entries of every row count, ``[rows]``.
    """

    loss: Tensor
    weights: Tensor
    effective: Tensor
    scale: Tensor
    entries: Tensor


class Rows(Protocol):
    """The losses of a batch and of its reference, as the engine sees them.

    Attributes:
        shared: whether there is one row only, whose level is the same on every rank.
    """

    shared: bool

    def sample(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Rows of losses, of reference losses, and their mask, to estimate variances from; None without one."""
        ...

    def places(self, memory: Levels, ids: Tensor | None) -> Tensor:
        """Where in the memory the level of every row lives, ``[rows]``."""
        ...

    def level(self, rule: Rule, scale: Tensor, population: int | None) -> tuple[Tensor, Tensor]:
        """Fresh levels ``[rows, width]``, and which rows have any entry ``[rows, 1]``."""
        ...

    def steer(self, rule: Rule, scale: Tensor, level: Tensor) -> Steered:
        """The steered loss, with the weights that the levels imply."""
        ...


class LossRows:
    """Losses that are given one by one: ``[n]``, one row over all ranks, or ``[rows, columns]``, each line a row.

    Args:
        losses: of the target, with gradient.
        reference: of the same samples, None without a reference.
        mask: False (or 0) where there is no loss.

    Raises:
        UserError: shapes that do not fit.
    """

    def __init__(self, losses: Tensor, reference: Tensor | None, mask: Tensor | None):
        if losses.dim() not in (1, 2) or losses.shape[-1] == 0:
            raise UserError(f"losses are [n] or [rows, columns] and not empty, got {list(losses.shape)}")
        self.shape, self.shared = losses.shape, losses.dim() == 1
        values = losses if losses.dtype == torch.float64 else losses.float()
        self.values = values[None] if self.shared else values
        self.known = None if reference is None else self._like("target and reference losses", reference, values)
        self.counted = self._counted(mask)

    def _counted(self, mask: Tensor | None) -> Tensor:
        if mask is None:
            return torch.ones_like(self.values, dtype=torch.bool)
        if mask.shape != self.shape:
            raise UserError(f"the mask is shaped like the losses {list(self.shape)}, got {list(mask.shape)}")
        return mask.bool().reshape(self.values.shape)

    def _like(self, what: str, reference: Tensor, values: Tensor) -> Tensor:
        if reference.shape != values.shape:
            raise UserError(
                f"{what} must be of the same samples, got {list(values.shape)} and {list(reference.shape)} "
                f"(was reduction='none' forgotten?)"
            )
        return reference.detach().to(values).reshape(self.values.shape)

    def sample(self) -> tuple[Tensor, Tensor, Tensor] | None:
        if self.known is None:
            return None
        rows = self.values.detach(), self.known, self.counted
        return tuple(gather(x[0])[None] for x in rows) if self.shared else rows  # type: ignore[return-value]

    def places(self, memory: Levels, ids: Tensor | None) -> Tensor:
        if self.shared:
            return torch.zeros(1, dtype=torch.long, device=self.values.device)
        return given(ids)

    def level(self, rule: Rule, scale: Tensor, population: int | None) -> tuple[Tensor, Tensor]:
        excess, counted = self._excess(scale).detach(), self.counted
        if self.shared:
            excess, counted = gather(excess[0])[None], gather(counted[0])[None]
        return rule.level(excess, counted, population), counted.any(-1, keepdim=True)

    def steer(self, rule: Rule, scale: Tensor, level: Tensor) -> Steered:
        excess = self._excess(scale)
        with torch.no_grad():
            weights = rule.weights(excess.detach(), level).masked_fill(~self.counted, 0)
            sums = torch.stack([weights.sum(-1), weights.square().sum(-1), self.counted.sum(-1).to(weights)])
            first, second, entries = total(sums) if self.shared else sums
            # The entries of a row share evenly, and so do the rows, of all ranks, that have any.
            rows = 1 if self.shared else total((entries > 0).sum()).clamp(min=1)
            share = world_size() / (rows * entries.clamp(min=1))
        loss = (weights * excess.masked_fill(~self.counted, 0) * share[:, None]).sum()
        return Steered(loss, weights.reshape(self.shape), effective(first, second, entries), scale, entries)

    def _excess(self, scale: Tensor) -> Tensor:
        return self.values if self.known is None else self.values - scale * self.known


def effective(first: Tensor, second: Tensor, entries: Tensor) -> Tensor:
    """Effective sample size as a share: ``first`` the sum of weights, ``second`` of their squares, all ``[rows]``."""
    return first.square() / (second * entries.clamp(min=1)).clamp(min=torch.finfo(first.dtype).tiny)


def given(ids: Tensor | None) -> Tensor:
    """The ids, which a memory cannot do without."""
    if ids is None:
        raise UserError("a memory with a rate below 1 needs the samples' ids: steerer(..., ids=ids)")
    return ids
