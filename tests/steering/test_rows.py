"""Losses in four shapes are the same rows: what a row is, what is averaged, what n a radius has, what is left out."""

import math

import numpy as np
import pytest
import torch

from steering import KL, ChiSquare, CVaR, DualMemory, Steerer, Uniform, UserError

RULES = [KL(temperature=0.5), KL(rho=2.0), CVaR(alpha=0.3), ChiSquare(rho=2.0)]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)
LENGTHS = (4, 1, 0, 7)  # entries of four documents, one of which is empty


def documents():
    """Losses and reference losses of four documents: as a padded matrix with its mask, and packed with their rows."""
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    losses, reference = (torch.rand(mask.shape, dtype=torch.float64).requires_grad_(kind == 0) for kind in range(2))
    rows = torch.arange(4)[:, None].expand(mask.shape)[mask]
    return losses, reference, mask, rows


def gradient(steered, losses):
    return torch.autograd.grad(steered.loss, losses)[0]


@every_rule
@pytest.mark.parametrize("average", ["rows", "entries"])
def test_packed_and_padded_documents_are_the_same_rows(rule, average):
    losses, reference, mask, rows = documents()
    padded = Steerer(rule, average=average)(losses, reference, mask=mask)
    packed = Steerer(rule, average=average)(losses[mask], reference[mask], rows=rows)
    assert packed.weights.shape == (12,) and torch.equal(packed.weights, padded.weights[mask])
    assert torch.allclose(packed.loss, padded.loss, rtol=1e-14)
    assert torch.allclose(gradient(packed, losses), gradient(padded, losses), rtol=1e-14)


@every_rule
def test_entries_may_come_in_any_order(rule):
    losses, reference, mask, rows = documents()
    order = torch.randperm(12)
    plain = Steerer(rule)(losses[mask], reference[mask], rows=rows)
    shuffled = Steerer(rule)(losses[mask][order], reference[mask][order], rows=rows[order])
    assert torch.allclose(shuffled.weights, plain.weights[order])
    assert torch.allclose(shuffled.loss, plain.loss)


def test_the_mean_over_rows_and_over_entries_by_hand():
    """Rows (6, 2) and (1): the mean of 4 and 1 is 2.5, that of the three entries is 3."""
    losses, rows = torch.tensor([6.0, 2.0, 1.0]), torch.tensor([0, 0, 1])
    assert Steerer(Uniform())(losses, rows=rows).loss == 2.5
    assert Steerer(Uniform(), average="entries")(losses, rows=rows).loss == 3
    matrix, mask = torch.tensor([[6.0, 2.0], [1.0, 9.0]]), torch.tensor([[1, 1], [1, 0]])
    assert Steerer(Uniform())(matrix, mask=mask).loss == 2.5
    assert Steerer(Uniform(), average="entries")(matrix, mask=mask).loss == 3


@every_rule
def test_over_the_batch_all_tokens_share_one_distribution(rule):
    """Rho-1 ranks the tokens of a batch; within rows every document keeps its share."""
    losses, reference, mask, rows = documents()
    one = Steerer(rule, over="batch", population=50)(losses, reference, mask=mask)
    packed = Steerer(rule, over="batch", population=50)(losses[mask], reference[mask], rows=rows)
    flat = Steerer(rule, population=50)(losses[mask], reference[mask])
    assert torch.allclose(one.weights[mask], flat.weights) and torch.allclose(packed.weights, flat.weights)
    assert torch.allclose(one.loss, flat.loss) and torch.allclose(packed.loss, flat.loss)


@pytest.mark.parametrize("rule", [KL(rho=2.0), ChiSquare(rho=2.0)], ids=repr)
def test_the_n_of_a_radius_is_that_of_the_row(rule):
    """A document of 4 tokens has a radius of rho / 4, one of 7 of rho / 7, whatever the number of samples."""
    losses, reference, mask, _ = documents()
    steered = Steerer(rule, population=10**6)(losses, reference, mask=mask)
    for row, length in ((0, 4), (3, 7)):
        alone = Steerer(rule, population=length)(losses[row, :length], reference[row, :length])
        assert torch.allclose(steered.weights[row, :length], alone.weights)


@every_rule
def test_a_row_without_entries_counts_for_nothing_in_the_loss_and_in_every_figure(rule):
    losses, reference, mask, _ = documents()
    kept = [0, 1, 3]
    all_rows, full_rows = Steerer(rule), Steerer(rule)
    steered = all_rows(losses, reference, mask=mask)
    without = full_rows(losses[kept], reference[kept], mask=mask[kept])
    assert torch.allclose(steered.loss, without.loss)
    for name, value in steered.figures().items():
        expected = without.figures()[name]
        assert value == (None if expected is None else pytest.approx(expected, rel=1e-12)), name
    assert torch.allclose(all_rows.effective_sample_size, full_rows.effective_sample_size)
    assert all_rows.cautions() == full_rows.cautions()


def test_padding_raises_no_false_caution():
    """Three of four rows are padding: the fourth rests on all of its eight entries, on average."""
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[0] = True
    steerer = Steerer(Uniform())
    steerer(torch.rand(4, 8), mask=mask)
    assert steerer.cautions() == [] and steerer.effective_sample_size.tolist() == [8, 1]


@every_rule
@pytest.mark.parametrize("shapes", [("losses",), ("reference",), ("losses", "reference")], ids=str)
def test_a_column_of_losses_is_one_loss_a_sample(rule, shapes):
    losses, reference = torch.rand(6), torch.rand(6)
    column = losses[:, None] if "losses" in shapes else losses
    steered = Steerer(rule, population=20)(column, reference[:, None] if "reference" in shapes else reference)
    expected = Steerer(rule, population=20)(losses, reference)
    assert steered.weights.shape == column.shape
    assert torch.equal(steered.weights.flatten(), expected.weights) and steered.loss == expected.loss


def test_rows_of_a_single_token_are_still_rows_when_asked_for():
    assert Steerer(KL(temperature=0.5), over="rows")(torch.tensor([[1.0], [5.0]])).weights.tolist() == [[1], [1]]


def test_packed_rows_find_their_remembered_dual_by_id():
    """Temperature 1, gamma 1/2: document 3 had exponentials of 2 and has 4, so its weight is 4 / 3."""
    steerer = Steerer(KL(temperature=1.0), memory=DualMemory(5, gamma=0.5))
    steerer(torch.tensor([2.0, 2.0, 6.0]).log(), rows=torch.tensor([0, 0, 1]), ids=torch.tensor([3, 0]))
    again = steerer(torch.tensor([8.0, 4.0]).log(), rows=torch.tensor([0, 1]), ids=torch.tensor([1, 3]))
    assert again.weights.tolist() == pytest.approx([1, 4 / 3])


def test_a_document_without_tokens_keeps_its_place_among_the_ids():
    steerer = Steerer(KL(temperature=1.0), memory=DualMemory(5, gamma=0.5))
    steerer(torch.tensor([2.0, 4.0]).log(), rows=torch.tensor([0, 2]), ids=torch.tensor([4, 1, 0]))
    duals = steerer.memory.read(torch.tensor([4, 1, 0]))
    assert duals is not None and duals.exp().flatten().tolist() == pytest.approx([2, math.nan, 4], nan_ok=True)


def test_variances_of_a_large_batch_are_estimated_from_a_part_of_it():
    """Also of one with a period: every third loss is 5, so Var(loss) is 50 / 9."""
    losses = torch.zeros(60_000)
    losses[::3] = 5
    steerer = Steerer(KL(temperature=1.0))
    steerer(losses, losses + torch.randn(60_000))
    assert steerer.variance.values is not None
    assert steerer.variance.values[:2].tolist() == pytest.approx([50 / 9, 50 / 9 + 1], rel=0.03)


def test_arrays_and_lists_are_taken_as_well():
    losses = np.array([3.0, 1.0, 2.0])
    steered = Steerer("kl(temperature=1)")(losses, [1.0, 1.0, 2.0], mask=[True, True, False])
    expected = Steerer(KL(temperature=1.0))(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]))
    assert torch.allclose(steered.weights[:2].float(), expected.weights) and steered.loss == pytest.approx(
        expected.loss
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Steerer(Uniform())(torch.zeros(3), rows=[0, 1]), r"rows name the row of every loss, \[3\], got \[2\]"),
        (
            lambda: Steerer(Uniform())(torch.zeros(2), rows=[0.0, 1.0]),
            "rows are whole numbers from 0 on, got torch.float",
        ),
        (
            lambda: Steerer(Uniform())(torch.zeros(2), rows=[0, -1]),
            "rows are whole numbers from 0 on, got .* from -1 on",
        ),
        (lambda: Steerer(Uniform(), over="rows")(torch.zeros(3)), "weights within rows need rows"),
        (lambda: Steerer(Uniform(), over="all"), "weights are distributed over 'batch' or 'rows', got 'all'"),  # type: ignore[arg-type]
        (lambda: Steerer(Uniform(), average="all"), "average is 'rows', 'entries' or GroupWeights"),  # type: ignore[arg-type]
        (lambda: Steerer("kll"), "no rule is named 'kll'; did you mean kl"),
    ],
)
def test_rows_that_do_not_fit_are_explained(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_padding_rows_leave_the_dual_of_the_sample_alone_whose_id_they_bear():
    steerers = [Steerer(KL(temperature=1.0), memory=DualMemory(3, gamma=0.5)) for _ in range(2)]
    losses, mask = torch.rand(4, 3), torch.tensor([1, 1, 0, 0], dtype=torch.bool)[:, None].expand(4, 3)
    for _ in range(2):
        steerers[0](losses[:2], ids=[0, 1])
        steerers[1](losses, ids=[0, 1, 0, 0], mask=mask)
    tables = [steerer.memory.table for steerer in steerers]
    assert tables[0] is not None and tables[1] is not None
    assert torch.equal(tables[0][:2], tables[1][:2])


def test_a_padded_batch_of_one_column_is_still_rows():
    """Temperature 1, gamma 1/2: document 3 had exponentials of 2 and has 4, its weight is 4 / 3."""
    steerer = Steerer(KL(temperature=1.0), memory=DualMemory(5, gamma=0.5))
    steerer(torch.tensor([[2.0, 2.0]]).log(), ids=[3])
    again = steerer(torch.tensor([[4.0]]).log(), ids=[3])
    assert float(again.weights) == pytest.approx(4 / 3)


def test_numbers_of_rows_may_be_anything_where_nothing_goes_by_them():
    steered = Steerer(Uniform())(torch.tensor([6.0, 2.0, 1.0]), rows=torch.tensor([10**12, 10**12, 7]))
    assert steered.loss == 2.5


def test_rows_too_unlike_to_be_padded_are_refused_before_memory_is_gone():
    rows = torch.cat([torch.zeros(10_000, dtype=torch.long), torch.arange(1, 10_001)])
    with pytest.raises(UserError, match="10001 rows of which the longest has 10000 entries take too much padding"):
        Steerer(Uniform())(torch.zeros(20_000), rows=rows)


def test_rows_without_columns_have_no_weights():
    assert Steerer(Uniform())(torch.zeros(3, 0)).weights.shape == (3, 0)


@pytest.mark.parametrize("rule", [KL(temperature=0.5), CVaR(alpha=0.5)], ids=repr)
def test_scores_take_the_place_of_the_excess_in_the_weights_alone(rule):
    losses = torch.tensor([1.0, 5.0, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([3.0, 1.0, 4.0, 2.0], dtype=torch.float64)
    steered = Steerer(rule)(losses, scores=scores)
    assert torch.equal(steered.weights, Steerer(rule)(scores).weights)
    assert steered.loss.item() == pytest.approx((steered.weights * losses).mean().item())
    with pytest.raises(UserError, match="same samples"):
        Steerer(rule)(losses, scores=scores[:2])
