"""Losses that are given one by one, in rows: each row is what one distribution of weights is taken over."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from steering.agreement import DTYPES, KINDS, Header
from steering.distributed import all_gather, all_reduce_sum, rank, world_size
from steering.errors import UserError
from steering.groups import GroupWeights, centre
from steering.rules.rule import Population, Rule, fresh_dual
from steering.rules.solve import NEVER, true_entries
from steering.steered import RowFigures, Steered

Average = Literal["rows", "entries"]
VARIANCE_ENTRIES = 1 << 13  # about as many entries of a batch are enough to estimate variances from


class FreshDuals(NamedTuple):
    """What a batch says of its rows before anything is remembered.

    Attributes:
        dual: gives the duals, ``[rows, width]``.
        linear: the excess shaped like the losses, with gradient, NEVER where one does not count.
        excess: the same as a matrix, centred within groups, ``[rows, columns]``.
        weights: that the duals imply, where the rule found both at once.
    """

    dual: Callable[[], Tensor]
    linear: Tensor
    excess: Tensor
    weights: Tensor | None = None


@dataclass
class LossRows:
    """A batch of losses as a matrix of rows.

    Attributes:
        losses: of the target as they are given, with gradient, in at least single precision.
        reference: of the same entries; None without a reference.
        present: False where a loss does not count, shaped like the losses; None where all do.
        shape: of the losses before ``[n, 1]`` became ``[n]``.
        rows, columns: shape of the matrix.
        index: where the losses are in the flattened matrix, ``[entries]``; None where they fill it in order.
        shared: whether every rank has columns of the same rows: of the only one, or of one for each group. Otherwise
            every row lies on one rank.
        groups: of every entry, shaped like the losses, int64, if the excess is to be centred within them.
        base: base weight of every entry, shaped like the losses, float64, which divergences are taken to; None if
            uniform.
        row_base: base weight of every row in the mean over rows, ``[rows]`` float64; None if uniform.
        scores: what a rule weighs by in place of the excess, shaped like the losses; None for the excess.
        headers: what all ranks hold, once they have agreed.
    """

    losses: Tensor
    reference: Tensor | None
    present: Tensor | None
    shape: torch.Size
    rows: int
    columns: int
    index: Tensor | None = None
    shared: bool = False
    groups: Tensor | None = None
    base: Tensor | None = None
    row_base: Tensor | None = None
    scores: Tensor | None = None
    headers: Sequence[Header] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Columns of every rank, where rows are shared."""
        return tuple(header.columns for header in self.headers)

    # -- agreement between ranks ----------------------------------------------------------------------------

    def header(self) -> Header:
        """What the other ranks have to know."""
        kind = KINDS.index("one row over all processes" if self.shared else "rows")
        reference, masked = int(self.reference is not None), int(self.present is not None or self.index is not None)
        groups = 0 if self.groups is None or not self.groups.numel() else int(self.groups.max()) + 1
        base = 1 if self.base is not None else 2 if self.row_base is not None else 0
        dtype = DTYPES.index(self.losses.dtype)
        return Header(kind, dtype, reference, masked, self.rows, self.columns, groups, base)

    def agreed(self, headers: Sequence[Header]) -> "LossRows":
        """The rows as all ranks see them, given the header of every rank.

        Raises:
            UserError: on every rank, where all have none.
        """
        filled = [header for header in headers if header.rows * header.columns]
        if not filled:
            raise UserError(f"losses are [n], [rows, columns] or [entries] and not empty, got {list(self.shape)}")
        self.headers = headers
        if self.shared and len(headers) > 1:
            self.rows = max(header.rows for header in headers)  # groups that other ranks have are empty rows here
            if self.mask is None and any(header.masked for header in headers):
                self.present = torch.ones_like(self.losses, dtype=torch.bool)
        if not self.losses.numel():  # of nothing it cannot be told what its weights are of
            self.base = self.losses.double() if filled[0].base == 1 else None
            self.row_base = self.losses.new_zeros(self.rows).double() if filled[0].base == 2 else None
        self.losses = self.losses.to(DTYPES[filled[0].dtype])
        self.reference = None if self.reference is None else self.reference.to(self.losses)
        return self

    # -- variances and memory -------------------------------------------------------------------------------

    def variance_sample(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Rows of losses, of reference losses, and their mask, to estimate variances from; None without reference.

        Of a large batch these are some entries of the only row, or some rows, drawn at random: the same ones however
        the batch is split between ranks.
        """
        if self.reference is None:
            return None
        parts = [self._matrix(self.losses.detach()), self._matrix(self.reference), self.mask]
        sizes = self.sizes
        if sum(header.rows * header.columns for header in self.headers) > VARIANCE_ENTRIES and self.rows:
            parts, sizes = self._sampled(parts)
        if self.shared and len(self.headers) > 1:
            parts = [None if part is None else self._gathered(part, sizes) for part in parts]
        losses, reference, mask = parts
        assert losses is not None and reference is not None
        return losses, reference, mask

    def _sampled(self, parts: list[Tensor | None]) -> tuple[list[Tensor | None], tuple[int, ...]]:
        """A part of the columns of a shared row, or of the rows, and how many of them every rank has."""
        if self.shared and self.rows > 1:
            return parts, self.sizes
        counts = self.sizes if self.shared else tuple(header.rows for header in self.headers)
        width = 1 if self.shared else max(header.columns for header in self.headers)
        number = -(-VARIANCE_ENTRIES // width)
        if sum(counts) <= number:
            return parts, self.sizes
        own, sizes = _chosen(counts, number, rank())
        own = own.to(self.losses.device)
        return [None if part is None else part.index_select(1 if self.shared else 0, own) for part in parts], sizes

    def memory_index(self, ids: Tensor | None) -> Tensor:
        """Where in the memory the dual of every row lives, ``[rows]``."""
        if self.shared:
            return torch.arange(self.rows, device=self.losses.device)
        return sample_ids(ids, self.rows).to(self.losses.device)

    # -- duals and weights ----------------------------------------------------------------------------------

    def _excess(self, scale: Tensor | float) -> Tensor:
        """Loss minus scaled reference loss, shaped like the losses, with gradient; NEVER where one does not count."""
        excess = self.losses
        if self.reference is not None:
            taken_off = scale.to(excess) * self.reference if isinstance(scale, Tensor) else self.reference
            excess = torch.sub(excess, taken_off, alpha=1 if isinstance(scale, Tensor) else scale)
        return excess if self.present is None else torch.where(self.present, excess, NEVER)

    def fresh(self, rule: Rule, scale: Tensor | float, population: int | None, remembered: Tensor | None) -> FreshDuals:
        """Duals of the batch; ``remembered`` are those of the memory, NaN where there is none."""
        linear, mask = self._excess(scale), self.mask
        matrix = self._matrix(linear.detach() if self.scores is None else self.scores, NEVER)
        if self.scores is not None:
            matrix = self._fill(matrix.to(linear))
        if self.groups is not None:
            count = max(header.last for header in self.headers)
            matrix = self._fill(centre(self._fill(matrix, 0), self._matrix(self.groups), mask, count))
        fused = getattr(rule, "weights_and_dual", None) if self.base is None else None
        if fused is not None and remembered is None and not (self.shared and len(self.headers) > 1):
            result = fused(matrix, mask)
            if result is not None:
                return FreshDuals(result[1], linear, matrix, result[0])
        everyone = self._gathered(matrix) if self.shared else matrix
        if mask is None:
            mask = torch.ones_like(everyone, dtype=torch.bool)
        elif self.shared:
            mask = self._gathered(mask)
        of_rows = self._population(population, mask)
        if self.base is not None:
            mask = self._base(rule, mask)
        dual = fresh_dual(rule, everyone, mask, of_rows, remembered)
        return FreshDuals(lambda: dual, linear, matrix)

    def _base(self, rule: Rule, mask: Tensor) -> Tensor:
        """Base weights of all ranks, with a mean of 1 in every row, ``[rows, all columns]``; 0 where no entry is."""
        if not getattr(rule, "takes_base", False):
            raise UserError(f"{rule!r} takes no base weights: use kl, cvar, chi_square or uniform, or give none")
        assert self.base is not None
        matrix = self._matrix(self.base)
        everyone = (self._gathered(matrix) if self.shared else matrix).masked_fill(~mask, 0)
        total = everyone.sum(-1, keepdim=True)
        unit = torch.where(total > 0, true_entries(mask) / total, 0)
        self.relative_base = (unit * matrix).to(self.losses.dtype)
        return everyone * unit

    def filled(self) -> Tensor:
        """Which rows have any entry on any rank, ``[rows, 1]`` bool."""
        counts = self.losses.new_full((self.rows,), self.columns) if self.mask is None else self._counts
        return ((all_reduce_sum(counts) if self.shared else counts) > 0)[:, None]

    def steer(
        self,
        rule: Rule,
        fresh: FreshDuals,
        dual: Tensor | None,
        scale: Tensor,
        average: Average | GroupWeights = "rows",
        *,
        frozen: bool = False,
    ) -> Steered:
        """The steered loss, with the weights that the duals imply; the batch's own where ``dual`` is None."""
        weights, exact = fresh.weights, dual is None and fresh.weights is not None and rule.normalised
        if weights is None or dual is not None:
            weights = self._fill(rule.weights(fresh.excess, fresh.dual() if dual is None else dual), 0)
        if self.base is not None:
            weights = weights.masked_fill(self.relative_base == 0, 0) * self.relative_base
        counts = None if self.mask is None else self._counts.to(weights)
        sums: Tensor | None = None
        if self.shared and len(self.headers) > 1:
            sums = all_reduce_sum(torch.stack(_row_sums(weights, counts)))
        share = self._share(counts if sums is None else sums[2], average, fresh.excess, frozen)
        by_row = share[:, None] if isinstance(share, Tensor) and share.dim() else None
        if by_row is None:
            loss = _weighted_sum(_in_order(weights, self.index), fresh.linear, share)
        else:
            loss = (torch.linalg.vecdot(weights, self._matrix(fresh.linear, NEVER)) * share).sum()
        value, reference, present, index = loss.detach(), self.reference, self.present, self.index

        def figures() -> RowFigures:  # holds no graph
            first, second, entries = _row_sums(weights, counts, exact) if sums is None else sums
            weighted_loss = value
            if reference is not None:
                taken_off = reference if present is None else reference.masked_fill(~present, 0)
                factors, unit = (weights, share) if by_row is None else (weights * by_row, 1.0)
                weighted_loss = value + scale.to(value) * _weighted_sum(_in_order(factors, index), taken_off, unit)
            return RowFigures(weighted_loss, entries, (first, second), (first < entries / 2).to(first))

        return Steered(loss, _in_order(weights, index).reshape(self.shape), scale, figures)

    def _share(
        self, entries: Tensor | None, average: Average | GroupWeights, excess: Tensor, frozen: bool
    ) -> Tensor | float:
        """What an entry of weight 1 counts for in the loss, a number or ``[rows]``; no ``entries`` where all count."""
        uneven = isinstance(average, GroupWeights) or self.row_base is not None
        if entries is None and len(self.headers) == 1 and not uneven:
            return 1 / excess.numel()
        if entries is None:
            entries = excess.new_full((self.rows,), self.columns)
        if self.row_base is not None:  # rows lie on one rank each
            rows = self.row_base.to(excess) * (entries if average == "entries" else entries > 0)
            return world_size() * rows / (all_reduce_sum(rows.sum()) * entries.clamp(min=1))
        if isinstance(average, GroupWeights):
            sums = self._fill(excess, 0).sum(-1, dtype=torch.float64)
            means = (all_reduce_sum(sums) if self.shared else sums) / entries.clamp(min=1)
            group_weights = average.update(means, entries > 0, frozen=frozen).to(excess)
            return world_size() * group_weights / entries.clamp(min=1)
        if average == "entries" or (self.shared and len(entries) == 1):
            total = entries.sum() if self.shared else all_reduce_sum(entries.sum())
            return world_size() / total.clamp(min=1)
        filled = (entries > 0).sum()
        rows = filled if self.shared else all_reduce_sum(filled)
        return world_size() / (rows.clamp(min=1) * entries.clamp(min=1))

    def _population(self, population: int | None, mask: Tensor) -> Population:
        """What a row stands for: the training set, its group's part of it, or the row itself."""
        if self.shared and len(mask) == 1:
            return population
        entries = true_entries(mask).clamp(min=1).double()
        if not self.shared:
            return entries
        return None if population is None else (population * entries / entries.sum()).clamp(min=1)

    # -- the matrix -----------------------------------------------------------------------------------------

    @property
    def mask(self) -> Tensor | None:
        """False where there is no entry, ``[rows, columns]``; None where all count."""
        if self.present is None and self.index is None:
            return None
        return self._mask

    @cached_property
    def _mask(self) -> Tensor:
        present = torch.ones_like(self.losses, dtype=torch.bool) if self.present is None else self.present
        return self._matrix(present, False)

    @cached_property
    def _counts(self) -> Tensor:
        """Own entries of every row, ``[rows]``."""
        return true_entries(self._mask)[:, 0]

    def _fill(self, matrix: Tensor, by: float = NEVER) -> Tensor:
        """The same with something else where there is no entry."""
        return matrix if self.mask is None else matrix.masked_fill(~self._mask, by)

    def _matrix(self, part: Tensor, by: float = 0) -> Tensor:
        """The entries, given in the order of the losses, as a matrix, ``[rows, columns]``."""
        if self.index is None:
            return part.reshape(self.rows, self.columns)
        empty = part.new_full((self.rows * self.columns,), by)
        return empty.index_put_((self.index,), part.reshape(-1)).view(self.rows, self.columns)

    def _gathered(self, part: Tensor, sizes: tuple[int, ...] | None = None) -> Tensor:
        """Shared rows with the columns of all ranks, ``[rows, all columns]``."""
        if len(self.headers) == 1:
            return part
        return all_gather(part.T.contiguous(), self.sizes if sizes is None else sizes).T


def _in_order(matrix: Tensor, index: Tensor | None) -> Tensor:
    """The entries of a matrix in the order of the losses, ``[entries]``."""
    return matrix.reshape(-1) if index is None else matrix.reshape(-1)[index]


def _row_sums(weights: Tensor, counts: Tensor | None, exact: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Of every row's weights, of their squares, and how many entries count, ``[rows]`` each.

    Args:
        exact: whether weights average exactly one.
    """
    entries = weights.new_full(weights.shape[:1], weights.shape[1]) if counts is None else counts
    if weights.stride(-1) == 0 and weights.shape[1]:  # one weight for a whole row
        return entries * weights[:, 0], entries * weights[:, 0].square(), entries
    return entries if exact else weights.sum(-1), torch.linalg.vecdot(weights, weights), entries


def _weighted_sum(weights: Tensor, values: Tensor, unit: Tensor | float) -> Tensor:
    """Sum of ``[entries]`` weights times values of any shape, times a number, a scalar."""
    values = values if values.dim() == 1 else values.reshape(-1)
    if len(weights) and weights.stride(0) == 0:  # one weight for all takes no product
        return values.sum() * (weights[0] * unit)
    return torch.dot(weights, values) * unit


@lru_cache(maxsize=8)  # batches are of one size as a rule
def _chosen(counts: tuple[int, ...], number: int, own_rank: int) -> tuple[Tensor, tuple[int, ...]]:
    """Some of what ranks hold ``counts`` of, at random: indices of those of one rank, and how many every rank has."""
    ends = torch.tensor(counts).cumsum(0)
    total = int(ends[-1])
    chosen = torch.randint(total, (number,), generator=torch.Generator().manual_seed(total)).sort().values
    owners = torch.searchsorted(ends, chosen, right=True)
    own = chosen[owners == own_rank] - (ends[own_rank] - counts[own_rank])
    return own, tuple(owners.bincount(minlength=len(counts)).tolist())


def base_weights(base: Any, losses: Tensor, samples: int) -> Tensor:
    """Base weights of samples, or of the losses themselves, float64 on the device of the losses.

    Raises:
        UserError: numbers that are no weights, or too few of them.
    """
    base = torch.as_tensor(base).detach().to(losses.device, torch.float64)
    if base.numel() and not bool((base.isfinite() & (base >= 0)).all()):
        raise UserError(f"base weights are finite numbers of at least 0, got {base.min():g} to {base.max():g}")
    if base.shape != losses.shape and (base.dim() != 1 or len(base) < samples):
        raise UserError(f"base weights are one for every loss or sample, {samples} here, got {list(base.shape)}")
    return base


def sample_ids(ids: Tensor | None, rows: int) -> Tensor:
    """The ids, which a memory cannot do without, ``[rows]`` int64."""
    if ids is None:
        raise UserError("what is remembered of every sample needs its id: steerer(..., ids=ids)")
    if ids.shape != (rows,) or ids.is_floating_point():
        raise UserError(
            f"ids are {rows} whole numbers, one for every sample, got {ids.dtype} of shape {list(ids.shape)}"
        )
    return ids.long()
