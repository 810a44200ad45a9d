"""A distilled loss is the divergence of the teacher's answers from the student's, with its exact gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, normalize

from steering import Pairs, UserError
from steering.distillation import distil


def features(n: int, width: int, seed: int = 0, *, gradient: bool = True) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, n, width, generator=chance, dtype=torch.float64)
    return normalize(left, dim=-1).requires_grad_(gradient), normalize(right, dim=-1).requires_grad_(gradient)


def dense(left: Tensor, right: Tensor, scale: float | Tensor, teacher: Pairs) -> Tensor:
    """The same with all similarities at once."""
    mine, theirs = left @ right.T * scale, teacher.left @ teacher.right.T * teacher.scale
    both = ((mine, theirs), (mine.T, theirs.T))
    found = [kl_div(log_softmax(a, -1), log_softmax(b, -1), reduction="batchmean", log_target=True) for a, b in both]
    return (found[0] + found[1]) / 2


@pytest.mark.parametrize("budget", [0, None], ids=["no budget", "kept"])
@pytest.mark.parametrize(("n", "scale"), [(7, 14.0), (40, 100.0), (600, 3.0)])
def test_pairs_in_tiles_are_the_whole_matrix(n, scale, budget):
    left, right = features(n, 5)
    teacher = Pairs(*features(n, 9, 1, gradient=False), 20.0)
    learned = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    found = distil(Pairs(left, right, learned), teacher, budget=budget)
    wanted = dense(left, right, learned, teacher)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    pairs = zip(*(torch.autograd.grad(loss, (left, right, learned)) for loss in (found, wanted)), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_a_scale_that_is_a_number_has_no_gradient_but_the_same_value():
    left, right = features(6, 4)
    teacher = Pairs(*features(6, 4, 1, gradient=False), 10.0)
    found = distil(Pairs(left, right, 5.0), teacher)
    torch.testing.assert_close(found, dense(left, right, 5.0, teacher))
    mine = torch.autograd.grad(found, left)[0]
    torch.testing.assert_close(mine, torch.autograd.grad(dense(left, right, 5.0, teacher), left)[0])


def test_a_student_who_answers_as_the_teacher_has_nothing_to_learn():
    left, right = features(9, 4)
    loss = distil(Pairs(left, right, 8.0), Pairs(left.detach(), right.detach(), 8.0))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, left)[0].abs().max() < 1e-12


def test_a_single_pair_has_one_answer_only():
    loss = distil(Pairs(*features(1, 4), 8.0), Pairs(*features(1, 4, 1, gradient=False), 8.0))
    assert float(loss.detach()) == 0


def test_scores_are_compared_by_their_softmax():
    student = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, 5.0], [1.0, 2.0, 3.0]])
    loss = distil(student, teacher)
    by_hand = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(loss, by_hand)
    gradient = (student.softmax(-1) - teacher.softmax(-1)) / 2
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], gradient.detach())


def test_answers_of_other_samples_are_refused():
    pairs = Pairs(*features(6, 4), 1.0)
    with pytest.raises(UserError, match="a teacher's answers are like the student's, got 5 pairs for 6 pairs"):
        distil(pairs, Pairs(*features(5, 4), 1.0))
    with pytest.raises(UserError, match=r"got scores \[6, 3\] for 6 pairs"):
        distil(pairs, torch.zeros(6, 3))
    with pytest.raises(UserError, match=r"got scores \[6, 3\] for scores \[6, 4\]"):
        distil(torch.zeros(6, 4), torch.zeros(6, 3))


def test_tokens_count_by_their_mask_and_not_by_the_length_of_their_text():
    """Two texts of 3 and 1 tokens: the mean over texts, or over the four tokens, of KL(teacher || student)."""
    student, teacher = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    divergences = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1)
    by_rows = (divergences[0].mean() + divergences[1, 0]) / 2
    by_entries = (divergences[0].sum() + divergences[1, 0]) / 4
    assert torch.allclose(distil(student, teacher, mask=mask), by_rows)
    assert torch.allclose(distil(student, teacher, mask=mask, average="entries"), by_entries)
    rows = torch.tensor([0, 0, 0, 1])
    packed = distil(student[mask.bool()], teacher[mask.bool()], rows=rows, average="entries")
    assert torch.allclose(packed, by_entries)


def test_classes_that_the_teacher_forbids_count_for_nothing():
    student = torch.zeros(1, 3, requires_grad=True)
    loss = distil(student, torch.tensor([[0.0, 1.0, -torch.inf]]))
    two = torch.tensor([0.0, 1.0]).softmax(-1)
    assert torch.allclose(loss, (two * (two.log() + torch.tensor(3.0).log())).sum())
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_answers_in_half_precision_are_compared_in_single():
    student, teacher = torch.randn(2, 64, 2000).bfloat16()
    assert torch.allclose(distil(student, teacher), distil(student.float(), teacher.float()))


def test_what_stands_under_padding_reaches_no_gradient():
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    teacher[1] = torch.nan
    (gradient,) = torch.autograd.grad(distil(student, teacher, mask=[True, False]), student)
    assert gradient[0].any() and (gradient[1] == 0).all()


def test_a_mask_that_does_not_fit_the_scores_is_refused():
    with pytest.raises(UserError, match=r"the mask is shaped like the scores without their classes, \[2\], got \[3\]"):
        distil(torch.zeros(2, 3), torch.zeros(2, 3), mask=[True, True, False])
