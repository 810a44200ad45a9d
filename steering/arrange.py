"""From losses as they are given, in any of four shapes, to a matrix of rows."""

from typing import Any, Literal

import torch
from torch import Tensor

from steering.errors import UserError
from steering.loss_rows import LossRows, base_weights

MOST_PADDED = 1 << 26  # entries of a padded matrix, however few of them there really are
MOST_GROUPS = 1 << 20
Over = Literal["batch", "rows"]
Grouping = Literal["centre", "rows"]


def tensor_of(values: Any, name: str) -> Tensor:
    """A tensor of anything that holds numbers: a tensor, a NumPy array, a list."""
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{name} must be a tensor, an array or numbers, got {type(values).__name__} ({reason})"
        ) from None


def arrange(
    losses: Tensor,
    reference: Any,
    *,
    mask: Any = None,
    rows: Any = None,
    groups: Any = None,
    over: Over | None = None,
    grouping: Grouping | None = None,
    row_count: int | None = None,
    group_count: int = 0,
    base: Any = None,
    scores: Any = None,
    squeeze: bool = True,
) -> LossRows:
    """Puts losses into rows.

    Args:
        losses: ``[n]``, ``[rows, columns]``, or ``[entries]`` with ``rows``.
        reference: of the same entries, None without a reference.
        mask: False (or 0) where there is no loss, like ``losses``.
        rows: row of every entry, ``[entries]`` whole numbers from 0 on.
        groups: of every sample, ``[n]`` or one for each row.
        over: whether weights are distributed over the batch or within every row; by default within every row that is
            told apart.
        grouping: what groups are for: ``centre``, or ``rows``, one row a group.
        row_count: number of rows, where it is known; some of them may have no entries.
        group_count: groups at least, some of which may have no entries.
        base: base weights, at least 0: one for every loss, or one for every sample.
        scores: in place of the excess, like ``losses``.
        squeeze: whether ``[n, 1]`` without a mask is ``[n]``.

    Raises:
        UserError: shapes that do not fit.
    """
    shape = losses.shape
    if losses.is_complex() or losses.dtype == torch.bool:
        raise UserError(f"losses are real numbers, got {losses.dtype}")
    if squeeze and losses.dim() == 2 and losses.shape[1] == 1 and over != "rows" and rows is None and mask is None:
        losses = losses[:, 0]  # one number a sample, as a network with one output gives it
    if losses.dim() not in (1, 2):
        raise UserError(f"losses are [n], [rows, columns] or [entries] and not empty, got {list(shape)}")
    values = losses if losses.dtype == torch.float64 else losses.float()
    reference = _like(reference, values, shape)
    mask = None if mask is None else _mask(mask, values, shape)
    lines = None if rows is None else _row_numbers(rows, values, row_count, compact=groups is None)
    group = None if groups is None else _groups_of_entries(groups, lines, values)
    of_samples = values.dim() == 2 or lines is not None
    parted = grouping != "rows" and over != "batch" and of_samples  # rows are samples
    base, row_base = (None, None) if base is None else _base(base, values, lines, row_count, by_row=parted)
    scores = None if scores is None else _like(scores, values, shape)
    if grouping is not None and group is None:
        raise UserError("this steerer groups its samples: steerer(..., groups=groups), a whole number for each of them")
    parts = {"losses": values, "reference": reference, "present": mask, "shape": shape, "base": base, "scores": scores}
    if grouping == "rows":
        assert group is not None
        return _padded(parts, row=group, row_count=group_count, shared=True)
    parts["groups"] = group if grouping == "centre" else None
    if values.dim() == 1 and lines is None and over == "rows":
        raise UserError("weights within rows need rows: losses [rows, columns], or steerer(..., rows=rows)")
    if not parted:
        return LossRows(**parts, rows=1, columns=values.numel(), shared=True)
    parts["row_base"] = row_base
    if lines is not None:
        return _padded(parts, row=lines, row_count=row_count or 0, shared=False)
    count, width = values.shape
    if width:
        return LossRows(**parts, rows=count, columns=width)
    nowhere = torch.zeros(0, dtype=torch.long, device=values.device)  # a rank that has no part of the batch
    return LossRows(**parts, rows=count, columns=1, index=nowhere)


def _padded(parts: dict[str, Any], *, row: Tensor, row_count: int, shared: bool) -> LossRows:
    """Entries of any order, by their row, as a matrix that is as wide as its longest row."""
    shape = parts["losses"].shape
    flat = (row if row.shape == shape else row[:, None].expand(shape)).reshape(-1)
    count = max(row_count, int(flat.max()) + 1 if len(flat) else 0)
    lengths = flat.bincount(minlength=count)
    width = max(1, int(lengths.max())) if count else 1
    if count * width > max(MOST_PADDED, 64 * len(flat)):
        raise UserError(
            f"{count} rows of which the longest has {width} entries take too much padding for {len(flat)} entries: put "
            f"rows of like lengths into a batch"
        )
    order = flat.argsort(stable=True)
    starts = lengths.cumsum(0) - lengths
    column = torch.empty_like(flat)
    column[order] = torch.arange(len(flat), device=flat.device) - starts[flat[order]]
    row_base = parts.get("row_base")
    if row_base is not None:  # the last rows may have no entries, and no weight
        parts["row_base"] = torch.nn.functional.pad(row_base[:count], (0, max(0, count - len(row_base))), value=1.0)
    return LossRows(**parts, rows=count, columns=width, index=flat * width + column, shared=shared)


def _base(
    base: Any, values: Tensor, lines: Tensor | None, row_count: int | None, *, by_row: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Base weights of entries, shaped like the losses, or of rows; one of the two is None."""
    samples = row_count or (len(values) if lines is None else int(lines.max()) + 1 if lines.numel() else 0)
    base = base_weights(tensor_of(base, "base weights"), values, samples)
    if base.shape == values.shape:
        return base, None
    if by_row:
        return None, base
    return (base[lines] if lines is not None else base[:, None].expand(values.shape)), None


def _mask(mask: Any, values: Tensor, shape: torch.Size) -> Tensor:
    mask = tensor_of(mask, "the mask").to(values.device)
    if mask.shape not in (shape, values.shape):
        raise UserError(f"the mask is shaped like the losses {list(shape)}, got {list(mask.shape)}")
    return mask.bool().reshape(values.shape)


def _like(reference: Any, values: Tensor, shape: torch.Size) -> Tensor | None:
    if reference is None:
        return None
    reference = tensor_of(reference, "reference losses or scores")
    if reference.shape not in (shape, values.shape, (*values.shape, 1)):
        raise UserError(
            f"target and reference losses must be of the same samples, got {list(shape)} and "
            f"{list(reference.shape)} (was reduction='none' forgotten?)"
        )
    return reference.detach().to(values).reshape(values.shape)


def _whole(numbers: Any, name: str, values: Tensor) -> Tensor:
    """Whole numbers from 0 on; of none the type does not matter."""
    numbers = tensor_of(numbers, name).to(values.device)
    if numbers.numel() and (numbers.is_floating_point() or numbers.dtype == torch.bool or int(numbers.min()) < 0):
        raise UserError(f"{name} are whole numbers from 0 on, got {numbers.dtype} from {numbers.min().item()} on")
    return numbers.long()


def _row_numbers(rows: Any, values: Tensor, row_count: int | None, *, compact: bool) -> Tensor:
    """The row of every entry; numbered without gaps where nothing else goes by these numbers."""
    numbers = _whole(rows, "rows", values)
    if numbers.shape != values.shape:
        raise UserError(f"rows name the row of every loss, {list(values.shape)}, got {list(numbers.shape)}")
    if row_count is None:
        return numbers.unique(return_inverse=True)[1] if compact else numbers
    if numbers.numel() and int(numbers.max()) >= row_count:
        raise UserError(f"rows are the places of their ids, from 0 to {row_count - 1}, got {int(numbers.max())}")
    return numbers


def _groups_of_entries(groups: Any, lines: Tensor | None, values: Tensor) -> Tensor:
    """The group of every entry, shaped like the losses, from that of every sample or row."""
    groups = _whole(groups, "groups", values)
    if groups.numel() and int(groups.max()) >= MOST_GROUPS:
        raise UserError(f"groups are numbered from 0 to {MOST_GROUPS - 1} at most, got {int(groups.max())}")
    if lines is None and groups.shape == values.shape:
        return groups
    lines = torch.arange(len(values), device=values.device) if lines is None else lines
    samples = int(lines.max()) + 1 if lines.numel() else 0
    if groups.dim() != 1 or len(groups) < samples:
        raise UserError(f"groups are one number a sample (row), {samples} here, got {list(groups.shape)}")
    of_lines = groups[lines]
    return of_lines if of_lines.shape == values.shape else of_lines[:, None].expand(values.shape)
