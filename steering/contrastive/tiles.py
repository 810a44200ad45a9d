"""A matrix of excess similarities that is never held as a whole."""

from collections.abc import Iterator

import torch
from torch import Tensor

from steering.rules.solve import NEVER

KEEP = 256 << 20  # bytes of similarities kept between two passes on a CPU,
KEEP_SHARE = 0.05  # and on a GPU this share of its memory


class Tiles:
    """The excess similarities ``s_ij - scale * r_ij`` of n lefts and m rights, in tiles that are kept or redone.

    s is the target's similarity, r the reference's. Left i and right ``first + i`` are a pair; their entry, which no
    anchor counts among its negatives, is NEVER.

    Args:
        target: lefts ``[n, width]`` and rights ``[m, width]`` of the target; half precision is multiplied as it is.
        reference: the reference's, None without one.
        scale: of the reference, a scalar tensor or a number.
        unit: what the entries are divided by, in units of the similarity.
        first: place of the right that belongs to left 0.
        shape: of a tile at most, rows and columns.
        part: tiles do not reach over multiples of it, the n of one rank.
        budget: bytes of tiles to keep from one pass to the next.
    """

    def __init__(
        self,
        target: tuple[Tensor, Tensor],
        reference: tuple[Tensor, Tensor] | None,
        scale: Tensor,
        *,
        unit: float | Tensor,
        first: int,
        shape: tuple[int, int],
        part: int,
        budget: int,
    ):
        self.left, self.right = target
        self.reference, self.scale, self.unit, self.first, self.shape = reference, scale, unit, first, shape
        self.exact = torch.promote_types(self.left.dtype, torch.float32)
        self.rows, self.columns = (_cut(len(side), size, part) for side, size in zip(target, shape, strict=True))
        self.unspent = budget  # bytes that may still be kept
        self.kept: dict[tuple[int, int], Tensor] = {}
        size = self.rows[0].stop * self.columns[0].stop
        self._scratch = [torch.empty(size, dtype=self.exact, device=self.left.device) for _ in range(2)]

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of every tile, line by line."""
        return ((rows, columns) for rows in self.rows for columns in self.columns)

    def __getitem__(self, position: tuple[slice, slice]) -> Tensor:
        """The entries at a position of ``iter(self)``, ``[rows, columns]``, valid until the next are asked for."""
        rows, columns = position
        key = rows.start, columns.start
        if key in self.kept:
            return self.kept[key]
        tile = self.scratch(position, 0)
        keep = tile.nbytes <= self.unspent
        if keep:
            tile = torch.empty_like(tile)
        self._multiply(rows, columns, tile)
        where = self.own(position)
        tile[where] = NEVER
        if keep:
            self.unspent -= tile.nbytes
            self.kept[key] = tile
        return tile

    def own(self, position: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
        """Where pairs meet themselves in a tile: rows and columns within it."""
        rows, columns = position
        low = max(rows.start, columns.start - self.first)
        high = min(rows.stop, columns.stop - self.first)
        here = torch.arange(low, max(low, high), device=self.left.device)
        return here - rows.start, here + self.first - columns.start

    def scratch(self, position: tuple[slice, slice], which: int = 1) -> Tensor:
        """Memory of the shape of a tile, with anything in it."""
        height, width = (part.stop - part.start for part in position)
        return self._scratch[which][: height * width].view(height, width)

    def _multiply(self, rows: slice, columns: slice, out: Tensor) -> None:
        left, right = self.left[rows] / self.unit, self.right[columns]
        if self.reference is None:
            reference = None
        else:
            reference = (
                self.reference[0][rows] * (-self.scale / self.unit).to(self.left.dtype),
                self.reference[1][columns],
            )
        if left.dtype == self.exact:
            torch.mm(left, right.T, out=out)
            if reference:
                out.addmm_(reference[0], reference[1].T)
            return
        if reference:  # one product, whose sum is rounded once
            left, right = torch.cat([left, reference[0]], 1), torch.cat([right, reference[1]], 1)
        out.copy_(left @ right.T)


def default_budget(device: torch.device) -> int:
    """Bytes of similarities to keep where nobody said how many."""
    if device.type == "cuda":
        return int(KEEP_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return KEEP


def _cut(length: int, size: int, part: int) -> list[slice]:
    """Slices of at most ``size`` that together are ``length``, a multiple of ``part``."""
    parts = (range(begin, begin + part) for begin in range(0, length, part))
    return [slice(places[i], places[i : i + size][-1] + 1) for places in parts for i in range(0, part, size)]
