"""The two passes over a matrix of excess similarities: levels first, then weights, for any rule."""

from typing import Protocol

import torch
from torch import Tensor

from steering.contrastive.contrast import Contrast
from steering.contrastive.tiles import NEVER, Tiles
from steering.distributed import all_gather, all_reduce_max, all_reduce_sum, world_size
from steering.rules.rule import Exponential, Rule, find_level

TILE = 512, 1024  # small enough for the caches of a core, large enough for its products
GPU_TILE = 4096, 4096
LINE = 1 << 20  # entries of a tile that holds whole rows
NEAR = 40.0  # nats within which one exponential serves both directions, squares included

Place = tuple[slice, slice]


class Pass(Protocol):
    """What a rule does with the matrix.

    Attributes:
        tiles: the matrix, in units that suit the rule.
    """

    tiles: Tiles

    def level(self, population: int | None, old: Tensor | None = None) -> Tensor:
        """Fresh levels of own lefts and own rights, ``[2 n, width]``; ``old`` are the remembered ones."""
        ...

    def prepare(self, level: Tensor) -> None:
        """Takes the levels to weigh by, ``[2 n, width]``."""
        ...

    def weigh(self, place: Place) -> tuple[Tensor, Tensor]:
        """Weights of both directions added up, 0 where a pair meets itself, and the tile they belong to."""
        ...

    def sums(self) -> tuple[Tensor, Tensor]:
        """Sums of every own row's weights and of their squares, ``[2 n]`` each, once all was weighed."""
        ...


class Exponentials:
    """For rules whose weights are exponentials: levels add up tile by tile, and both directions share one exponential.

    Rows i and columns j see ``exp(z_ij - p_i) + exp(z_ij - q_j)``, which is ``exp(z_ij - a)`` times a sum of one factor
    a row and one a column, as long as all p and q lie so close together that nothing under- or overflows.
    """

    def __init__(self, contrast: Contrast, rule: Exponential):
        assert rule.exponent is not None
        self.contrast, self.rule, self.unit = contrast, rule, rule.exponent
        shape = TILE if contrast.own.device.type == "cpu" else GPU_TILE
        self.tiles = _tiles(contrast, self.unit, shape)

    def level(self, population: int | None, old: Tensor | None = None) -> Tensor:
        lefts = _Sums(len(self.tiles.left), self.contrast.own.device)
        rights = _Sums(len(self.tiles.right), self.contrast.own.device)
        for place in self.tiles:
            self._absorb(place, lefts, rights)
        rights.reduce()
        self.found = lefts, rights[self.contrast.mine]
        negatives = max(1, self.contrast.negatives)
        mean = torch.cat([sums.log() for sums in self.found]) - torch.tensor(negatives, dtype=torch.float64).log()
        level = self.unit * mean - self.contrast.own.repeat(2)
        return self.rule.settle(level[:, None] if self.contrast.negatives else torch.zeros_like(level)[:, None])

    def _absorb(self, place: Place, lefts: "_Sums", rights: "_Sums") -> None:
        tile, powers = self.tiles[place], self.tiles.scratch(place)
        tops = tile.amax(1), tile.amax(0)
        if tile.device.type == "cpu":  # on a GPU to look would be to wait
            top = tops[0].max()
            if top - min(tops[0].min(), tops[1].min()) < NEAR:
                torch.sub(tile, top, out=powers).exp_()
                first = powers.sum(1), powers.sum(0)
                powers.square_()
                lefts.add(place[0], top, first[0], powers.sum(1))
                rights.add(place[1], top, first[1], powers.sum(0))
                return
        for side, sums in enumerate((lefts, rights)):
            torch.sub(tile, tops[side].unsqueeze(1 - side), out=powers).exp_()
            first = powers.sum(1 - side)
            sums.add(place[side], tops[side], first, powers.square_().sum(1 - side))

    def prepare(self, level: Tensor) -> None:
        n = len(self.contrast.own)
        against = (self.contrast.own.repeat(2) + level[:, 0].double()) / self.unit
        self.against = against[:n], all_gather(against[n:])  # p of own lefts, q of everyone's rights
        self._level = against
        exact = self.tiles.exact
        low = torch.cat([part.aminmax().min[None] for part in self.against]).min()
        high = torch.cat([part.aminmax().max[None] for part in self.against]).max()
        self.shift = low if low.device.type == "cpu" and high - low < NEAR else None
        if self.shift is not None:
            self.factors = [(low - part).exp().to(exact) for part in self.against]
        self.offsets = [part.to(exact) for part in self.against]

    def weigh(self, place: Place) -> tuple[Tensor, Tensor]:
        tile, weights = self.tiles[place], self.tiles.scratch(place)
        lefts, rights = place
        if self.shift is not None:
            torch.sub(tile, self.shift.to(tile), out=weights).exp_()
            weights.mul_(self.factors[0][lefts, None] + self.factors[1][rights])
        else:
            torch.sub(tile, self.offsets[0][lefts, None], out=weights).exp_()
            weights += (tile - self.offsets[1][rights]).exp_()
        return weights, tile

    def sums(self) -> tuple[Tensor, Tensor]:
        top = torch.cat([part.top for part in self.found]) - self._level
        first, second = (torch.cat([getattr(part, name) for part in self.found]) for name in ("first", "second"))
        if not self.contrast.negatives:
            return torch.zeros_like(first), torch.zeros_like(second)
        return first * top.exp(), second * (2 * top).exp()


class EachRow:
    """For any rule: whole rows at a time, own lefts against all rights, then own rights against all lefts.

    Every entry comes out of a tile of the same place and shape whichever way it is read, and so is the same to the
    bit: a rule may compare an excess to its level.
    """

    def __init__(self, contrast: Contrast, rule: Rule):
        self.contrast, self.rule = contrast, rule
        side = max(1, min(TILE[0], LINE // len(contrast.rights[0])))
        self.shape = side, side
        self.tiles = _tiles(contrast, 1.0, self.shape)

    def level(self, population: int | None, old: Tensor | None = None) -> Tensor:
        n, turned = len(self.contrast.own), self._turned()
        olds = (None, None) if old is None else (old[:n], old[n:])
        lefts = [self._solve(self._line(part), part, population, olds[0]) for part in self.tiles.rows]
        rights = [self._solve(_column(turned, part), part, population, olds[1]) for part in turned.columns]
        return torch.cat(lefts + rights)

    def _turned(self) -> Tiles:
        """All lefts against own rights."""
        if world_size() == 1:
            return self.tiles
        contrast = self.contrast
        first, part = -contrast.mine.start, len(contrast.own)
        target, known = contrast.turned()
        return Tiles(target, known, contrast.scale, unit=1.0, first=first, shape=self.shape, part=part, budget=0)

    def _line(self, part: slice) -> Tensor:
        """Whole rows, ``[part, m]``."""
        return torch.cat([self.tiles[part, columns].clone() for columns in self.tiles.columns], 1)

    def _solve(self, lines: Tensor, part: slice, population: int | None, old: Tensor | None) -> Tensor:
        own = self.contrast.own[part, None].to(lines)
        old = None if old is None else old[part]
        return find_level(self.rule, lines - own, lines > NEVER / 2, population, old)

    def prepare(self, level: Tensor) -> None:
        n, exact = len(self.contrast.own), self.tiles.exact
        self.levels = level[:n], all_gather(level[n:])
        self.owns = self.contrast.own.to(exact), all_gather(self.contrast.own).to(exact)
        self.found = [level.new_zeros(2, len(own), dtype=torch.float64) for own in self.owns]  # weights, squares

    def weigh(self, place: Place) -> tuple[Tensor, Tensor]:
        tile, where = self.tiles[place], self.tiles.own(place)
        both = []
        for side, entries in enumerate((tile, tile.T)):
            part = place[side]
            weights = self.rule.weights(entries - self.owns[side][part, None], self.levels[side][part]).to(entries)
            weights[where[side], where[1 - side]] = 0
            self.found[side][0, part] += weights.sum(1, dtype=torch.float64)
            self.found[side][1, part] += weights.square().sum(1, dtype=torch.float64)
            both.append(weights)
        return (both[0] + both[1].T).contiguous(), tile

    def sums(self) -> tuple[Tensor, Tensor]:
        rights = all_reduce_sum(self.found[1])[:, self.contrast.mine]
        first, second = torch.cat([self.found[0], rights], 1)
        return first, second


class _Sums:
    """Sums of ``exp(z)`` and of its square, of every row or column, as factors of ``exp(top)``; ``[k]`` double each."""

    def __init__(self, size: int, device: torch.device):
        self.top = torch.full((size,), NEVER, dtype=torch.float64, device=device)
        self.first, self.second = torch.zeros_like(self.top), torch.zeros_like(self.top)

    def __getitem__(self, part: slice) -> "_Sums":
        some = object.__new__(_Sums)
        some.top, some.first, some.second = self.top[part], self.first[part], self.second[part]
        return some

    def add(self, part: slice, top: Tensor, first: Tensor, second: Tensor) -> None:
        """Adds what one tile has, in units of ``exp(top)``."""
        before = self.top[part]
        highest = torch.maximum(before, top.double())
        old, new = (before - highest).exp(), (top - highest).exp()
        self.first[part] = self.first[part] * old + first * new
        self.second[part] = self.second[part] * old.square() + second * new.square()
        self.top[part] = highest

    def reduce(self) -> None:
        """Adds what every rank has."""
        if world_size() == 1:
            return
        highest = all_reduce_max(self.top)
        scale = (self.top - highest).exp()
        self.first, self.second = all_reduce_sum(torch.stack([self.first * scale, self.second * scale.square()]))
        self.top = highest

    def log(self) -> Tensor:
        return self.top + self.first.log()


def _tiles(contrast: Contrast, unit: float | Tensor, shape: tuple[int, int]) -> Tiles:
    """Own lefts against all rights."""
    right, known = contrast.rights
    reference = None if contrast.known is None or known is None else (contrast.known[0], known)
    first, part, budget = contrast.mine.start, len(contrast.own), contrast.budget
    target, scale = (contrast.target[0], right), contrast.scale
    return Tiles(target, reference, scale, unit=unit, first=first, shape=shape, part=part, budget=budget)


def _column(tiles: Tiles, part: slice) -> Tensor:
    """Whole columns as rows, ``[part, lefts]``."""
    return torch.cat([tiles[rows, part].clone() for rows in tiles.rows]).T
