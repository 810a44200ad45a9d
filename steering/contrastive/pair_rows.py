"""Contrastive rows, two a pair, without ever holding the matrix of all pairs.

Both directions look at one matrix z_ij = s_ij - scale * r_ij of excess similarities, of own lefts and the rights of
all ranks: anchor left i has the excess z_ij - z_ii, anchor right j the excess z_ij - z_jj. A first pass over its tiles
finds the duals. The weights are constants of the gradient, so the loss is linear in the similarities, and a second
pass turns the weights into the gradient of the features by two products a tile; no similarity is ever differentiated.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from steering.agreement import DTYPES, KINDS, Header
from steering.contrastive.contrast import Contrast, Sides, sides, similarity
from steering.contrastive.pairs import Pairs, anchors
from steering.contrastive.passes import AnchorDuals, Pass, TileWeights, pass_of
from steering.contrastive.tiles import default_budget
from steering.distributed import all_gather, all_reduce_sum, rank, reduce_scatter_sum, world_size
from steering.errors import UserError
from steering.loss_rows import base_weights, sample_ids
from steering.rules.rule import Rule
from steering.steered import RowFigures, Steered

LEAST_BASE = 1e-30  # of a pair: its logarithm is finite, and it counts for nothing
SAMPLED = 128  # pairs of a batch, over all ranks, that variances are estimated from


class FreshPairs(NamedTuple):
    """What a batch of pairs says of its anchors before anything is remembered.

    Attributes:
        dual: gives the duals, ``[2 n, width]``.
        contrast: the features.
        matrix: what the rule does with their similarities.
        anchors: its duals and what they were made of.
    """

    dual: Callable[[], Tensor]
    contrast: Contrast
    matrix: Pass
    anchors: AnchorDuals


class PairRows:
    """The ``2 n`` rows of n pairs of this rank, the lefts first.

    Args:
        pairs: of the target, with gradient.
        reference: of the same pairs under the reference, None without one; its width may be another.
        budget: bytes of similarities kept between the passes, None to choose by device.
        base: base weight of every pair in the mean over anchors, ``[n]``, at least 0; None if uniform. A pair that does
            not belong together stays a negative of all others.

    Raises:
        UserError: target and reference have different numbers of pairs.
    """

    shared = False

    def __init__(self, pairs: Pairs, reference: Pairs | None, budget: int | None = None, base: Any = None):
        both = [pairs] if reference is None else [pairs, reference]
        counts = [len(side) for features in both for side in features[:2]]
        if len(set(counts)) != 1 or not counts[0]:
            raise UserError(f"target and reference losses must be of the same samples, got pairs of {counts} features")
        for features in both:
            if features.left.dim() != 2 or features.right.dim() != 2:
                shapes = [list(side.shape) for side in features[:2]]
                raise UserError(f"left and right features are [n, width], got {shapes[0]} and {shapes[1]}")
            if features.left.shape != features.right.shape:
                widths = features.left.shape[1:], features.right.shape[1:]
                raise UserError(f"left and right features must have the same width, got {widths[0]} and {widths[1]}")
        self.base = None if base is None else base_weights(base, pairs.left, counts[0])
        self.pairs = pairs
        self.budget = default_budget(pairs.left.device) if budget is None else budget
        self.target = sides(pairs)
        self.reference = None if reference is None else sides(reference, like=self.target[0])

    def header(self) -> Header:
        """What the other ranks have to know."""
        reference_width = 0 if self.reference is None else self.reference[0].shape[1]
        dtype, reference = DTYPES.index(self.target[0].dtype), int(self.reference is not None)
        pairs, width = self.target[0].shape
        return Header(
            KINDS.index("pairs"), dtype, reference, 0, pairs, width, reference_width, int(self.base is not None)
        )

    def agreed(self, headers: Sequence[Header]) -> "PairRows":
        """The rows as all ranks see them, with everyone's right features.

        Raises:
            UserError: on every rank, where ranks hold unlike numbers of pairs or widths.
        """
        for what, values in (
            ("pairs", [header.rows for header in headers]),
            ("features", [header.columns for header in headers]),
            ("reference features", [header.last for header in headers]),
        ):
            if len(set(values)) > 1:
                raise UserError(
                    f"all processes must hold as many {what}, got {', '.join(map(str, values))} by rank: drop the "
                    f"remainder of an epoch (drop_last=True)"
                )
        reference_rights = None if self.reference is None else all_gather(self.reference[1])
        self.rights = all_gather(self.target[1]), reference_rights
        if self.base is not None:
            total = all_reduce_sum(self.base.sum())
            self.base = self.base * (len(self.rights[0]) / torch.where(total > 0, total, 1))
        return self

    def variance_sample(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Rows of losses, of reference losses, and their mask, of a few of the pairs; None without a reference."""
        if self.reference is None:
            return None
        n, ranks, exact = len(self.target[0]), world_size(), torch.promote_types(self.target[0].dtype, torch.float32)
        count = min(n, max(1, SAMPLED // ranks))
        sampled = torch.arange(count, device=self.target[0].device) * n // count
        everywhere = (sampled + torch.arange(ranks, device=sampled.device)[:, None] * n).flatten()
        losses = []
        for features, rights in zip((self.target, self.reference), self.rights, strict=True):
            assert rights is not None
            lefts, rights = features[0][sampled].to(exact), rights[everywhere].to(exact)
            own = rights[rank() * count : (rank() + 1) * count]
            losses.append(anchors((lefts, own), (all_gather(lefts), rights), rank() * count))
        (target_losses, mask), (reference_losses, _) = losses
        return target_losses, reference_losses, mask

    def memory_index(self, ids: Tensor | None) -> Tensor:
        """Where in the memory the duals of own anchors live, ``[2 n]``."""
        ids = sample_ids(ids, len(self.target[0])).to(self.target[0].device)
        return torch.cat([2 * ids, 2 * ids + 1])

    def fresh(self, rule: Rule, scale: Tensor | float, population: int | None, remembered: Tensor | None) -> FreshPairs:
        """Duals of the batch; ``remembered`` are those of the memory, NaN where there is none."""
        scale = torch.as_tensor(scale, dtype=torch.float64)
        own = similarity(self.target)
        if self.reference is not None:
            own = own - scale.double() * similarity(self.reference)
        contrast = Contrast(self.target, self.reference, self.rights, scale, own, self.budget)
        matrix = pass_of(contrast, rule)
        duals = matrix.fresh(population, remembered)
        return FreshPairs(lambda: duals.dual, contrast, matrix, duals)

    def filled(self) -> Tensor:
        """Which anchors have any negative, ``[2 n, 1]`` bool."""
        lefts, rights = self.target[0], self.rights[0]
        return torch.full((2 * len(lefts), 1), len(rights) > 1, device=lefts.device)

    def steer(
        self,
        rule: Rule,
        fresh: FreshPairs,
        dual: Tensor | None,
        scale: Tensor,
        average: Any = "rows",
        *,
        frozen: bool = False,
    ) -> Steered:
        """The steered loss, with the weights that the duals imply; all anchors have as many negatives."""
        row_base = None if self.base is None else self.base.clamp(min=LEAST_BASE).repeat(2)
        dual = fresh.dual() if dual is None else dual
        sweep = _Sweep(fresh.contrast, fresh.matrix, fresh.matrix.weights_at(fresh.anchors, dual, row_base))
        loss: Any = GivenGradient.apply(self.pairs.left, self.pairs.right, sweep)
        n, exact, negatives = len(fresh.contrast.own), fresh.contrast.exact, fresh.contrast.negatives
        first, second = sweep.row_sums
        plain = first if row_base is None else first / row_base
        weights = (first[:n] + first[n:]) / (2 * max(1, negatives))
        size = torch.where(first > 0, first, 1)  # squares would leave the range of single precision
        sums = (first / size).to(exact), (second / size**2).to(exact)
        entries = weights.new_full((2 * n,), negatives, dtype=exact)
        gated = (plain < negatives / 2).to(exact)
        figures = RowFigures(sweep.weighted_loss, entries, sums, gated)
        return Steered(loss, weights.to(exact), scale, lambda: figures)


class _Sweep:
    """The second pass: weights of every tile, and what follows from them.

    Attributes:
        row_sums: of the weights of every row and of their squares, ``[2 n]`` each.
        weighted_loss: weighted mean of the target's losses alone, a scalar.
    """

    def __init__(self, contrast: Contrast, matrix: Pass, weights: TileWeights):
        self.contrast, self.matrix, self.weights = contrast, matrix, weights

    def __call__(self, needs_gradient: bool) -> tuple[Tensor, Sides | None]:
        """The loss, and its gradient by own lefts ``[n, width]`` and rights if it is needed."""
        contrast, exact = self.contrast, self.contrast.exact
        products = needs_gradient or contrast.reference is not None  # they also give the target's part of the loss
        left, right = contrast.target[0], contrast.rights[0]
        by_left, by_right = (torch.zeros_like(side, dtype=exact) if products else None for side in (left, right))
        value = left.new_zeros((), dtype=torch.float64)
        for position in self.matrix.tiles:
            weights, tile = self.weights(position)
            value += torch.dot(weights.view(-1), tile.view(-1))
            if by_left is not None and by_right is not None:
                weights = weights.to(left.dtype)
                add_product(by_left[position[0]], weights, right[position[1]])
                add_product(by_right[position[1]], weights.T, left[position[0]])
        self.row_sums = self.weights.row_sums()
        n = len(left)
        pull = self.row_sums[0][:n] + self.row_sums[0][n:]  # weight of every own pair's similarity, with a minus
        share = 1 / (2 * n * max(1, contrast.negatives))
        loss = (share * (value * self.matrix.tiles.unit - (pull * contrast.own).sum())).to(exact)
        self.weighted_loss = loss
        if by_left is None or by_right is None:
            return loss, None
        if contrast.reference is not None:
            target = torch.linalg.vecdot(by_left, left.to(exact)).double() - pull * similarity(contrast.target)
            self.weighted_loss = (share * target.sum()).to(exact)
        by_right = reduce_scatter_sum(by_right)
        pull = pull[:, None].to(exact)
        by_left.addcmul_(pull, contrast.target[1].to(exact), value=-1).mul_(share)
        by_right.addcmul_(pull, left.to(exact), value=-1).mul_(share)
        return loss, (by_left, by_right)


class GivenGradient(torch.autograd.Function):
    """A loss of left and right features whose gradient was computed on the way."""

    @staticmethod
    def forward(ctx, left: Tensor, right: Tensor, sweep: Any) -> Tensor:
        loss, ctx.gradients = sweep(any(ctx.needs_input_grad))
        ctx.dtypes = left.dtype, right.dtype
        return loss.clone()  # the sweep keeps a number of its own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError("the steered loss of Pairs can be differentiated once; call the steerer again")
        gradients, ctx.gradients = ctx.gradients, None  # they are large, and are scaled in place
        by_left, by_right = (x.mul_(upstream[0]).to(dtype) for x, dtype in zip(gradients, ctx.dtypes, strict=True))
        return by_left, by_right, None


def add_product(target: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds ``a @ b`` to the target, in the target's precision where that is that of the factors."""
    if a.dtype == target.dtype:
        target.addmm_(a, b)
    else:
        target += a @ b
