"""The two passes over a matrix of excess similarities: duals first, then weights, for any rule."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from steering.contrastive.contrast import Contrast
from steering.contrastive.tiles import Tiles
from steering.distributed import all_gather, all_reduce_max, all_reduce_sum, world_size
from steering.rules.rule import Exponential, Rule, fresh_dual
from steering.rules.solve import NEVER

TILE = 512, 1024  # small enough for the caches of a core, large enough for its products
GPU_TILE = 4096, 4096
LINE = 1 << 20  # entries of a tile that holds whole rows
NEAR = 40.0  # nats within which one exponential serves both directions, squares included

Position = tuple[slice, slice]


class RowSums:
    """Sums of ``exp(z)`` and of its square, of every row or column, as factors of ``exp(top)``; ``[k]`` double each."""

    def __init__(self, top: Tensor, first: Tensor, second: Tensor):
        self.top, self.first, self.second = top, first, second

    @classmethod
    def empty(cls, size: int, device: torch.device) -> "RowSums":
        top = torch.full((size,), NEVER, dtype=torch.float64, device=device)
        return cls(top, torch.zeros_like(top), torch.zeros_like(top))

    def __getitem__(self, part: slice) -> "RowSums":
        return RowSums(self.top[part], self.first[part], self.second[part])

    def add(self, part: slice, top: Tensor, first: Tensor, second: Tensor) -> None:
        """Adds what one tile has, in units of ``exp(top)``."""
        before = self.top[part]
        highest = torch.maximum(before, top.double())
        old, new = (before - highest).exp(), (top - highest).exp()
        self.first[part] = self.first[part] * old + first * new
        self.second[part] = self.second[part] * old.square() + second * new.square()
        self.top[part] = highest

    def all_reduced(self) -> "RowSums":
        """The sums over all ranks."""
        if world_size() == 1:
            return self
        highest = all_reduce_max(self.top)
        scale = (self.top - highest).exp()
        first, second = all_reduce_sum(torch.stack([self.first * scale, self.second * scale.square()]))
        return RowSums(highest, first, second)

    def log(self) -> Tensor:
        return self.top + self.first.log()


class AnchorDuals(NamedTuple):
    """What a batch says of its anchors before anything is remembered.

    Attributes:
        dual: of own lefts and own rights, ``[2 n, width]``.
        sums: of the exponentials of own lefts and own rights, where the rule is made of them.
    """

    dual: Tensor
    sums: tuple[RowSums, RowSums] | None = None


class TileWeights(Protocol):
    """The weights that duals imply, tile by tile."""

    def __call__(self, position: Position) -> tuple[Tensor, Tensor]:
        """Weights of both directions added up, 0 where a pair meets itself, and the tile they belong to."""
        ...

    def row_sums(self) -> tuple[Tensor, Tensor]:
        """Sums of every own row's weights and of their squares, ``[2 n]`` each, once all tiles were weighed."""
        ...


class Pass(Protocol):
    """What a rule does with the matrix.

    Attributes:
        tiles: the matrix, in units that suit the rule.
    """

    @property
    def tiles(self) -> Tiles: ...

    def fresh(self, population: int | None, remembered: Tensor | None = None) -> AnchorDuals:
        """Duals of the batch; ``remembered`` are those of the memory, ``[2 n, width]``."""
        ...

    def weights_at(self, fresh: AnchorDuals, dual: Tensor, row_base: Tensor | None = None) -> TileWeights:
        """The weights at given duals, ``[2 n, width]``, times a factor of every own row, ``[2 n]``."""
        ...


def pass_of(contrast: Contrast, rule: Rule) -> Pass:
    """The pass that suits a rule."""
    if isinstance(rule, Exponential) and rule.exponent is not None:
        shape = TILE if contrast.own.device.type == "cpu" else GPU_TILE
        return Exponentials(contrast, rule, rule.exponent, _tiles(contrast, rule.exponent, shape))
    side = max(1, min(TILE[0], LINE // len(contrast.rights[0])))
    return EachRow(contrast, rule, _tiles(contrast, 1.0, (side, side)))


@dataclass(frozen=True)
class Exponentials:
    """For rules whose weights are exponentials: duals add up tile by tile, and both directions share one exponential.

    Rows i and columns j see ``exp(z_ij - p_i) + exp(z_ij - q_j)``, which is ``exp(z_ij - a)`` times a sum of one factor
    a row and one a column, as long as all p and q lie so close together that nothing under- or overflows.

    Attributes:
        contrast: the features.
        rule: whose exponent is not None.
        unit: that exponent.
        tiles: of similarities over the exponent.
    """

    contrast: Contrast
    rule: Exponential
    unit: float | Tensor
    tiles: Tiles

    def fresh(self, population: int | None, remembered: Tensor | None = None) -> AnchorDuals:
        lefts, rights = (RowSums.empty(len(s), s.device) for s in (self.tiles.left, self.tiles.right))
        for position in self.tiles:
            self._absorb(position, lefts, rights)
        sums = lefts, rights.all_reduced()[self.contrast.own_rights]
        negatives = max(1, self.contrast.negatives)
        mean = torch.cat([part.log() for part in sums]) - torch.tensor(negatives, dtype=torch.float64).log()
        dual = self.unit * mean - self.contrast.own.repeat(2)
        dual = self.rule.settle(dual[:, None] if self.contrast.negatives else torch.zeros_like(dual)[:, None])
        return AnchorDuals(dual, sums)

    def _absorb(self, position: Position, lefts: RowSums, rights: RowSums) -> None:
        tile, powers = self.tiles[position], self.tiles.scratch(position)
        tops = tile.amax(1), tile.amax(0)
        if tile.device.type == "cpu":  # on a GPU to look would be to wait
            top = tops[0].max()
            if top - min(tops[0].min(), tops[1].min()) < NEAR:
                torch.sub(tile, top, out=powers).exp_()
                first = powers.sum(1), powers.sum(0)
                powers.square_()
                lefts.add(position[0], top, first[0], powers.sum(1))
                rights.add(position[1], top, first[1], powers.sum(0))
                return
        for side, sums in enumerate((lefts, rights)):
            torch.sub(tile, tops[side].unsqueeze(1 - side), out=powers).exp_()
            first = powers.sum(1 - side)
            sums.add(position[side], tops[side], first, powers.square_().sum(1 - side))

    def weights_at(self, fresh: AnchorDuals, dual: Tensor, row_base: Tensor | None = None) -> "ExponentialWeights":
        assert fresh.sums is not None
        return ExponentialWeights(self, fresh.sums, dual, row_base)


class ExponentialWeights:
    """Weights ``exp((excess - dual) / unit)`` of both directions.

    Args:
        matrix: what is weighed.
        sums: of the exponentials of own lefts and own rights.
        dual: of own lefts and own rights, ``[2 n, 1]``.
        row_base: factor of every own row's weights, ``[2 n]``, above 0; None for 1.
    """

    def __init__(
        self, matrix: Exponentials, sums: tuple[RowSums, RowSums], dual: Tensor, row_base: Tensor | None = None
    ):
        contrast, self.tiles, self.sums = matrix.contrast, matrix.tiles, sums
        n = len(contrast.own)
        self.offset = (contrast.own.repeat(2) + dual[:, 0].double()) / matrix.unit
        if row_base is not None:
            self.offset = self.offset - row_base.log()
        self.alone = not contrast.negatives
        sides = self.offset[:n], all_gather(self.offset[n:])  # p of own lefts, q of everyone's rights
        low = torch.cat([part.aminmax().min[None] for part in sides]).min()
        high = torch.cat([part.aminmax().max[None] for part in sides]).max()
        self.shift = low if low.device.type == "cpu" and high - low < NEAR else None
        exact = self.tiles.exact
        self.factors = [(low - part).exp().to(exact) for part in sides]
        self.offsets = [part.to(exact) for part in sides]

    def __call__(self, position: Position) -> tuple[Tensor, Tensor]:
        tile, weights = self.tiles[position], self.tiles.scratch(position)
        lefts, rights = position
        if self.shift is not None:
            torch.sub(tile, self.shift.to(tile), out=weights).exp_()
            weights.mul_(self.factors[0][lefts, None] + self.factors[1][rights])
        else:
            torch.sub(tile, self.offsets[0][lefts, None], out=weights).exp_()
            weights += (tile - self.offsets[1][rights]).exp_()
        return weights, tile

    def row_sums(self) -> tuple[Tensor, Tensor]:
        top = torch.cat([part.top for part in self.sums]) - self.offset
        first = torch.cat([part.first for part in self.sums])
        second = torch.cat([part.second for part in self.sums])
        if self.alone:
            return torch.zeros_like(first), torch.zeros_like(second)
        return first * top.exp(), second * (2 * top).exp()


@dataclass(frozen=True)
class EachRow:
    """For any rule: whole rows at a time, own lefts against all rights, then own rights against all lefts.

    Every entry comes out of a tile of the same position and shape whichever way it is read, and so is the same to the
    bit: a rule may compare an excess to its dual.

    Attributes:
        contrast: the features.
        rule: any.
        tiles: of similarities.
    """

    contrast: Contrast
    rule: Rule
    tiles: Tiles

    def fresh(self, population: int | None, remembered: Tensor | None = None) -> AnchorDuals:
        n, turned = len(self.contrast.own), self._turned()
        olds = (None, None) if remembered is None else (remembered[:n], remembered[n:])
        lefts = [self._solve(self._lines(part), part, population, olds[0]) for part in self.tiles.rows]
        rights = [self._solve(_columns(turned, part), part, population, olds[1]) for part in turned.columns]
        return AnchorDuals(torch.cat(lefts + rights))

    def _turned(self) -> Tiles:
        """All lefts against own rights."""
        if world_size() == 1:
            return self.tiles
        contrast = self.contrast
        first, part = -contrast.own_rights.start, len(contrast.own)
        target, reference = contrast.turned()
        shape = self.tiles.shape
        return Tiles(target, reference, contrast.scale, unit=1.0, first=first, shape=shape, part=part, budget=0)

    def _lines(self, part: slice) -> Tensor:
        """Whole rows, ``[part, m]``."""
        return torch.cat([self.tiles[part, columns].clone() for columns in self.tiles.columns], 1)

    def _solve(self, lines: Tensor, part: slice, population: int | None, remembered: Tensor | None) -> Tensor:
        own = self.contrast.own[part, None].to(lines)
        remembered = None if remembered is None else remembered[part]
        return fresh_dual(self.rule, lines - own, lines > NEVER / 2, population, remembered)

    def weights_at(self, fresh: AnchorDuals, dual: Tensor, row_base: Tensor | None = None) -> "EntryWeights":
        return EntryWeights(self, dual, row_base)


class EntryWeights:
    """Weights that a rule gives entry by entry, of both directions.

    Args:
        matrix: what is weighed.
        dual: of own lefts and own rights, ``[2 n, width]``.
        row_base: factor of every own row's weights, ``[2 n]``; None for 1.
    """

    def __init__(self, matrix: EachRow, dual: Tensor, row_base: Tensor | None = None):
        self.tiles, self.rule, self.own_rights = matrix.tiles, matrix.rule, matrix.contrast.own_rights
        own = matrix.contrast.own.to(self.tiles.exact)
        self.duals = dual[: len(own)], all_gather(dual[len(own) :])
        self.owns = own, all_gather(own)
        base = None if row_base is None else row_base.to(own)
        self.bases = None if base is None else (base[: len(own)], all_gather(base[len(own) :].contiguous()))
        self.sums = [dual.new_zeros(2, len(side), dtype=torch.float64) for side in self.owns]  # weights, squares

    def __call__(self, position: Position) -> tuple[Tensor, Tensor]:
        tile, own = self.tiles[position], self.tiles.own(position)
        both = []
        for side, entries in enumerate((tile, tile.T)):
            part = position[side]
            weights = self.rule.weights(entries - self.owns[side][part, None], self.duals[side][part]).to(entries)
            weights[own[side], own[1 - side]] = 0
            if self.bases is not None:
                weights = weights * self.bases[side][part, None]
            self.sums[side][0, part] += weights.sum(1, dtype=torch.float64)
            self.sums[side][1, part] += weights.square().sum(1, dtype=torch.float64)
            both.append(weights)
        return (both[0] + both[1].T).contiguous(), tile

    def row_sums(self) -> tuple[Tensor, Tensor]:
        rights = all_reduce_sum(self.sums[1])[:, self.own_rights]
        first, second = torch.cat([self.sums[0], rights], 1)
        return first, second


def _tiles(contrast: Contrast, unit: float | Tensor, shape: tuple[int, int]) -> Tiles:
    """Own lefts against all rights."""
    right, reference_right = contrast.rights
    reference = contrast.reference
    both = None if reference is None or reference_right is None else (reference[0], reference_right)
    first, part, budget = contrast.own_rights.start, len(contrast.own), contrast.budget
    target, scale = (contrast.target[0], right), contrast.scale
    return Tiles(target, both, scale, unit=unit, first=first, shape=shape, part=part, budget=budget)


def _columns(tiles: Tiles, part: slice) -> Tensor:
    """Whole columns as rows, ``[part, lefts]``."""
    return torch.cat([tiles[rows, part].clone() for rows in tiles.rows]).T
