"""Losses that are given one by one, in rows: each row is what one distribution of weights is taken over."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from steering.agreement import DTYPES, KINDS, Header
from steering.distributed import all_gather, all_reduce_sum, rank, world_size
from steering.errors import UserError
from steering.groups import GroupWeights, centre
from steering.rules.rule import Population, Rule, fresh_dual
from steering.rules.solve import NEVER, true_entries
from steering.steered import Steered

Average = Literal["rows", "entries"]
VARIANCE_ENTRIES = 1 << 14  # about as many entries of a batch are enough to estimate variances from


class FreshDuals(NamedTuple):
    """What a batch says of its rows before anything is remembered.

    Attributes:
        dual: ``[rows, width]``.
        filled: which rows have any entry, ``[rows, 1]`` bool.
        excess: ``[rows, columns]``, NEVER where there is no entry.
        weights: that the duals imply, where the rule found both at once.
    """

    dual: Tensor
    filled: Tensor
    excess: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class LossRows:
    """A batch of losses as a matrix of rows.

    Attributes:
        values: of the target, ``[rows, columns]``, with gradient, in at least single precision.
        reference: of the same entries; None without a reference.
        mask: False where there is no entry; None where all count.
        shape: of the losses as they were given.
        index: where the given losses are in the flattened matrix, ``[entries]``; None where they fill it in order.
        shared: whether every rank has columns of the same rows: of the only one, or of one for each group. Otherwise
            every row lies on one rank.
        groups: of every entry, ``[rows, columns]`` int64, if the excess is to be centred within them.
        group_count: number of groups that the excess is centred within, the same on every rank.
        headers: what all ranks hold, once they have agreed.
    """

    values: Tensor
    reference: Tensor | None
    mask: Tensor | None
    shape: torch.Size
    index: Tensor | None = None
    shared: bool = False
    groups: Tensor | None = None
    group_count: int = 0
    headers: tuple[Header, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Columns of every rank, where rows are shared."""
        return tuple(header.columns for header in self.headers)

    # -- agreement between ranks ----------------------------------------------------------------------------

    def header(self) -> Header:
        """What the other ranks have to know."""
        kind, dtype = (
            KINDS.index("one row over all processes" if self.shared else "rows"),
            DTYPES.index(self.values.dtype),
        )
        groups = 0 if self.groups is None or not self.groups.numel() else int(self.groups.max()) + 1
        rows, columns = self.values.shape
        return Header(kind, dtype, int(self.reference is not None), int(self.mask is not None), rows, columns, groups)

    def agreed(self, headers: Sequence[Header]) -> "LossRows":
        """The rows as all ranks see them, given the header of every rank.

        Raises:
            UserError: on every rank, where all have none.
        """
        filled = [header for header in headers if header.rows * header.columns]
        if not filled:
            raise UserError(f"losses are [n], [rows, columns] or [entries] and not empty, got {list(self.shape)}")
        rows = self._with_rows(max(header.rows for header in headers)) if self.shared else self
        if self.shared and rows.mask is None and any(header.masked for header in headers):
            rows = replace(rows, mask=torch.ones_like(rows.values, dtype=torch.bool))
        return replace(
            rows,
            values=rows.values.to(DTYPES[filled[0].dtype]),
            reference=None if rows.reference is None else rows.reference.to(DTYPES[filled[0].dtype]),
            group_count=max(header.last for header in headers),
            headers=tuple(headers),
        )

    def _with_rows(self, count: int) -> "LossRows":
        """The same with empty rows for groups that other ranks have."""
        missing = count - len(self.values)
        if missing <= 0:
            return self
        mask = torch.ones_like(self.values, dtype=torch.bool) if self.mask is None else self.mask
        values, reference, mask = (
            None if part is None else pad(part, (0, 0, 0, missing)) for part in (self.values, self.reference, mask)
        )
        assert values is not None
        return replace(self, values=values, reference=reference, mask=mask)

    # -- variances and memory -------------------------------------------------------------------------------

    def variance_sample(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Rows of losses, of reference losses, and their mask, to estimate variances from; None without reference.

        Of a large batch these are some entries of the only row, or some rows, drawn at random: the same ones however
        the batch is split between ranks.
        """
        if self.reference is None:
            return None
        parts: list[Tensor | None] = [self.values.detach(), self.reference, self.mask]
        sizes = self.sizes
        if sum(header.rows * header.columns for header in self.headers) > VARIANCE_ENTRIES and len(self.values) != 0:
            parts, sizes = self._sampled(parts)
        if self.shared and world_size() > 1:
            parts = [None if part is None else self._gathered(part, sizes) for part in parts]
        losses, reference, mask = parts
        assert losses is not None and reference is not None
        return losses, reference, mask

    def _sampled(self, parts: list[Tensor | None]) -> tuple[list[Tensor | None], tuple[int, ...]]:
        """A part of the columns of a shared row, or of the rows, and how many of them every rank has."""
        if self.shared and len(self.values) > 1:
            return parts, self.sizes
        counts = self.sizes if self.shared else tuple(header.rows for header in self.headers)
        width = 1 if self.shared else max(header.columns for header in self.headers)
        number = -(-VARIANCE_ENTRIES // width)
        if sum(counts) <= number:
            return parts, self.sizes
        own, sizes = _chosen(counts, number, rank())
        own = own.to(self.values.device)
        return [None if part is None else part.index_select(1 if self.shared else 0, own) for part in parts], sizes

    def memory_index(self, ids: Tensor | None) -> Tensor:
        """Where in the memory the dual of every row lives, ``[rows]``."""
        if self.shared:
            return torch.arange(len(self.values), device=self.values.device)
        return sample_ids(ids, len(self.values)).to(self.values.device)

    # -- duals and weights ----------------------------------------------------------------------------------

    def excess(self, scale: Tensor | float) -> Tensor:
        """Loss minus scaled reference loss, ``[rows, columns]`` without gradient, NEVER where there is no entry."""
        values = self.values.detach()
        if self.reference is None:
            excess = values
        elif isinstance(scale, Tensor):
            excess = values - scale.to(values) * self.reference
        else:
            excess = torch.sub(values, self.reference, alpha=scale)
        if self.groups is not None:
            excess = centre(self._fill(excess, 0), self.groups, self.mask, self.group_count)
        return self._fill(excess)

    def fresh(self, rule: Rule, scale: Tensor | float, population: int | None, remembered: Tensor | None) -> FreshDuals:
        """Duals of the batch; ``remembered`` are those of the memory, NaN where there is none."""
        excess, mask = self.excess(scale), self.mask
        fused = getattr(rule, "weights_and_dual", None)
        if fused is not None and remembered is None and not (self.shared and world_size() > 1):
            result = fused(excess, mask)
            if result is not None:
                return FreshDuals(result[1], self._filled(), excess, result[0])
        everyone = self._gathered(excess) if self.shared else excess
        if mask is None:
            mask = torch.ones_like(everyone, dtype=torch.bool)
        elif self.shared:
            mask = self._gathered(mask)
        dual = fresh_dual(rule, everyone, mask, self._population(population, mask), remembered)
        return FreshDuals(dual, mask.any(-1, keepdim=True), excess)

    def steer(
        self,
        rule: Rule,
        fresh: FreshDuals,
        dual: Tensor,
        scale: Tensor,
        average: Average | GroupWeights = "rows",
        *,
        frozen: bool = False,
    ) -> Steered:
        """The steered loss, with the weights that the duals imply."""
        with torch.no_grad():
            settled = fresh.weights is not None and dual is fresh.dual
            weights = fresh.weights if settled else self._fill(rule.weights(fresh.excess, dual), 0)
            assert weights is not None
            entries = self._entries(weights)
            first = entries if settled and rule.normalised else weights.sum(-1)
            second = _weighted_sums(weights, weights)
            if self.shared and world_size() > 1:
                first, second, entries = all_reduce_sum(torch.stack([first, second, entries]))
            share = self._share(entries, average, fresh.excess, frozen)
        loss = (_weighted_sums(weights, self._fill(self.values, 0)) * share).sum()
        weighted_loss = loss.detach()
        if self.reference is not None:
            with torch.no_grad():
                loss_value = self._excess_value(weights, fresh.excess, share, scale)
            loss = loss + (loss_value - weighted_loss)
        gated = (first < entries / 2).to(first)
        return Steered(loss, weighted_loss, self._as_given(weights), scale, entries, (first, second), gated)

    def _excess_value(self, weights: Tensor, excess: Tensor, share: Tensor | float, scale: Tensor) -> Tensor:
        """Weighted mean of the excess, a scalar."""
        if self.groups is not None:  # whose means were taken off
            assert self.reference is not None
            excess = self._fill(self.values.detach() - scale.to(self.values) * self.reference, 0)
        return (_weighted_sums(weights, excess) * share).sum()

    def _share(self, entries: Tensor, average: Average | GroupWeights, excess: Tensor, frozen: bool) -> Tensor | float:
        """What an entry of weight 1 counts for in the loss, a number or ``[rows]``."""
        if isinstance(average, GroupWeights):
            means = self._row_means(excess, entries)
            group_weights = average.update(means, entries > 0, frozen=frozen).to(excess)
            return world_size() * group_weights / entries.clamp(min=1)
        if self.mask is None and world_size() == 1:
            return 1 / self.values.numel()
        if average == "entries" or (self.shared and len(entries) == 1):
            total = entries.sum() if self.shared else all_reduce_sum(entries.sum())
            return world_size() / total.clamp(min=1)
        filled = (entries > 0).sum()
        rows = filled if self.shared else all_reduce_sum(filled)
        return world_size() / (rows.clamp(min=1) * entries.clamp(min=1))

    def _row_means(self, excess: Tensor, entries: Tensor) -> Tensor:
        """Mean excess of every row over all ranks, ``[rows]``."""
        sums = self._fill(excess, 0).sum(-1, dtype=torch.float64)
        return (all_reduce_sum(sums) if self.shared else sums) / entries.clamp(min=1)

    def _population(self, population: int | None, mask: Tensor) -> Population:
        """What a row stands for: the training set, its group's part of it, or the row itself."""
        if self.shared and len(mask) == 1:
            return population
        entries = true_entries(mask).clamp(min=1).double()
        if not self.shared:
            return entries
        return None if population is None else (population * entries / entries.sum()).clamp(min=1)

    # -- the matrix -----------------------------------------------------------------------------------------

    @cached_property
    def _excluded(self) -> Tensor:
        """Where there is no entry."""
        assert self.mask is not None
        return ~self.mask

    @cached_property
    def _entry_counts(self) -> Tensor:
        """Own entries of every row, ``[rows, 1]``."""
        assert self.mask is not None
        return true_entries(self.mask)

    def _fill(self, values: Tensor, by: float = NEVER) -> Tensor:
        """The same with something else where there is no entry."""
        return values if self.mask is None else values.masked_fill(self._excluded, by)

    def _filled(self) -> Tensor:
        if self.mask is None:
            return torch.ones(len(self.values), 1, dtype=torch.bool, device=self.values.device)
        return self._entry_counts > 0

    def _entries(self, like: Tensor) -> Tensor:
        if self.mask is None:
            return like.new_full(like.shape[:1], like.shape[1])
        return self._entry_counts[:, 0].to(like)

    def _gathered(self, part: Tensor, sizes: tuple[int, ...] | None = None) -> Tensor:
        """Shared rows with the columns of all ranks, ``[rows, all columns]``."""
        if world_size() == 1:
            return part
        return all_gather(part.T.contiguous(), self.sizes if sizes is None else sizes).T

    def _as_given(self, matrix: Tensor) -> Tensor:
        """Values of the entries in the shape of the losses."""
        if self.index is None:
            return matrix.reshape(self.shape) if self.shape.numel() else matrix.new_zeros(self.shape)
        return matrix.reshape(-1)[self.index].reshape(self.shape)


def _weighted_sums(weights: Tensor, values: Tensor) -> Tensor:
    """Sum of every row's values times their weights, ``[rows]``; of one weight for a whole row it takes no product."""
    if weights.stride(-1) == 0 and weights.shape[-1]:
        return values.sum(-1) * weights[:, 0]
    return torch.linalg.vecdot(weights, values)


@lru_cache(maxsize=8)  # batches are of one size as a rule
def _chosen(counts: tuple[int, ...], number: int, own_rank: int) -> tuple[Tensor, tuple[int, ...]]:
    """Some of what ranks hold ``counts`` of, at random: indices of those of one rank, and how many every rank has."""
    ends = torch.tensor(counts).cumsum(0)
    total = int(ends[-1])
    chosen = torch.randint(total, (number,), generator=torch.Generator().manual_seed(total)).sort().values
    owners = torch.searchsorted(ends, chosen, right=True)
    own = chosen[owners == own_rank] - (ends[own_rank] - counts[own_rank])
    return own, tuple(owners.bincount(minlength=len(counts)).tolist())


def sample_ids(ids: Tensor | None, rows: int) -> Tensor:
    """The ids, which a memory cannot do without, ``[rows]`` int64."""
    if ids is None:
        raise UserError("what is remembered of every sample needs its id: steerer(..., ids=ids)")
    if ids.shape != (rows,) or ids.is_floating_point():
        raise UserError(
            f"ids are {rows} whole numbers, one for every sample, got {ids.dtype} of shape {list(ids.shape)}"
        )
    return ids.long()
