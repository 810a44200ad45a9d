"""What a call leaves behind and tells: evaluation without a trace, losses to log, effective sample sizes, cautions."""

import weakref

import pytest
import torch
from torch.nn.functional import normalize

from steering import KL, CVaR, DualMemory, Pairs, Steerer, Uniform


def draw(*shape, grad=True):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def pairs(n=4, width=3):
    return Pairs(*(normalize(draw(n, width, grad=False), dim=-1) for _ in range(2)))


# -- evaluation, and what is logged -----------------------------------------------------------------------


def snapshot(steerer):
    """Everything that a steerer remembers, as numbers."""
    state = steerer.state_dict()
    table = state["memory"]["table"].clone()
    return [table.nan_to_num(-9), state["variance"]["values"], state["scale"]]


@pytest.mark.parametrize("scale", [0.5, "auto"])
def test_evaluation_leaves_no_trace(scale):
    steerer = Steerer(KL(temperature=0.5), reference_scale=scale, memory=DualMemory(12, gamma=0.3))
    losses, reference, ids = draw(3, 6), draw(3, 6), torch.arange(3)
    steerer(losses, reference, ids=ids)
    before, cautions = snapshot(steerer), steerer.cautions()
    steerer.eval()(5 * draw(3, 6), draw(3, 6), ids=ids)
    assert all(torch.equal(old, new) for old, new in zip(before, snapshot(steerer), strict=True))
    assert steerer.cautions() == cautions
    steerer.train()(5 * draw(3, 6), draw(3, 6), ids=ids)
    assert not torch.equal(before[0], snapshot(steerer)[0])


def test_evaluation_weighs_by_what_is_remembered():
    """Temperature 1, gamma 1/2: u is 2 and would become 5, so exponentials of 8 weigh 8 / 5, every time."""
    steerer = Steerer(KL(temperature=1.0), memory=DualMemory(gamma=0.5))
    steerer(torch.full((3,), 2.0).log())
    steerer.eval()
    for _ in range(2):
        assert steerer(torch.full((3,), 8.0).log()).weights.tolist() == pytest.approx([1.6] * 3)


def test_evaluation_before_any_training_has_a_scale_of_its_own():
    steerer = Steerer(KL(temperature=1.0), reference_scale="auto").eval()
    reference = draw(50, grad=False)
    assert steerer(reference, reference).scale == pytest.approx(1) and steerer.variance.values is None


@pytest.mark.parametrize("rule", [Uniform(), KL(temperature=0.5), KL(rho=20), CVaR(alpha=0.3)], ids=repr)
def test_the_loss_to_log_is_the_weighted_loss_without_the_reference(rule):
    losses, reference = draw(12), draw(12).detach() + 100
    steered = Steerer(rule, population=100)(losses, reference)
    assert steered.loss < 0
    assert torch.allclose(steered.weighted_loss, (steered.weights * losses).mean())
    assert not steered.weighted_loss.requires_grad


def test_the_loss_of_pairs_to_log_is_that_of_the_target_alone():
    target, reference = pairs(6), pairs(6)
    steered = Steerer(KL(temperature=0.5))(target, reference)
    dense_target, mask = target.rows()
    dense = Steerer(KL(temperature=0.5))(dense_target, reference.rows()[0], mask=mask)
    assert torch.allclose(steered.weighted_loss, dense.weighted_loss)
    alone = Steerer(KL(temperature=0.5))(target)
    assert torch.equal(alone.weighted_loss, alone.loss)


# -- figures and cautions -----------------------------------------------------------------------------------


def test_the_effective_sample_size_by_hand():
    """Weights 2, 2, 0, 0: (sum)^2 / sum of squares = 16 / 8 = 2 of 4 entries."""
    steered = Steerer(CVaR(alpha=0.5))(torch.tensor([4.0, 3.0, 1.0, 0.0]))
    assert steered.effective_share.tolist() == [0.5]
    assert Steerer(Uniform())(draw(7)).effective_share.tolist() == pytest.approx([1])


def test_a_useful_reference_calls_for_no_caution():
    reference = draw(50, grad=False)
    steerer = Steerer(KL(temperature=1.0))
    assert steerer.cautions() == [], "nothing was seen yet"
    steerer(reference + 0.5 * draw(50), reference)
    assert steerer.cautions() == []


def test_an_excess_that_varies_more_than_the_loss_is_cautioned():
    """Var(loss - reference) / Var(loss) = 1 + 4 for an unrelated reference of twice the deviation."""
    reference = torch.tensor([-2.0, 2.0, -2.0, 2.0])
    steerer = Steerer(Uniform(), reference_scale=1)
    steerer(torch.tensor([-1.0, -1.0, 1.0, 1.0]), reference)
    (caution,) = steerer.cautions()
    assert "varies more than the loss itself (ratio 5.00)" in caution
    assert "compare a smaller reference_scale on held-out data (least variance: 0.00)" in caution


def test_the_automatic_scale_is_never_cautioned_for_noise():
    for _ in range(20):
        steerer = Steerer(Uniform(), reference_scale="auto")
        steerer(draw(6), draw(6))
        assert not [x for x in steerer.cautions() if "varies more" in x]


def test_a_target_that_collapsed_onto_its_reference_is_cautioned():
    reference = draw(50, grad=False)
    steerer = Steerer(Uniform())
    steerer(reference + 1e-3 * draw(50), reference)
    (caution,) = steerer.cautions()
    assert "the target has collapsed onto the reference" in caution and "use a smaller rho" in caution


def test_weights_that_rest_on_a_small_share_of_the_tokens_are_cautioned():
    """A hundred of a thousand tokens carry all the weight."""
    steerer = Steerer(CVaR(alpha=0.1), over="batch")
    steerer(torch.rand(10, 100))
    (caution,) = steerer.cautions()
    assert "the weights rest on 100.0 samples of a row (effective sample size, 10% of them)" in caution


def test_few_near_negatives_of_an_anchor_are_no_collapse():
    steerer = Steerer(KL(temperature=0.1))
    steerer(Pairs(*(normalize(torch.randn(200, 4), dim=-1) for _ in range(2))))
    assert 2 < float(steerer.effective_sample_size[0]) < 199 / 8 and steerer.cautions() == []


def test_rows_of_a_single_entry_and_equal_losses_call_for_no_caution():
    steerer = Steerer(Uniform())
    steerer(torch.rand(3, 1), torch.rand(3, 1), mask=torch.ones(3, 1))
    steerer(torch.ones(5), torch.ones(5))
    assert steerer.cautions() == []


def test_weights_that_rest_on_one_sample_are_cautioned():
    steerer = Steerer(KL(temperature=0.01))
    steerer(torch.tensor([0.0, 1.0, 5.0]))
    (caution,) = steerer.cautions()
    assert "the weights rest on 1.0 samples of a row" in caution


@pytest.mark.parametrize("masked", [False, True])
def test_what_is_kept_for_figures_holds_no_graph(masked):
    """A steerer that held the graph of a step would keep the activations of the model until the next one."""
    losses, reference = draw(3, 5), draw(3, 5, grad=False)
    activations = draw(3, 5, grad=False)
    kept = weakref.ref(activations)
    steerer = Steerer(KL(temperature=0.5))
    steered = steerer(losses * activations, reference, mask=torch.ones(3, 5) if masked else None)
    del activations
    assert kept() is not None and steered.loss.requires_grad
    del steered
    assert kept() is None and steerer.effective_sample_size[0] > 0
