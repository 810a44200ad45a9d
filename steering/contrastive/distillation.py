"""Distillation of pairs: a student whose similarities come to be a teacher's, in tiles."""

import torch
from torch import Tensor

from steering.contrastive.contrast import Contrast, Sides, sides, similarity
from steering.contrastive.pair_rows import GivenGradient, add_product
from steering.contrastive.pairs import Pairs
from steering.contrastive.passes import AnchorDuals, Exponentials, pass_of
from steering.contrastive.tiles import default_budget
from steering.distributed import all_gather, reduce_scatter_sum
from steering.rules.kl import KL


def pair_divergence(student: Pairs, teacher: Pairs, *, budget: int | None = None) -> Tensor:
    """Mean KL(teacher || student) of the answers of all anchors, in nats, a scalar; see ``steering.distil``."""
    match = _Match(student, teacher, default_budget(student.left.device) if budget is None else budget)
    linear = GivenGradient.apply(student.left, student.right, match)
    assert isinstance(linear, Tensor)
    scale = student.scale
    if not isinstance(scale, Tensor):
        return match.value.to(linear) + scale * (linear - linear.detach())
    moved = scale.detach() * (linear - linear.detach()) + (scale - scale.detach()) * linear.detach()
    return match.value.to(linear) + moved


class _Match:
    """How far a student's softmaxes are from a teacher's, and the gradient by its features at a scale of one.

    Attributes:
        value: the divergence, once called.
    """

    def __init__(self, student: Pairs, teacher: Pairs, budget: int):
        with torch.no_grad():
            self.student, self.teacher = (_Softmax(pairs, budget // 2) for pairs in (student, teacher))

    @torch.no_grad()
    def __call__(self, needs_gradient: bool) -> tuple[Tensor, Sides | None]:
        """The mean over anchors of ``sum (p_student - p_teacher) s``, and its gradient if it is needed."""
        student, teacher = self.student, self.teacher
        left, right = student.contrast.target[0], student.contrast.rights[0]
        exact, share = student.contrast.exact, 1 / (2 * len(left))
        by_left, by_right = torch.zeros_like(left, dtype=exact), torch.zeros_like(right, dtype=exact)
        drift, gap = (left.new_zeros((), dtype=torch.float64) for _ in range(2))
        for position, teacher_position in zip(student.tiles, teacher.tiles, strict=True):
            weights, logits = student.weights(position)
            teacher_weights, teacher_logits = teacher.weights(teacher_position)
            gap += _dot(teacher_weights, teacher_logits) - _dot(teacher_weights, logits)
            weights = weights.sub_(teacher_weights.to(weights))
            drift += _dot(weights, logits)
            if needs_gradient:
                weights = weights.to(left.dtype)
                add_product(by_left[position[0]], weights, right[position[1]])
                add_product(by_right[position[1]], weights.T, left[position[0]])
        own = student.own - teacher.own.to(student.own)  # of every pair's own similarity
        rest = teacher.own * (teacher.own_logit - student.own_logit) + student.log_sum_exp - teacher.log_sum_exp
        self.value = share * (gap + rest.sum())
        linear = share * (drift * student.unit + (own * student.contrast.own).sum())
        if not needs_gradient:
            return linear.to(exact), None
        by_right, pull = reduce_scatter_sum(by_right), own[:, None].to(exact)
        by_left.addcmul_(pull, student.contrast.target[1].to(exact)).mul_(share)
        by_right.addcmul_(pull, left.to(exact)).mul_(share)
        return linear.to(exact), (by_left, by_right)


class _Softmax:
    """Both directions' softmaxes of the similarities of pairs, over all candidates.

    Attributes:
        own: probability of their own pair, summed over both directions, ``[n]``.
        own_logit: of a pair's own similarity, ``[n]``.
        log_sum_exp: of all logits of an anchor, summed over both directions, ``[n]``.
        weights: probabilities of other pairs, tile by tile.
    """

    def __init__(self, pairs: Pairs, budget: int):
        self.unit = 1 / torch.as_tensor(pairs.scale, device=pairs.left.device).detach().double()
        target = sides(pairs)
        n, rights = len(target[0]), all_gather(target[1])
        self.contrast = Contrast(target, None, (rights, None), self.unit.new_zeros(()), similarity(target), budget)
        matrix = pass_of(self.contrast, KL(temperature=self.unit))  # type: ignore[arg-type]
        assert isinstance(matrix, Exponentials)
        self.tiles = matrix.tiles
        _, sums = matrix.fresh(None)
        assert sums is not None
        self.own_logit = self.contrast.own / self.unit
        others = torch.cat([part.log() for part in sums])
        every = torch.logaddexp(others, self.own_logit.repeat(2))
        dual = (self.unit * every - self.contrast.own.repeat(2))[:, None]
        self.weights = matrix.weights_at(AnchorDuals(dual, sums), dual)
        self.own = (self.own_logit.repeat(2) - every).exp().view(2, n).sum(0)
        self.log_sum_exp = every.view(2, n).sum(0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of weights and a tile, whose own pairs weigh nothing."""
    return torch.dot(a.flatten(), b.flatten().to(a)).double()
