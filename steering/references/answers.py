"""Losses of samples, taken apart so that those of one sample can be stored, chosen and joined with others'."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs
from steering.errors import UserError
from steering.task import Losses


@dataclass(frozen=True)
class Answers:
    """What a reference answers to n samples.

    Attributes:
        parts: ``[entries, ...]`` each: ``values``, ``mask``, ``outputs`` of losses, or ``left`` and ``right`` of Pairs.
        counts: ``[n]`` int64, entries of every sample; they lie one behind the other, in the order of the samples.
        ragged: whether losses are flat entries with rows, rather than a line for each sample.
        scale: of Pairs.
    """

    parts: dict[str, Tensor]
    counts: Tensor
    ragged: bool = False
    scale: float | None = None

    @classmethod
    def of(cls, losses: Any, n: int) -> "Answers":
        """Takes losses of n samples apart: Losses, Pairs, or an array or tensor of values.

        Raises:
            UserError: they are not of n samples.
        """
        if not isinstance(losses, Losses):
            losses = Losses(torch.from_numpy(losses) if isinstance(losses, np.ndarray) else losses)
        values, rows = losses.values, losses.rows
        scale = float(values.scale) if isinstance(values, Pairs) else None
        if isinstance(values, Pairs):
            parts: dict[str, Any] = {"left": values.left, "right": values.right}
        else:
            parts = {"values": values, "mask": losses.mask, "outputs": losses.outputs}
            parts = {name: x for name, x in parts.items() if x is not None or name == "values"}
        entries = n if rows is None else len(rows)
        if any(not isinstance(x, Tensor) or x.shape[:1] != (entries,) for x in parts.values()):
            got = {name: list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for name, x in parts.items()}
            what = f"each of {n} samples" if rows is None else f"each of {entries} entries (Losses.rows)"
            raise UserError(f"a reference has a loss for {what}, got {got}")
        if rows is None:
            return cls(parts, torch.ones(n, dtype=torch.int64), scale=scale)
        if entries and (rows.min() < 0 or rows.max() >= n):
            raise UserError(f"rows of a reference's losses are from 0 to {n - 1}, got {rows[:20].tolist()}")
        order = rows.argsort(stable=True)  # sample by sample, each in an order of its own
        return cls({name: x[order] for name, x in parts.items()}, torch.bincount(rows, minlength=n).cpu(), ragged=True)

    def _with_mask(self) -> "Answers":
        every = torch.ones_like(self.parts["values"], dtype=torch.bool)
        return replace(self, parts={"values": self.parts["values"], "mask": every} | self.parts)

    @staticmethod
    def join(parts: "Sequence[Answers]") -> "Answers":
        """The answers to the samples of several, one behind the other, on the device of the last."""
        if any("mask" in part.parts for part in parts):  # a batch without padding may have none
            parts = [part if "mask" in part.parts else part._with_mask() for part in parts]
        last = parts[-1]
        if len(parts) == 1:
            return last
        check_alike([part.kind for part in parts])
        joined = {name: torch.cat([part.parts[name].to(x.device) for part in parts]) for name, x in last.parts.items()}
        return replace(last, parts=joined, counts=torch.cat([part.counts for part in parts]))

    def take(self, indices: Tensor) -> "Answers":
        """The answers to the samples at ``[k]`` indices, repeated where an index is."""
        counts, entries = self.counts[indices], indices
        if self.ragged:
            entries, _ = spread((self.counts.cumsum(0) - self.counts)[indices], counts)
        return replace(self, parts={name: x[entries.to(x.device)] for name, x in self.parts.items()}, counts=counts)

    def only(self, names: Sequence[str]) -> "Answers":
        return replace(self, parts={name: x for name, x in self.parts.items() if name in names})

    def losses(self, device: torch.device | str) -> Losses:
        """The answers as losses again."""
        parts = {name: x.to(device) for name, x in self.parts.items()}
        if self.scale is not None:
            return Losses(Pairs(**parts, scale=self.scale))
        return Losses(**parts, rows=spread(self.counts, self.counts)[1].to(device) if self.ragged else None)

    @property
    def kind(self) -> dict:
        """The form of the answers, alike for all samples of a reference; ready for JSON."""
        parts = {name: [*x.shape[1:], str(x.dtype).removeprefix("torch.")] for name, x in self.parts.items()}
        return {"parts": parts, "ragged": self.ragged, "scale": self.scale}

    def encode(self) -> Tensor:
        """The bytes of every entry, ``[entries, width]`` uint8."""
        flat = [x.cpu().reshape(len(x), math.prod(x.shape[1:])).contiguous() for x in self.parts.values()]
        return torch.cat([x.view(torch.uint8) for x in flat], 1)

    @classmethod
    def decode(cls, data: Tensor, counts: Tensor, kind: dict) -> "Answers":
        """Answers of that kind from the bytes of their entries."""
        flat = data.split(widths(kind), 1)
        parts = {
            name: x.contiguous().view(getattr(torch, dtype)).reshape(len(data), *shape)
            for (name, (*shape, dtype)), x in zip(kind["parts"].items(), flat, strict=True)
        }
        return cls(parts, counts, kind["ragged"], kind["scale"])


def widths(kind: dict) -> list[int]:
    """Bytes of an entry, for every part of answers of that kind."""
    return [math.prod(shape) * getattr(torch, dtype).itemsize for *shape, dtype in kind["parts"].values()]


def check_kind(kind: Any, names: Sequence[str]) -> dict:
    """The form of answers as a file has it, if it is one that answers can have; raises ValueError or TypeError."""
    parts = kind["parts"]
    for name, (*shape, dtype) in parts.items():
        allowed = name in names and dtype in ("float32", "float64", "float16", "bfloat16", "bool", "int64", "int32")
        if not allowed or not all(type(length) is int and 0 < length < 2**31 for length in shape) or len(shape) > 8:
            raise ValueError(f"no part of answers: {name}")
    number = kind["scale"] is None or isinstance(kind["scale"], float | int)
    if not parts or not number or not isinstance(kind["ragged"], bool) or sum(widths(kind)) > 2**31:
        raise ValueError("no form of answers")
    return kind


def check_alike(kinds: Sequence[dict]) -> None:
    """Raises a UserError where answers differ in their form, as where columns are padded to the longest of a batch."""
    forms = sorted({str(kind) for kind in kinds})
    if len(forms) > 1:
        raise UserError(
            f"a reference's losses have one form, got {' and '.join(forms)}: pad all batches alike, or give flat "
            f"losses with their rows (Losses.rows)"
        )


def same_entries(losses: Losses, reference: Losses, ids: Tensor) -> Tensor | Pairs:
    """The reference's losses of the target's entries, of ``[n]`` ids; nothing may stand for one that is missing.

    Raises:
        UserError: the reference lacks an entry that the target has.
    """
    reference = reference.in_order_of(losses.rows)
    if reference.mask is None:
        return reference.values
    missing = ~reference.mask if losses.mask is None else losses.mask.bool() & ~reference.mask
    if missing.any():
        sums = Losses(missing.double(), rows=losses.rows).per_sample(len(ids))
        shown = ", ".join(map(str, ids[cast(Tensor, sums) > 0][:3].tolist()))
        raise UserError(f"the reference has no loss for entries that the target has, of sample ids {shown}")
    return reference.values


def spread(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of runs of ``counts[i]`` entries from ``starts[i]`` on, and the i of every entry.

    Example:
        >>> spread(torch.tensor([10, 0]), torch.tensor([2, 1]))
        (tensor([10, 11,  0]), tensor([0, 0, 1]))
    """
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return starts[rows] + torch.arange(len(rows)) - first[rows], rows
