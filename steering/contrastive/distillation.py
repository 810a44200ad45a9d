"""Distillation: a target that also learns to answer as a teacher does, beside whatever steers it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from steering.contrastive.contrast import Contrast, Sides, sides, similarity
from steering.contrastive.pair_rows import Linear, add_product
from steering.contrastive.pairs import Pairs
from steering.contrastive.passes import Exponentials
from steering.contrastive.tiles import room
from steering.distributed import all_gather, reduce_scatter_sum
from steering.errors import UserError
from steering.rules.kl import KL


def distil(student: Tensor | Pairs, teacher: Tensor | Pairs, *, budget: int | None = None) -> Tensor:
    """Mean KL(teacher || student) of the answers to a batch, in nats, a scalar.

    Averaged over ranks, as gradients are, it is that of one process with the whole batch. For Pairs an answer is the
    softmax, at each model's own scale, of an anchor's similarities to all candidates of all ranks, its own pair's
    among them; the mean is over the anchors of both directions (the interactive distillation of FastCLIP and
    MobileCLIP). The gradient is the difference of the two softmaxes, found in tiles: no matrix of all pairs is held.

    Args:
        student: with gradient, ``[n, classes]`` scores, or Pairs, whose scale may carry a gradient as well.
        teacher: of the same samples; its features may have another width.
        budget: bytes of similarities to keep, as of a Steerer.

    Raises:
        UserError: the two do not fit together.
    """
    if not isinstance(student, Pairs) or not isinstance(teacher, Pairs):
        if isinstance(student, Pairs) or isinstance(teacher, Pairs) or student.shape != teacher.shape:
            raise UserError(f"a teacher's answers are like the student's, got {_kind(teacher)} for {_kind(student)}")
        known = F.log_softmax(teacher.detach().to(student), -1)
        return F.kl_div(F.log_softmax(student, -1), known, reduction="batchmean", log_target=True)
    if len(student.left) != len(teacher.left):
        raise UserError(f"a teacher's answers are like the student's, got {_kind(teacher)} for {_kind(student)}")
    match = _Match(student, teacher, room(student.left.device) if budget is None else budget)
    linear = Linear.apply(student.left, student.right, match)
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
    def __call__(self, wanted: bool) -> tuple[Tensor, Sides | None]:
        """The mean over anchors of ``sum (p_student - p_teacher) s``, and its gradient if it is wanted."""
        mine, theirs = self.student, self.teacher
        left, right = mine.contrast.target[0], mine.contrast.rights[0]
        exact, share = mine.contrast.exact, 1 / (2 * len(left))
        by_left, by_right = torch.zeros_like(left, dtype=exact), torch.zeros_like(right, dtype=exact)
        drift, gap = (left.new_zeros((), dtype=torch.float64) for _ in range(2))
        for place, there in zip(mine.passes.tiles, theirs.passes.tiles, strict=True):
            weights, tile = mine.passes.weigh(place)
            known, facts = theirs.passes.weigh(there)
            gap += _dot(known, facts) - _dot(known, tile)
            weights = weights.sub_(known.to(weights))
            drift += _dot(weights, tile)
            if wanted:
                weights = weights.to(left.dtype)
                add_product(by_left[place[0]], weights, right[place[1]])
                add_product(by_right[place[1]], weights.T, left[place[0]])
        own = mine.own - theirs.own.to(mine.own)  # of every pair's own similarity
        apart = theirs.own * (theirs.at - mine.at) + mine.total - theirs.total
        self.value = share * (gap + apart.sum())
        linear = share * (drift * mine.unit + (own * mine.contrast.own).sum())
        if not wanted:
            return linear.to(exact), None
        by_right, pull = reduce_scatter_sum(by_right), own[:, None].to(exact)
        by_left.addcmul_(pull, mine.contrast.target[1].to(exact)).mul_(share)
        by_right.addcmul_(pull, left.to(exact)).mul_(share)
        return linear.to(exact), (by_left, by_right)


class _Softmax:
    """Both directions' softmaxes of the similarities of pairs, over all candidates.

    Attributes:
        own: probability of their own pair, summed over both directions, ``[n]``.
        at: logit of a pair's own similarity, ``[n]``.
        total: log of the sum of all exponentials, summed over both directions, ``[n]``.
    """

    def __init__(self, pairs: Pairs, budget: int):
        self.unit = 1 / torch.as_tensor(pairs.scale, device=pairs.left.device).detach().double()
        target = sides(pairs)
        n, rights = len(target[0]), all_gather(target[1])
        self.contrast = Contrast(target, None, (rights, None), self.unit.new_zeros(()), similarity(target), budget)
        self.passes = Exponentials(self.contrast, KL(temperature=self.unit))  # type: ignore[arg-type]
        self.passes.level(None)
        self.at = self.contrast.own / self.unit
        others = torch.cat([sums.log() for sums in self.passes.found])
        every = torch.logaddexp(others, self.at.repeat(2))
        self.passes.prepare((self.unit * every - self.contrast.own.repeat(2))[:, None])
        self.own = (self.at.repeat(2) - every).exp().view(2, n).sum(0)
        self.total = every.view(2, n).sum(0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of weights and a tile, whose own pairs weigh nothing."""
    return torch.dot(a.flatten(), b.flatten().to(a)).double()


def _kind(answers: Tensor | Pairs) -> str:
    return f"{len(answers.left)} pairs" if isinstance(answers, Pairs) else f"scores {list(answers.shape)}"
