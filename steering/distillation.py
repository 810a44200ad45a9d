"""Distillation: a target that also learns to answer as a teacher does, beside whatever steers it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steering.arrange import tensor_of
from steering.contrastive.distillation import pair_divergence
from steering.contrastive.pairs import Pairs, is_pairs
from steering.distributed import all_gather_numbers, fail_on_all_ranks
from steering.engine import Steerer
from steering.errors import UserError
from steering.loss_rows import Average
from steering.rules.uniform import Uniform


def distil(
    student: Tensor | Pairs,
    teacher: Tensor | Pairs,
    *,
    mask: Any = None,
    rows: Any = None,
    average: Average = "rows",
    budget: int | None = None,
) -> Tensor:
    """Mean KL(teacher || student) of the answers to a batch, in nats, a scalar.

    Averaged over ranks, as gradients are, it is that of one process with the whole batch. For Pairs an answer is the
    softmax, at each model's own scale, of an anchor's similarities to all candidates of all ranks, its own pair's
    among them; the mean is over the anchors of both directions (the interactive distillation of FastCLIP and
    MobileCLIP). The gradient is the difference of the two softmaxes, found in tiles: no matrix of all pairs is held.

    Args:
        student: with gradient: scores ``[n, classes]``, ``[rows, columns, classes]`` (tokens), ``[entries, classes]``
            with ``rows``, or Pairs, whose scale may carry a gradient as well.
        teacher: of the same samples; features may have another width.
        mask: False where there is no answer, like the scores without their classes.
        rows: row of every entry, as of a Steerer.
        average: over rows or over entries, as of a Steerer.
        budget: bytes of similarities to keep, as of a Steerer.

    Raises:
        UserError: the two do not fit together.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
        >>> round(float(distil(scores, torch.tensor([[0.0, 0.0], [9.0, 0.0]]), mask=[True, False])), 6)
        0.0
    """
    mask = fail_on_all_ranks(lambda: _checked(student, teacher, mask))
    if is_pairs(student) and is_pairs(teacher):
        shapes = all_gather_numbers([len(student.left), student.left.shape[1], teacher.left.shape[1]])
        if any(shape != shapes[0] for shape in shapes):
            raise UserError(f"all processes hold as many pairs of the same widths to distil, got {shapes} by rank")
        return pair_divergence(student, teacher, budget=budget)
    assert isinstance(student, Tensor) and isinstance(teacher, Tensor)
    student = student if student.dtype == torch.float64 else student.float()
    teacher = teacher.detach().to(student)
    if mask is not None:  # whatever the scores are under padding
        hidden = ~mask.to(student.device)[..., None]
        student, teacher = student.masked_fill(hidden, 0), teacher.masked_fill(hidden, 0)
    log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    p = log_p.exp()
    gaps = log_p.masked_fill(p == 0, 0) - log_q.masked_fill(
        p == 0, 0
    )  # a class that the teacher forbids counts for nothing
    return Steerer(Uniform(), average=average).eval()((p * gaps).sum(-1), mask=mask, rows=rows).loss


def _checked(student: Tensor | Pairs, teacher: Tensor | Pairs, mask: Any) -> Tensor | None:
    """The mask as a tensor of bool; refuses answers, or a mask, that do not fit together."""
    if is_pairs(student) and is_pairs(teacher):
        fit = len(student.left) == len(teacher.left)
    elif isinstance(student, Tensor) and isinstance(teacher, Tensor):
        fit = student.shape == teacher.shape and student.dim() >= 2
    else:
        fit = False
    if not fit:
        raise UserError(f"a teacher's answers are like the student's, got {_kind(teacher)} for {_kind(student)}")
    if mask is None or is_pairs(student):
        return None
    mask = tensor_of(mask, "the mask").bool()
    if mask.shape != student.shape[:-1]:
        raise UserError(
            f"the mask is shaped like the scores without their classes, {list(student.shape[:-1])}, got "
            f"{list(mask.shape)}"
        )
    return mask


def _kind(answers: Tensor | Pairs) -> str:
    if is_pairs(answers):
        return f"{len(answers.left)} pairs"
    return f"scores {list(answers.shape)}" if isinstance(answers, Tensor) else f"a {type(answers).__name__}"
