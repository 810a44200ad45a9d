"""The posterior that a label, or a pair, is right: what is fitted is what the labels were made with."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from steering import Pairs, UserError
from steering.auto.pair_posterior import fit_pair_posterior
from steering.auto.posterior import balanced, effective_share, fit_posterior, in_words

CLASSES = 6


def noisy_labels(n=6000, noise=0.3, scale=3.0, seed=0):
    """Scores, labels of which a share is wrong, and which are; right ones are drawn from the softmax of the scores."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, CLASSES, generator=generator)
    labels = (scale * scores).softmax(-1).multinomial(1, generator=generator)[:, 0]
    wrong = torch.rand(n, generator=generator) < noise
    return scores, torch.where(wrong, torch.randint(CLASSES, (n,), generator=generator), labels), wrong


@pytest.mark.parametrize(("noise", "scale"), [(0.3, 3.0), (0.6, 2.0), (0.0, 1.0)])
def test_noise_and_temperature_are_found(noise, scale):
    scores, labels, _ = noisy_labels(noise=noise, scale=scale)
    posterior = fit_posterior(scores, labels)
    assert posterior.noise == pytest.approx(noise, abs=0.05)
    assert posterior.scales[0] == pytest.approx(scale, rel=0.15)


def test_the_posterior_is_calibrated():
    scores, labels, wrong = noisy_labels(20000)
    right = fit_posterior(scores, labels)(scores, labels)
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 0.9), (0.9, 1.0)):
        part = (right >= low) & (right < high)
        assert 1 - wrong[part].double().mean() == pytest.approx(right[part].mean().item(), abs=0.05)


def test_scores_that_are_three_times_as_sure_give_the_same_weights():
    scores, labels, _ = noisy_labels()
    one, other = (fit_posterior(factor * scores, labels)(factor * scores, labels) for factor in (1, 2))
    assert torch.allclose(one, other, atol=1e-3)


def test_a_reference_that_knows_nothing_is_ignored():
    _, labels, _ = noisy_labels()
    scores = torch.randn(6000, CLASSES, generator=torch.Generator().manual_seed(5))
    posterior = fit_posterior(scores, labels)
    right = posterior(scores, labels)
    weights = balanced(right, labels)
    assert effective_share(weights) > 0.99
    assert in_words(posterior, right, weights) == "the reference knows nothing about these labels: ignored"


def test_a_reference_that_was_trained_on_these_labels_finds_none_of_them_wrong():
    _, labels, _ = noisy_labels()
    scores = 8 * torch.eye(CLASSES)[labels] + torch.randn(6000, CLASSES, generator=torch.Generator().manual_seed(5))
    posterior = fit_posterior(scores, labels)
    right = posterior(scores, labels)
    weights = balanced(right, labels)
    assert posterior.noise < 0.02 and effective_share(weights) > 0.99
    assert in_words(posterior, right, weights) == "labels look clean to this reference: training plainly"


def test_beside_a_reference_that_knows_little_another_models_scores_decide():
    """The reference of clean labels knows half the classes; alone it takes the others for noise."""
    scores, labels, _ = noisy_labels(noise=0.0)
    ignorant = torch.where(labels[:, None] < 3, scores, torch.zeros_like(scores))
    alone, together = fit_posterior(ignorant, labels), fit_posterior([ignorant, 2 * scores], labels)
    assert together.noise < 0.02
    assert together.log_likelihood > alone.log_likelihood + 0.1


def test_classes_keep_their_share():
    weights = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.randint(3, (1000,), generator=torch.Generator().manual_seed(1))
    by_class = balanced(weights, labels)
    for label in range(3):
        assert by_class[labels == label].mean().item() == pytest.approx(1)
    assert balanced(torch.zeros(4), torch.tensor([0, 0, 1, 1])).tolist() == [1, 1, 1, 1]


def test_what_cannot_be_fitted_is_one_line():
    scores, labels, _ = noisy_labels(10)
    for bad_scores, bad_labels, message in (
        (scores, labels[:5], "a posterior needs scores"),
        ([scores, scores[:5]], labels, "a posterior needs scores"),
        (scores, labels + CLASSES, "labels are whole numbers from 0 to 5"),
        (scores, labels.double(), "labels are whole numbers"),
        (scores / 0, labels, "must be finite"),
        (scores[:0], labels[:0], "a posterior needs scores"),
    ):
        with pytest.raises(UserError, match=message) as error:
            fit_posterior(bad_scores, bad_labels)
        assert "\n" not in str(error.value)


def pairs_with_wrong_ones(n=1500, wrong=300, seed=0):
    """Features of pairs, the first of which have the right side of another one."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(n, 16, generator=generator)
    right = left + 1.2 * torch.randn(n, 16, generator=generator)
    right[:wrong] = right[:wrong].roll(1, 0)
    return Pairs(normalize(left, dim=-1), normalize(right, dim=-1), 1.0)


def test_wrong_pairs_are_told_from_right_ones():
    pairs = pairs_with_wrong_ones()
    fitted = fit_pair_posterior(pairs)
    assert fitted.right.shape == (1500,) and fitted.right.min() >= 0 and fitted.right.max() <= 1
    assert fitted.right[:300].mean() < 0.4 < 0.7 < fitted.right[300:].mean()
    assert torch.equal(fitted.right, fit_pair_posterior(pairs).right)


def test_pairs_of_any_number_have_a_posterior_and_one_pair_has_none():
    for n in (2, 63, 65):
        assert fit_pair_posterior(pairs_with_wrong_ones(n, 0)).right.isfinite().all()
    with pytest.raises(UserError, match="at least 2"):
        fit_pair_posterior(pairs_with_wrong_ones(1, 0))
    with pytest.raises(UserError, match="finite"):
        fit_pair_posterior(Pairs(torch.full((4, 2), math.nan), torch.zeros(4, 2), 1.0))
