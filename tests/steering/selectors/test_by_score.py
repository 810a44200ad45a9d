"""Selectors that score every candidate alone: random, hardest, easiest for the reference, RHO-LOSS."""

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from steering import Pairs, Selector, UserError, registry
from steering.selectors import Boltzmann, ReferenceOnly, TopK, TopLoss, Uniform

LOSSES = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
REFERENCE = torch.tensor([5.0, 0.0, 1.0, 2.0, 0.5])


def choose(selector: Selector, losses: Any = LOSSES, reference: Any = REFERENCE, *, number=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return selector(losses, reference, number=number, generator=generator).tolist()


def pairs(seed, n=6, scale=7.0):
    sides = torch.randn(2, n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, right = normalize(sides, dim=-1)
    return Pairs(left, right, scale)


def test_top_loss_takes_the_hardest_first():
    assert choose(TopLoss(keep=0.4)) == [0, 2]


def test_reference_only_takes_what_the_reference_finds_easy():
    assert choose(ReferenceOnly(keep=0.4)) == [1, 4]


def test_top_k_takes_the_largest_excess():
    """Excess 0, 1, 3, 0, 2.5: the hardest sample, hard for the reference too, is left out."""
    assert choose(TopK()) == [2, 4]


def test_top_k_takes_the_largest_even_where_all_are_below_zero():
    assert choose(TopK(), LOSSES - 100) == [2, 4]


def test_equal_scores_are_taken_in_the_order_of_the_candidates():
    assert choose(TopLoss(keep=0.5), torch.ones(40), number=20) == list(range(20))


def test_on_pairs_the_score_is_the_contrastive_loss_among_the_candidates_at_each_models_own_scale():
    target, known = pairs(0, scale=7.0), pairs(1, scale=20.0)
    hardest = target.per_sample(7.0).argsort(descending=True)[:2].tolist()
    excess = target.per_sample(7.0) - known.per_sample(20.0)
    assert choose(TopLoss(keep=0.3), target, known) == hardest
    assert choose(ReferenceOnly(keep=0.3), target, known) == known.per_sample(20.0).argsort()[:2].tolist()
    assert choose(TopK(), target, known) == excess.argsort(descending=True)[:2].tolist()


def test_boltzmann_draws_by_the_exponential_of_the_excess_and_then_from_the_rest():
    """Excess log 1, log 2, log 3 at temperature 1: P(first two = i, j) = p_i p_j / (1 - p_i), p = 1/6, 2/6, 3/6.

    Over 4000 draws a share is off by less than 0.03, four standard errors.
    """
    p = torch.tensor([1.0, 2.0, 3.0]) / 6
    counts = torch.zeros(3, 3)
    generator = torch.Generator().manual_seed(0)
    selector = Boltzmann(keep=0.5, temperature=1.0)
    for _ in range(4000):
        first, second = selector(p.log(), torch.zeros(3), number=2, generator=generator)
        counts[first, second] += 1
    wanted = p[:, None] * p[None] / (1 - p[:, None])
    wanted.fill_diagonal_(0)
    assert torch.allclose(counts / 4000, wanted, atol=0.03)


def test_a_cold_boltzmann_is_top_k_and_excesses_of_any_size_overflow_nothing():
    assert choose(Boltzmann(keep=0.4, temperature=1e-6)) == choose(TopK())
    assert choose(Boltzmann(keep=0.4), LOSSES * 1e6, REFERENCE * 1e6) == [2, 4]


def test_uniform_keeps_every_candidate_equally_often():
    """Two of five in 2000 draws: 0.4 each, 0.045 is four standard errors."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(5)
    for _ in range(2000):
        counts[Uniform(keep=0.4)(LOSSES, None, number=2, generator=generator)] += 1
    assert torch.allclose(counts / 2000, torch.full((5,), 0.4), atol=0.045)


@pytest.mark.parametrize("text", ["uniform(keep=0)", "top_loss(keep=2)", "top_k(keep=-1)", "jest(keep=0)"])
def test_a_keep_out_of_range_is_refused(text):
    with pytest.raises(UserError, match=r"needs a keep above 0 and at most 1, got"):
        registry.build("selectors", text)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(UserError, match="boltzmann needs a temperature above 0, got 0"):
        Boltzmann(keep=0.5, temperature=0)


def test_a_candidate_of_several_tokens_is_scored_by_their_mean():
    """Means 3, 4 and none at all: the one without a token is kept last of all."""
    nan = torch.nan
    losses = torch.tensor([[2.0, 4.0], [4.0, nan], [nan, nan]])
    assert choose(TopLoss(keep=0.4), losses, number=3) == [1, 0, 2]
    reference = torch.tensor([[0.0, 0.0], [3.0, nan], [nan, nan]])
    assert choose(TopK(keep=0.4), losses, reference, number=3) == [0, 1, 2]


def test_losses_of_three_dimensions_are_refused():
    with pytest.raises(UserError, match=r"chooses by losses \[n\], \[n, columns\] or Pairs, got \[5, 3, 2\]"):
        choose(TopLoss(keep=0.4), torch.ones(5, 3, 2))


def test_losses_of_other_candidates_are_refused():
    with pytest.raises(UserError, match="got 5 of the target and 4 of the reference"):
        choose(TopK(), LOSSES, REFERENCE[:4])


def test_a_missing_reference_is_named():
    with pytest.raises(UserError, match="top_k needs the reference's losses of the candidates, got None"):
        choose(TopK(), LOSSES, None)


def test_what_the_reference_does_not_know_is_refused_and_not_chosen_first():
    nan = torch.nan
    with pytest.raises(UserError, match="needs a loss of every candidate, got NaN at candidates 1"):
        choose(TopK(), torch.tensor([1.0, 2, 3]), torch.tensor([0, nan, 0]))
    with pytest.raises(UserError, match="compares losses of the same entries, got others for candidates 0"):
        choose(TopK(), torch.tensor([[1.0, 9], [2, 2]]), torch.tensor([[1.0, nan], [0, 0]]))
    empty = torch.tensor([[1.0, 1], [nan, nan], [3, 3]])
    assert choose(ReferenceOnly(keep=0.5), empty, empty, number=3) == [0, 2, 1], "one without entries comes last"


def test_more_than_there_are_cannot_be_chosen():
    with pytest.raises(UserError, match="7 are to be chosen of 5 candidates"):
        choose(TopK(), number=7)
