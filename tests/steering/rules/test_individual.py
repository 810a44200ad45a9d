"""Every row learns its temperature by the exact gradient of its own risk."""

import math

import pytest
import torch

from steering import DualMemory, Pairs, Steerer, UserError
from steering.rules import KL, Individual


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    excess = torch.randn(4, 9, generator=chance, dtype=torch.float64) * 0.3
    mask = torch.rand(4, 9, generator=chance) < 0.8
    return excess, mask


def test_a_first_step_follows_the_gradient_of_the_risk():
    rule = Individual(radius=0.5, start=0.4, learning_rate=0.01, momentum=0.0)
    excess, mask = rows()
    dual = rule.dual(excess, mask, None)
    t = torch.full((4,), 0.4, dtype=torch.float64, requires_grad=True)
    tilted = (excess / t[:, None]).exp().where(mask, 0).sum(-1) / mask.sum(-1)
    values = t * (rule.epsilon + tilted).log() + rule.radius * t  # the risk of every row
    (slope,) = torch.autograd.grad(values.sum(), t)
    torch.testing.assert_close(rule.figures(dual)["objective"], values.detach())
    torch.testing.assert_close(dual[:, 4], (t - 0.01 * slope).detach())


def test_at_its_first_temperature_the_weights_are_those_of_kl():
    excess, mask = rows()
    rule, plain = Individual(start=0.3, epsilon=1e-3), KL(temperature=0.3, epsilon=1e-3)
    mine = rule.weights(excess, rule.dual(excess, mask, None))
    torch.testing.assert_close(mine, plain.weights(excess, plain.dual(excess, mask, None)))


def test_what_is_remembered_goes_into_the_average_and_into_the_gradient():
    """By hand: u is the mean of the old and the new one; the gradient is that of the risk with the new u's slope."""
    rule = Individual(radius=0.2, start=0.4, learning_rate=0.02, momentum=0.0, epsilon=1e-6)
    (first, mask), (second, _) = rows(), rows(1)
    old = rule.dual(first, mask, None)
    dual = rule.blend(old, rule.recall(second, mask, old), gamma=0.5)
    t = old[:, 4]
    torch.testing.assert_close(dual[:, 1], t)
    u_old = (old[:, 0] / old[:, 1]).exp()
    powers = (second / t[:, None]).exp().where(mask, 0)
    u = 0.5 * u_old + 0.5 * (powers.sum(-1) / mask.sum(-1) + rule.epsilon)
    torch.testing.assert_close(dual[:, 0], t * u.log())
    drift = (powers * second / t[:, None]).sum(-1) / mask.sum(-1) / u
    torch.testing.assert_close(dual[:, 4], t - 0.02 * (u.log() + 0.2 - drift))


def test_momentum_keeps_a_share_of_the_past():
    rule = Individual(start=0.4, momentum=0.75, radius=0.2)
    excess, mask = rows()
    old = rule.dual(excess, mask, None)
    new = rule.blend(old, rule.recall(excess, mask, old), gamma=1.0)
    alone = Individual(start=0.4, momentum=0.0, radius=0.2).recall(excess, mask, old)
    torch.testing.assert_close(new[:, 3], 0.75 * old[:, 3] + 0.25 * alone[:, 3])


@pytest.mark.parametrize(("radius", "end"), [(50.0, 0.1), (0.0, 0.5)])
def test_a_temperature_stays_within_its_bounds(radius, end):
    rule = Individual(radius=radius, start=0.4, least=0.1, most=0.5, learning_rate=10.0)
    spread = torch.tensor([[-1.0, -1.0, -1.0, 3.0]])
    assert rule.dual(spread, torch.ones(1, 4, dtype=torch.bool), None)[0, 4] == pytest.approx(end)


def test_every_anchor_of_pairs_comes_to_a_temperature_of_its_own():
    chance = torch.Generator().manual_seed(3)
    left, right = (torch.nn.functional.normalize(torch.randn(8, 4, generator=chance), dim=-1) for _ in range(2))
    steerer = Steerer(Individual(start=0.3, radius=0.5, learning_rate=0.05), memory=DualMemory(16))
    first = steerer(Pairs(left, right), ids=torch.arange(8))
    second = steerer(Pairs(left, right), ids=torch.arange(8))
    assert first.temperature == pytest.approx(0.3) and second.temperature != pytest.approx(0.3)
    table = steerer.memory.table
    assert table is not None and len(set(table[:, 4].tolist())) == 16
    assert float(second.objective) < float(first.objective), "the temperatures did not go down the risk"


def test_settings_that_make_no_sense_and_samples_without_ids_are_refused():
    with pytest.raises(UserError, match="every sample needs its id"):
        Steerer(Individual(), memory=DualMemory(6))(torch.zeros(6, 3))
    for settings, message in (
        ({"radius": -1}, "a radius of at least 0 and an epsilon above 0, got -1 and 1e-14"),
        ({"epsilon": 0}, "an epsilon above 0, got 6.5 and 0"),
        ({"start": 2.0}, "0 < least <= start <= most, got 0.01, 2 and 1"),
        ({"most": math.inf}, "got 0.01, 0.07 and inf"),
        ({"learning_rate": 0}, "a learning_rate above 0 and a momentum within 0 and 1, got 0 and 0.9"),
        ({"momentum": 1}, "got 0.01 and 1"),
    ):
        with pytest.raises(UserError, match=message):
            Individual(**settings)
