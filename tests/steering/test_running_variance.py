import pytest
import torch

from steering.running_variance import MEMORY, PENDING, RunningVariance


def updated(losses, reference, mask=None):
    """Moments after one batch of rows."""
    losses, reference = (torch.tensor(x, dtype=torch.float64) for x in (losses, reference))
    counted = torch.ones_like(losses, dtype=torch.bool) if mask is None else torch.tensor(mask)
    moments = RunningVariance()
    moments.update(losses, reference, counted)
    return moments


def values(moments: RunningVariance) -> list[float]:
    """Var(loss), Var(reference) and their covariance."""
    assert moments.values is not None
    return moments.values.tolist()


def test_one_row_by_hand():
    """Losses 0, 2 and reference 1, 5: deviations -+1 and -+2, so Var 1, Var 4, Cov 2 and the scale 2 / 4.
    Var(loss - reference) = 1 - 2 * 2 + 4 = 1; at scale 1/2 it is 1 - 2 + 1 = 0."""
    moments = updated([[0.0, 2.0]], [[1.0, 5.0]])
    assert values(moments) == [1, 4, 2]
    assert float(moments.best_scale()) == 0.5
    assert float(moments.ratio()) == 1
    assert float(moments.ratio(0.5)) == 0
    assert float(moments.ratio(0.0)) == 1


def test_only_what_varies_inside_a_row_counts():
    """The rows lie 100 apart, which changes nothing."""
    assert values(updated([[0.0, 2.0], [100.0, 102.0]], [[1.0, 5.0], [-7.0, -3.0]])) == [1, 4, 2]


def test_masked_entries_count_as_absent_even_if_they_are_nan():
    mask = [[True, False, True]]
    nan = float("nan")
    assert values(updated([[0.0, nan, 2.0]], [[1.0, nan, 5.0]], mask)) == [1, 4, 2]


def test_rows_count_by_their_entries():
    """Row one has 2 entries of deviation 1, row two 1 entry of deviation 0: Var = 2 / 3."""
    mask = [[True, True], [True, False]]
    assert values(updated([[0.0, 2.0], [5.0, 9.0]], [[0.0, 0.0], [0.0, 0.0]], mask))[0] == pytest.approx(2 / 3)


def test_a_new_batch_enters_with_one_tenth():
    """Var 1 and then 11: 0.9 * 1 + 0.1 * 11 = 2."""
    assert MEMORY == 0.9
    moments = updated([[0.0, 2.0]], [[0.0, 2.0]])
    step = torch.tensor([[0.0, 2 * 11**0.5]], dtype=torch.float64)
    moments.update(step, step, torch.ones_like(step, dtype=torch.bool))
    assert values(moments) == pytest.approx([2, 2, 2])


@pytest.mark.parametrize("reference, scale", [([[-1.0, -5.0]], 0), ([[0.1, 0.2]], 1), ([[3.0, 3.0]], 0)])
def test_the_best_scale_stays_between_zero_and_one(reference, scale):
    """Against the loss, barely varying, and constant references."""
    assert float(updated([[0.0, 2.0]], reference).best_scale()) == scale


def test_at_the_best_scale_the_excess_never_varies_more_than_the_loss():
    for _ in range(50):
        moments = updated(torch.randn(1, 9).tolist(), torch.randn(1, 9).tolist())
        assert float(moments.ratio(moments.best_scale())) <= 1 + 1e-12
        assert float(moments.ratio(moments.best_scale())) <= float(moments.ratio(1.0)) + 1e-12


def test_a_large_offset_does_not_spoil_the_variance_in_single_precision():
    losses = torch.tensor([[1000.0, 1000.5]])
    moments = RunningVariance()
    moments.update(losses, losses, torch.ones_like(losses, dtype=torch.bool))
    assert values(moments)[0] == pytest.approx(0.0625)


def test_one_broken_batch_does_not_spoil_the_figures_for_good():
    moments = updated([[0.0, float("inf")]], [[0.0, 1.0]])
    fine = torch.tensor([[0.0, 2.0]])
    moments.update(fine, fine, torch.ones_like(fine, dtype=torch.bool))
    assert values(moments) == [1, 1, 1]


def test_moments_are_saved_and_restored():
    moments, again = updated([[0.0, 2.0]], [[1.0, 5.0]]), RunningVariance()
    again.load_state_dict(moments.state_dict())
    assert values(again) == values(moments)


def test_averages_do_not_depend_on_when_they_are_read():
    """Nor on what becomes of the tensors of a batch until then."""
    waiting, reading = RunningVariance(), RunningVariance()
    for batch in range(PENDING + 3):
        losses, mask = torch.rand(2, 2, 7), torch.rand(2, 7) < 0.7
        for moments in (waiting, reading):
            moments.update(losses[0], losses[1], mask if batch % 2 else None)
        values(reading)
        losses.zero_()
        mask.zero_()
    assert values(waiting) == values(reading)
