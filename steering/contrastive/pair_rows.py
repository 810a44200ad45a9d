"""Contrastive rows, two a pair, without ever holding the matrix of all pairs.

Both directions look at one matrix z_ij = s_ij - scale * r_ij of excess similarities, of own lefts and the rights of
all ranks: anchor left i has the excess z_ij - z_ii, anchor right j the excess z_ij - z_jj. A first pass over its tiles
finds the levels. The weights are constants of the gradient, so the loss is linear in the similarities, and a second
pass turns the weights into the gradient of the features by two products a tile; no similarity is ever differentiated.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from steering.contrastive.contrast import Contrast, Sides, sides, similarity
from steering.contrastive.pairs import Pairs, anchors
from steering.contrastive.passes import EachRow, Exponentials, Pass
from steering.contrastive.tiles import room
from steering.distributed import all_gather, rank, reduce_scatter_sum, world_size
from steering.dual_memory import DualMemory
from steering.errors import UserError
from steering.rows import Steered, given
from steering.rules.rule import Exponential, Rule

SAMPLED = 128  # pairs of a batch, over all ranks, that variances are estimated from


class PairRows:
    """The ``2 n`` rows of n pairs of this rank, the lefts first.

    Args:
        pairs: of the target, with gradient.
        reference: of the same pairs under the reference, None without one; its width may be another.
        budget: bytes of similarities kept between the passes, None to choose by device.

    Raises:
        UserError: target and reference have different numbers of pairs.
    """

    shared = False

    def __init__(self, pairs: Pairs, reference: Pairs | None, budget: int | None = None):
        got = [len(side) for some in (pairs, reference) if some is not None for side in some[:2]]
        if len(set(got)) != 1 or not got[0]:
            raise UserError(f"target and reference losses must be of the same samples, got pairs of {got} features")
        for some in (pairs, reference):
            if some is not None and some.left.shape != some.right.shape:
                widths = some.left.shape[1:], some.right.shape[1:]
                raise UserError(f"left and right features must have the same width, got {widths[0]} and {widths[1]}")
        self.pairs, self.budget = pairs, room(pairs.left.device) if budget is None else budget
        self.target = sides(pairs)
        self.known = None if reference is None else sides(reference, like=self.target[0])
        self.rights = all_gather(self.target[1]), None if self.known is None else all_gather(self.known[1])

    def sample(self) -> tuple[Tensor, Tensor, Tensor] | None:
        if self.known is None:
            return None
        pairs = zip((self.target, self.known), self.rights, strict=True)
        n, ranks, exact = len(self.target[0]), world_size(), torch.promote_types(self.target[0].dtype, torch.float32)
        some = min(n, max(1, SAMPLED // ranks))
        places = torch.arange(some, device=self.target[0].device) * n // some
        everywhere = (places + torch.arange(ranks, device=places.device)[:, None] * n).flatten()
        found = []
        for mine, rights in pairs:
            assert rights is not None
            lefts, rights = mine[0][places].to(exact), rights[everywhere].to(exact)
            own = rights[rank() * some : (rank() + 1) * some]
            found.append(anchors((lefts, own), (all_gather(lefts), rights), rank() * some))
        (values, mask), (known, _) = found
        return values, known, mask

    def places(self, memory: DualMemory, ids: Tensor | None) -> Tensor:
        ids = given(ids, len(self.target[0]))
        return torch.cat([2 * ids, 2 * ids + 1])

    def level(self, rule: Rule, scale: Tensor, population: int | None, old: Tensor | None) -> Tensor:
        own = similarity(self.target)
        if self.known is not None:
            own = own - scale.double() * similarity(self.known)
        self.contrast = Contrast(self.target, self.known, self.rights, scale, own, self.budget)
        if isinstance(rule, Exponential) and rule.exponent is not None:
            self.passes: Pass = Exponentials(self.contrast, rule)
        else:
            self.passes = EachRow(self.contrast, rule)
        return self.passes.level(population, old)

    def filled(self) -> Tensor:
        own = self.contrast.own
        return torch.full((2 * len(own), 1), self.contrast.negatives > 0, device=own.device)

    def steer(self, rule: Rule, scale: Tensor, level: Tensor) -> Steered:
        sweep = _Sweep(self.contrast, self.passes, level)
        loss: Any = Linear.apply(self.pairs.left, self.pairs.right, sweep)
        n, exact, negatives = len(self.contrast.own), self.contrast.exact, self.contrast.negatives
        weights = (sweep.sums[0][:n] + sweep.sums[0][n:]) / (2 * max(1, negatives))
        entries, (first, second) = weights.new_full((2 * n,), negatives, dtype=exact), sweep.sums
        size = torch.where(first > 0, first, 1)  # squares would leave the range of single precision
        sums = (first / size).to(exact), (second / size**2).to(exact)
        gated = (first < negatives / 2).to(exact).mean()
        return Steered(loss, weights.to(exact), scale, entries, sums, gated, loss.detach())


class _Sweep:
    """The second pass: weights of every tile, and what follows from them.

    Attributes:
        sums: of the weights of every row and of their squares, ``[2 n]`` each.
    """

    def __init__(self, contrast: Contrast, passes: Pass, level: Tensor):
        self.contrast, self.passes, self.level = contrast, passes, level

    def __call__(self, wanted: bool) -> tuple[Tensor, Sides | None]:
        """The loss, and its gradient by own lefts ``[n, width]`` and rights if it is wanted."""
        contrast, passes, exact = self.contrast, self.passes, self.contrast.exact
        left, right = contrast.target[0], contrast.rights[0]
        by_left, by_right = (torch.zeros_like(side, dtype=exact) if wanted else None for side in (left, right))
        value = left.new_zeros((), dtype=torch.float64)
        passes.prepare(self.level)
        for place in passes.tiles:
            weights, tile = passes.weigh(place)
            value += torch.dot(weights.view(-1), tile.view(-1))
            if by_left is not None and by_right is not None:
                weights = weights.to(left.dtype)
                add_product(by_left[place[0]], weights, right[place[1]])
                add_product(by_right[place[1]], weights.T, left[place[0]])
        self.sums = passes.sums()
        n = len(left)
        pull = self.sums[0][:n] + self.sums[0][n:]  # weight of every own pair's similarity, with a minus
        share = 1 / (2 * n * max(1, contrast.negatives))
        loss = share * (value * passes.tiles.unit - (pull * contrast.own).sum())
        if by_left is None or by_right is None:
            return loss.to(exact), None
        by_right = reduce_scatter_sum(by_right)
        pull = pull[:, None].to(exact)
        by_left.addcmul_(pull, contrast.target[1].to(exact), value=-1).mul_(share)
        by_right.addcmul_(pull, left.to(exact), value=-1).mul_(share)
        return loss.to(exact), (by_left, by_right)


class Linear(torch.autograd.Function):
    """A loss whose gradient was found on the way."""

    @staticmethod
    def forward(ctx, left: Tensor, right: Tensor, sweep: _Sweep) -> Tensor:
        loss, ctx.gradients = sweep(any(ctx.needs_input_grad))
        ctx.dtypes = left.dtype, right.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError("the steered loss of Pairs can be differentiated once; call the steerer again")
        found, ctx.gradients = ctx.gradients, None  # they are large, and are scaled in place
        by_left, by_right = (x.mul_(upstream[0]).to(dtype) for x, dtype in zip(found, ctx.dtypes, strict=True))
        return by_left, by_right, None


def add_product(target: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == target.dtype:
        target.addmm_(a, b)
    else:
        target += a @ b
