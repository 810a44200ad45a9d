"""Groups of samples: excess within them, a row for each, weights over them. Numbers by hand."""

import math
from typing import Any, cast

import pytest
import torch

from steering import KL, CVaR, GroupWeights, Pairs, Steerer, Uniform, UserError


def test_centred_excess_starves_no_group():
    """Class 1 has lower losses throughout: the worst half would be class 0 alone, centred it is half of each."""
    losses, groups = torch.tensor([9.0, 7.0, 2.0, 1.0]), torch.tensor([0, 0, 1, 1])
    plain = Steerer(CVaR(alpha=0.5))(losses, torch.zeros(4))
    centred = Steerer(CVaR(alpha=0.5), grouping="centre")(losses, torch.zeros(4), groups=groups)
    assert plain.weights.tolist() == [2, 2, 0, 0] and centred.weights.tolist() == [2, 0, 2, 0]
    assert centred.loss == (2 * 9 + 2 * 2) / 4, "the loss is of the excess as it is"


def test_the_mean_of_a_group_is_that_of_the_excess_that_counts():
    losses, reference = torch.tensor([[4.0, 2.0], [3.0, 50.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    steerer = Steerer(KL(temperature=1.0), grouping="centre", over="batch")
    weights = steerer(losses, reference, mask=mask, groups=[0, 1]).weights
    exponentials = torch.tensor([1.0, -1.0, 0.0]).exp()  # excess 3, 1 and 2 less means 2 and 2
    assert torch.allclose(weights[mask], 3 * exponentials / exponentials.sum())


def test_a_row_for_each_group_weighs_within_it():
    losses, groups = torch.tensor([9.0, 2.0, 7.0, 1.0, 0.0, 3.0]), torch.tensor([0, 1, 0, 1, 1, 1])
    steered = Steerer(CVaR(alpha=0.5), grouping="rows")(losses, torch.zeros(6), groups=groups)
    assert steered.weights.tolist() == [2, 2, 0, 0, 0, 2]
    assert steered.loss == (9 + (2 + 3) / 2) / 2, "the mean over groups"
    entries = Steerer(CVaR(alpha=0.5), grouping="rows", average="entries")(losses, torch.zeros(6), groups=groups)
    assert entries.loss == pytest.approx((2 * 9 + 2 * 2 + 2 * 3) / 6), "the mean over samples keeps their shares"


def test_the_radius_of_a_group_is_that_of_its_share_of_the_samples():
    losses, groups = torch.rand(8, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    steered = Steerer("kl(rho=2)", population=400, grouping="rows")(losses, torch.zeros(8), groups=groups)
    alone = Steerer("kl(rho=2)", population=300)(losses[:6], torch.zeros(6))
    assert torch.allclose(steered.weights[:6], alone.weights)


def test_weights_over_groups_grow_with_their_excess_and_are_smoothed():
    """Excess log 2 and -1: 1/2 * 2 and 1/2 * 1, so 2/3 and 1/3; then log 2 and -1 again: 4/5 and 1/5."""
    losses, groups = torch.tensor([math.log(2), math.log(2), -1.0]), torch.tensor([0, 0, 1])
    steerer = Steerer(Uniform(), average=GroupWeights(step_size=1.0, smoothing=0.0))
    loss = steerer(losses, torch.zeros(3), groups=groups).loss
    assert float(loss) == pytest.approx(2 / 3 * math.log(2) - 1 / 3)
    assert float(steerer(losses, torch.zeros(3), groups=groups).loss) == pytest.approx(4 / 5 * math.log(2) - 1 / 5)
    smooth = Steerer(Uniform(), average=GroupWeights(step_size=1.0, smoothing=0.3))
    assert float(smooth(losses, torch.zeros(3), groups=groups).loss) == pytest.approx(
        (0.7 * 2 / 3 + 0.15) * math.log(2) - (0.7 / 3 + 0.15)
    )


def test_groups_that_are_not_in_the_batch_keep_their_weight():
    weights = GroupWeights(step_size=1.0, smoothing=0.0)
    steerer = Steerer(Uniform(), average=weights)
    steerer(torch.tensor([math.log(2), 0.0]), torch.zeros(2), groups=torch.tensor([0, 2]))
    assert weights.values is not None and weights.values.tolist() == pytest.approx([0.5, 0.25, 0.25])
    loss = steerer.eval()(torch.tensor([6.0, 3.0]), torch.zeros(2), groups=torch.tensor([2, 1])).loss
    assert loss == 4.5, "of those in the batch, by their weights alone"
    assert weights.values.tolist() == pytest.approx([0.5, 0.25, 0.25]), "evaluation leaves no trace"


def test_weights_over_groups_are_in_the_checkpoint():
    steerer, again = (Steerer(Uniform(), average=GroupWeights()) for _ in range(2))
    batch = torch.tensor([2.0, 1.0]), torch.zeros(2)
    steerer(*batch, groups=[0, 1])
    again.load_state_dict(steerer.state_dict())
    assert again(*batch, groups=[0, 1]).loss == steerer(*batch, groups=[0, 1]).loss


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s: s(torch.zeros(2), groups=[0, 1]), "excess by group needs the reference's losses, got None"),
        (lambda s: s(torch.zeros(2), torch.zeros(2)), r"groups its samples: steerer\(..., groups=groups\)"),
        (
            lambda s: s(torch.zeros(2), torch.zeros(2), groups=[0]),
            r"one number a sample \(row\), 2 here",
        ),
        (lambda s: s(torch.zeros(2), torch.zeros(2), groups=[0, -1]), "groups are whole numbers from 0 on"),
        (lambda s: s(*[Pairs(torch.zeros(2, 2), torch.zeros(2, 2))] * 2, groups=[0, 1]), "Pairs .* have no groups"),
        (lambda s: Steerer(Uniform(), grouping=cast(Any, "all")), "grouping is 'centre' or 'rows', got 'all'"),
        (lambda s: GroupWeights(step_size=0), "step_size above 0 and a smoothing of at least 0 and below 1, got 0"),
    ],
)
def test_groups_that_do_not_fit_are_explained(call, message):
    with pytest.raises(UserError, match=message):
        call(Steerer(Uniform(), grouping="rows"))


def test_group_dro_asks_for_no_reference():
    steerer = Steerer(Uniform(), average=GroupWeights(step_size=1.0, smoothing=0.0), reference_scale=0)
    assert float(steerer(torch.tensor([math.log(2), 0.0]), groups=[0, 1]).loss) == pytest.approx(2 / 3 * math.log(2))


def test_groups_of_packed_rows_are_one_a_row_however_many_entries_there_are():
    """Rows 2, 0 and 1 of one entry each; group 0 has row 0, group 1 rows 1 and 2."""
    steerer = Steerer(Uniform(), grouping="rows")
    losses, rows = torch.tensor([5.0, 1.0, 2.0]), torch.tensor([2, 0, 1])
    assert steerer(losses, torch.zeros(3), rows=rows, groups=[0, 1, 1]).loss == (1 + (2 + 5) / 2) / 2


def test_a_step_that_overflowed_leaves_the_weights_alone():
    weights = GroupWeights(step_size=1.0, smoothing=0.0)
    steerer = Steerer(Uniform(), average=weights)
    steerer(torch.tensor([math.nan, 1.0]), torch.zeros(2), groups=[0, 1])
    loss = steerer(torch.tensor([1.0, 1.0]), torch.zeros(2), groups=[0, 1]).loss
    assert loss == 1 and weights.values is not None and weights.values.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [{"grouping": "centre"}, {"over": "batch"}, {"average": GroupWeights()}],
    ids=["centre", "batch", "weights"],
)
def test_pairs_have_rows_of_their_own(options):
    pairs = Pairs(torch.eye(3), torch.eye(3))
    with pytest.raises(UserError, match="the rows of Pairs are their anchors"):
        Steerer("kl(temperature=1)", **options)(pairs, pairs)


@pytest.mark.parametrize("groups", [[0, 10**7], [0, 1, 1]], ids=str)
def test_numbers_of_groups_that_cannot_be_are_explained(groups):
    with pytest.raises(UserError, match=r"groups are numbered from 0 to 1048575|groups are one number a sample"):
        Steerer(Uniform(), grouping="rows")(torch.zeros(4), torch.zeros(4), groups=groups)


def test_a_group_that_comes_late_begins_with_the_mean_weight():
    """Weights 2/3 and 1/3; a third group is given 1/2, so that all are 4/9, 2/9 and 3/9 of the whole."""
    weights = GroupWeights(step_size=1.0, smoothing=0.0)
    weights.update(torch.tensor([math.log(2), 0.0]), torch.tensor([True, True]))
    later = weights.update(torch.zeros(3), torch.tensor([True, True, True]))
    assert later.tolist() == pytest.approx([4 / 9, 2 / 9, 3 / 9])


def test_a_checkpoint_without_weights_over_groups_is_refused():
    with pytest.raises(UserError, match="the checkpoint has no weights over groups"):
        Steerer(Uniform(), average=GroupWeights()).load_state_dict(Steerer(Uniform()).state_dict())
