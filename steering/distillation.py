"""Distillation: a target that also learns to answer as a teacher does, beside whatever steers it."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from steering.contrastive.distillation import pair_divergence
from steering.contrastive.pairs import Pairs, is_pairs
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
    if is_pairs(student) and is_pairs(teacher) and len(student.left) == len(teacher.left):
        return pair_divergence(student, teacher, budget=budget)
    if is_pairs(student) or is_pairs(teacher) or student.shape != teacher.shape or student.dim() < 2:
        raise UserError(f"a teacher's answers are like the student's, got {_kind(teacher)} for {_kind(student)}")
    teacher_log_probabilities = F.log_softmax(teacher.detach().to(student), -1)
    divergences = F.kl_div(F.log_softmax(student, -1), teacher_log_probabilities, reduction="none", log_target=True)
    return Steerer(Uniform(), average=average).eval()(divergences.sum(-1), mask=mask, rows=rows).loss


def _kind(answers: Tensor | Pairs) -> str:
    return f"{len(answers.left)} pairs" if is_pairs(answers) else f"scores {list(answers.shape)}"
