"""How the losses of a batch fall into rows: one over all ranks, or many, each a distribution of its own."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steering.distributed import all_gather, all_reduce_sum, world_size
from steering.dual_memory import DualMemory
from steering.errors import UserError
from steering.rules.rule import Rule, find_level


@dataclass(frozen=True)
class Steered:
    """What one call of a Steerer gives; all but ``loss`` are detached.

    Attributes:
        loss: scalar that carries the gradient. Averaged over ranks, as DistributedDataParallel averages
            gradients, it gives the gradient of one process with the whole batch.
        weights: like the losses; 1 is the weight in a plain average. For Pairs ``[n]``: the mean weight of the
            negatives of a pair's two anchors, which is what pulls the pair together.
        scale: factor of the reference loss that was used, a scalar.
        entries: how many entries of every row count, ``[rows]``.
        sums: of the weights of every row, and of their squares, ``[rows]`` each, in any unit of weight.
        gated: share of the rows whose weights average less than a half, a scalar: anchors so far beyond the reference
            that an epsilon, or a memory of worse days, quiets them.
        objective: the risk that is minimised, a scalar; the loss may be a surrogate with the same gradient.
        temperature: mean temperature of the rows, a scalar, where the rule has one.
    """

    loss: Tensor
    weights: Tensor
    scale: Tensor
    entries: Tensor
    sums: tuple[Tensor, Tensor]
    gated: Tensor
    objective: Tensor
    temperature: Tensor | None = None

    @property
    def effective(self) -> Tensor:
        """Effective sample size (sum w)^2 / sum w^2 of every row as a share of its entries, ``[rows]``, 0 to 1."""
        first, second = self.sums
        return first.square() / (second * self.entries.clamp(min=1)).clamp(min=torch.finfo(first.dtype).tiny)

    @property
    def alive(self) -> Tensor:
        """Mean effective sample size of the rows, in samples, a scalar."""
        return (self.effective * self.entries).mean()


class Rows(Protocol):
    """The losses of a batch and of its reference, as the engine sees them.

    Attributes:
        shared: whether there is one row only, whose level is the same on every rank.
    """

    shared: bool

    def sample(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Rows of losses, of reference losses, and their mask, to estimate variances from; None without reference."""
        ...

    def places(self, memory: DualMemory, ids: Tensor | None) -> Tensor:
        """Where in the memory the level of every row lives, ``[rows]``."""
        ...

    def level(self, rule: Rule, scale: Tensor, population: int | None, old: Tensor | None) -> Tensor:
        """Fresh levels, ``[rows, width]``; ``old`` are the remembered ones, NaN where there is none."""
        ...

    def filled(self) -> Tensor:
        """Which rows have any entry, ``[rows, 1]``, after ``level``."""
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
        self.known = None if reference is None else self._like(reference, values)
        self.counted = None if mask is None else self._counted(mask)

    def _counted(self, mask: Tensor) -> Tensor:
        if mask.shape != self.shape:
            raise UserError(f"the mask is shaped like the losses {list(self.shape)}, got {list(mask.shape)}")
        return mask.bool().reshape(self.values.shape)

    def _like(self, reference: Tensor, values: Tensor) -> Tensor:
        if reference.shape != values.shape:
            raise UserError(
                f"target and reference losses must be of the same samples, got {list(values.shape)} and "
                f"{list(reference.shape)} (was reduction='none' forgotten?)"
            )
        return reference.detach().to(values).reshape(self.values.shape)

    def sample(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        if self.known is None:
            return None
        losses, reference, mask = self.values.detach(), self.known, self.counted
        if self.shared and world_size() > 1:
            losses, reference = all_gather(losses[0])[None], all_gather(reference[0])[None]
            mask = None if mask is None else all_gather(mask[0])[None]
        return losses, reference, mask

    def places(self, memory: DualMemory, ids: Tensor | None) -> Tensor:
        if self.shared:
            return torch.zeros(1, dtype=torch.long, device=self.values.device)
        return given(ids, len(self.values))

    def level(self, rule: Rule, scale: Tensor, population: int | None, old: Tensor | None) -> Tensor:
        excess, mask = self._excess(scale).detach(), self.counted
        if mask is None:
            mask = torch.ones_like(excess, dtype=torch.bool)
        if self.shared and world_size() > 1:
            excess, mask = all_gather(excess[0])[None], all_gather(mask[0])[None]
        self._mask = mask
        return find_level(rule, excess, mask, population, old)

    def filled(self) -> Tensor:
        return self._mask.any(-1, keepdim=True)

    def steer(self, rule: Rule, scale: Tensor, level: Tensor) -> Steered:
        excess = self._excess(scale)
        if self.counted is not None:
            excess = excess.masked_fill(~self.counted, 0)
        with torch.no_grad():
            weights = rule.weights(excess.detach(), level)
            if self.counted is None:
                entries = weights.new_full(weights.shape[:1], weights.shape[1])
            else:
                weights = weights.masked_fill(~self.counted, 0)
                entries = self.counted.sum(-1).to(weights)
            first, second = weights.sum(-1), torch.linalg.vecdot(weights, weights)
            if self.shared and world_size() > 1:
                first, second, entries = all_reduce_sum(torch.stack([first, second, entries]))
            # The entries of a row share evenly, and so do the rows, of all ranks, that have any.
            rows = 1 if self.shared else all_reduce_sum((entries > 0).sum()).clamp(min=1)
            share = world_size() / (rows * entries.clamp(min=1))
        loss = (torch.linalg.vecdot(weights, excess) * share).sum()
        gated = (first < entries / 2).to(first).mean()
        return Steered(loss, weights.view(self.shape), scale, entries, (first, second), gated, loss.detach())

    def _excess(self, scale: Tensor) -> Tensor:
        return self.values if self.known is None else self.values - scale * self.known


def given(ids: Tensor | None, rows: int) -> Tensor:
    """The ids, which a memory cannot do without, ``[rows]`` int64."""
    if ids is None:
        raise UserError("a memory with a gamma below 1 needs the samples' ids: steerer(..., ids=ids)")
    if not isinstance(ids, Tensor) or ids.shape != (rows,) or ids.is_floating_point():
        got = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise UserError(f"ids are a tensor of {rows} whole numbers, one for every sample, got {got}")
    return ids.long()
