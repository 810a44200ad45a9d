"""Rules at the model's own temperature: exact gradients, in features and in the temperature itself."""

import pytest
import torch
from open_clip import ClipLoss
from torch.nn.functional import normalize

from steering import KL, DualMemory, Pairs, Steerer, UserError
from steering.rules import GlobalContrastive, InfoNCE


def features(n=7, width=4):
    return tuple(normalize(torch.randn(n, width, dtype=torch.float64), dim=-1).requires_grad_() for _ in range(2))


def learned(scale=9.0):
    return torch.tensor(scale, dtype=torch.float64, requires_grad=True)


def excess(left, right, known=None):
    """Both anchors' excess over their negatives, ``[2 n, n - 1]``."""
    values, mask = Pairs(left, right).rows()
    if known is not None:
        values = values - known.rows()[0]
    return values[mask].view(2 * len(left), -1)


def test_info_nce_has_the_gradients_of_open_clips_loss():
    left, right = features()
    scale = learned()
    wanted = torch.autograd.grad(ClipLoss()(left, right, scale), (left, right, scale))
    found = torch.autograd.grad(Steerer(InfoNCE())(Pairs(left, right, scale)).loss, (left, right, scale))
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10)


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("radius, epsilon", [(0.0, 1e-14), (6.5, 1e-3)])
def test_the_global_contrastive_loss_has_the_gradients_of_its_definition(with_reference, scaled, radius, epsilon):
    left, right = features()
    scale, known = learned(), Pairs(*features()) if with_reference else None
    t = 1 / scale
    log_u = (epsilon + (excess(left, right, known) / t).exp().mean(-1)).log()
    risk = (t * log_u + radius * t).mean() if scaled else log_u.mean()
    wanted = torch.autograd.grad(risk, (left, right, scale))
    rule = GlobalContrastive(radius=radius, epsilon=epsilon, scaled=scaled)
    found = torch.autograd.grad(Steerer(rule)(Pairs(left, right, scale), known).loss, (left, right, scale))
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-13)


def test_the_memory_outlives_a_change_of_the_temperature():
    """u is an average of exponentials, whatever they were divided by."""
    left, right = features(3)
    steerer = Steerer(GlobalContrastive(epsilon=0), memory=DualMemory(6, gamma=0.25))
    ids = torch.arange(3)
    logs = []
    for scale in (5.0, 20.0):
        steerer(Pairs(left, right, learned(scale)), ids=ids)
        logs.append((excess(left, right) * scale).exp().mean(-1).log())
    wanted = torch.logaddexp(logs[0] + torch.tensor(0.75).log(), logs[1] + torch.tensor(0.25).log())
    found = steerer.memory.read(torch.cat([2 * ids, 2 * ids + 1]))
    assert found is not None and torch.allclose(found[:, 0], wanted, rtol=1e-6)


def test_a_fixed_scale_is_a_fixed_temperature():
    left, right = features()
    found = Steerer(GlobalContrastive(epsilon=1e-3))(Pairs(left, right, 10.0))
    wanted = Steerer(KL(temperature=0.1, epsilon=1e-3))(Pairs(left, right))
    assert torch.allclose(found.objective, wanted.objective)
    assert torch.equal(found.loss, found.objective), "the loss is the risk itself"
    pair = zip(*(torch.autograd.grad(x.loss, (left, right)) for x in (found, wanted)), strict=True)
    assert all(torch.allclose(a, b) for a, b in pair)


def test_losses_without_a_scale_are_refused():
    with pytest.raises(UserError, match=r"InfoNCE\(\) takes its temperature from the scale of Pairs, got losses of"):
        Steerer(InfoNCE())(torch.zeros(4))


@pytest.mark.parametrize("wrong", [{"radius": -1}, {"epsilon": -1e-3}])
def test_prices_below_zero_are_refused(wrong):
    with pytest.raises(UserError, match="needs a radius and an epsilon of at least 0"):
        GlobalContrastive(**wrong)
