"""Two passes over tiles agree with the plain matrix of all pairs, whatever the rule, the tiles and the budget."""

import pytest
import torch
from torch.nn.functional import normalize

from steering import KL, ChiSquare, CVaR, DualMemory, Pairs, Steerer, Uniform, UserError
from steering.contrastive import passes

RULES = [
    Uniform(),
    KL(temperature=0.5),
    KL(temperature=0.02),
    KL(temperature=0.1, epsilon=0.3),
    KL(rho=20),
    CVaR(alpha=0.3),
    ChiSquare(temperature=0.5),
    ChiSquare(rho=20),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def pairs(n=13, width=4, dtype=torch.float64, size=1.0):
    sides = (size * normalize(torch.randn(n, width, dtype=dtype), dim=-1) for _ in range(2))
    return Pairs(*(side.requires_grad_() for side in sides))


def gradients(steered, some):
    return torch.autograd.grad(steered.loss, some[:2])


def dense(rule, some, known=None, **options):
    """The plain path: the whole matrix, one line an anchor, and autograd."""
    values, mask = some.rows()
    ids = options.pop("ids", None)
    ids = None if ids is None else torch.cat([2 * ids, 2 * ids + 1])
    reference = None if known is None else known.rows()[0]
    return Steerer(rule, population=100, **options)(values, reference, mask=mask, ids=ids)


@pytest.fixture(params=[(3, 5), (13, 13), (1, 4)], ids=str)
def tiles(request, monkeypatch):
    """Tiles of several sizes, ragged, whole, and of a single row that holds nothing but its own pair."""
    monkeypatch.setattr(passes, "TILE", request.param)
    monkeypatch.setattr(passes, "LINE", 13 * request.param[0])


@every_rule
@pytest.mark.parametrize("budget", [0, 300, None], ids=["redone", "some kept", "kept"])
def test_tiles_find_what_the_whole_matrix_finds(rule, budget, tiles):
    some, known = pairs(), pairs(width=6)
    found = Steerer(rule, population=100, reference_scale=0.7, budget=budget)(some, known)
    wanted = dense(rule, some, known, reference_scale=0.7)
    assert torch.allclose(found.loss, wanted.loss, rtol=1e-12)
    assert torch.allclose(found.effective, wanted.effective, rtol=1e-10)
    assert torch.allclose(found.entries, wanted.entries)
    pull = wanted.weights.sum(-1).view(2, -1).mean(0) / 12
    assert torch.allclose(found.weights, pull, rtol=1e-10)
    for mine, theirs in zip(gradients(found, some), gradients(wanted, some), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-14)


@every_rule
def test_remembered_levels_and_the_automatic_scale_are_those_of_the_matrix(rule, tiles):
    steerer = Steerer(rule, population=100, reference_scale="auto", memory=DualMemory(60, gamma=0.3))
    plain = Steerer(rule, population=100, reference_scale="auto", memory=DualMemory(60, gamma=0.3))
    for _ in range(3):
        some, known, ids = pairs(), pairs(), torch.randperm(30)[:13]
        found = steerer(some, known, ids=ids)
        values, mask = some.rows()
        wanted = plain(values, known.rows()[0], mask=mask, ids=torch.cat([2 * ids, 2 * ids + 1]))
        assert torch.allclose(found.loss, wanted.loss, rtol=1e-11)
        for mine, theirs in zip(gradients(found, some), gradients(wanted, some), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-14)
    assert steerer.memory.table is not None and plain.memory.table is not None
    assert torch.allclose(steerer.memory.table, plain.memory.table, equal_nan=True, rtol=1e-11)
    assert torch.allclose(steerer.scale, plain.scale)


@pytest.mark.parametrize("rule", [KL(temperature=0.01), KL(temperature=1.0), KL(temperature=0.01, epsilon=1e-8)])
@pytest.mark.parametrize("kind", ["random", "duplicates", "opposite", "clustered"])
def test_bad_numbers_are_met_in_single_precision(rule, kind, tiles):
    """Differences up to 200 times the temperature either way, equal and opposite features."""
    n = 13
    left, right = (normalize(torch.randn(n, 8), dim=-1) for _ in range(2))
    if kind == "duplicates":
        left, right = left[:1].repeat(n, 1), right[:1].repeat(n, 1)
    elif kind == "opposite":
        left = torch.where(torch.arange(n)[:, None] % 2 == 0, left[:1], -left[:1])
        right = left.roll(1, 0).clone()
    elif kind == "clustered":
        left = normalize(left[:3].repeat(5, 1)[:n] + 1e-3 * left, dim=-1)
        right = left.flip(0).clone()
    some = Pairs(left.requires_grad_(), right.requires_grad_())
    exact = Pairs(*(side.detach().double().requires_grad_() for side in some[:2]))
    found, wanted = Steerer(rule, budget=0)(some), dense(rule, exact)
    assert found.loss.dtype == torch.float32 and found.loss.isfinite()
    assert torch.allclose(found.loss.double(), wanted.loss, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(gradients(found, some), gradients(wanted, exact), strict=True):
        assert torch.allclose(mine.double(), theirs, rtol=1e-3, atol=2e-5 * float(theirs.abs().max()) + 1e-7)


def test_anchors_hundreds_of_nats_apart_keep_their_weights(tiles):
    """One right far from all others: one exponential cannot serve both directions, so two do."""
    some = pairs(size=3.0)
    found, wanted = Steerer(KL(temperature=0.02))(some), dense(KL(temperature=0.02), some)
    assert torch.allclose(found.effective, wanted.effective, rtol=1e-9)
    for mine, theirs in zip(gradients(found, some), gradients(wanted, some), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", [KL(temperature=0.1), CVaR(alpha=0.3)], ids=repr)
def test_features_in_half_precision_give_a_gradient_close_to_the_exact_one(rule, dtype):
    whole, known = pairs(64, 16, torch.float32), pairs(64, 16, torch.float32)
    half = Pairs(*(side.detach().to(dtype).requires_grad_() for side in whole[:2]))
    same = Pairs(*(side.detach().float().requires_grad_() for side in half[:2]))
    reference = Pairs(known.left.to(dtype), known.right.to(dtype))
    found = Steerer(rule)(half, reference)
    wanted = Steerer(rule)(same, Pairs(reference.left.float(), reference.right.float()))
    assert found.loss.dtype == torch.float32
    for mine, theirs in zip(gradients(found, half), gradients(wanted, same), strict=True):
        assert mine.dtype == dtype
        assert (mine.float() - theirs).norm() < 0.1 * theirs.norm()


@every_rule
def test_a_pair_without_negatives_has_no_loss(rule):
    some = pairs(1)
    steered = Steerer(rule, population=100)(some, pairs(1))
    assert steered.loss == 0 and (steered.effective == 0).all()
    assert all((found == 0).all() for found in gradients(steered, some))


@every_rule
def test_without_gradients_the_loss_is_the_same(rule):
    some = pairs()
    with torch.no_grad():
        found = Steerer(rule, population=100)(some)
    assert torch.equal(found.loss, Steerer(rule, population=100)(some).loss.detach()) and not found.loss.requires_grad


def test_only_one_side_may_be_trained():
    some = pairs()
    frozen = Pairs(some.left.detach(), some.right)
    (found,) = torch.autograd.grad(Steerer(KL(temperature=0.1))(frozen).loss, frozen.right)
    wanted = gradients(Steerer(KL(temperature=0.1))(some), some)[1]
    assert torch.equal(found, wanted)


def test_the_gradient_is_scaled_by_what_follows_the_loss():
    some = pairs()
    once = gradients(Steerer(KL(temperature=0.1))(some), some)
    tripled = torch.autograd.grad(3 * Steerer(KL(temperature=0.1))(some).loss, some[:2])
    assert all(torch.allclose(3 * a, b) for a, b in zip(once, tripled, strict=True))


def test_a_second_backward_is_refused_and_not_silently_wrong():
    some = pairs()
    loss = Steerer(KL(temperature=0.1))(some).loss
    torch.autograd.grad(loss, some[:2], retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.grad(loss, some[:2])


def test_the_same_call_gives_the_same_bits():
    some, known = pairs(40, dtype=torch.float32), pairs(40, dtype=torch.float32)
    first, second = (gradients(Steerer(KL(temperature=0.1))(some, known), some) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_variances_are_estimated_from_a_part_of_a_large_batch(monkeypatch):
    monkeypatch.setattr("steering.contrastive.pair_rows.SAMPLED", 4)
    some, known = pairs(12), pairs(12)
    steerer = Steerer(KL(temperature=0.5))
    steerer(some, known)
    places = torch.tensor([0, 3, 6, 9])
    part = Steerer(KL(temperature=0.5))
    part(Pairs(some.left[places], some.right[places]), Pairs(known.left[places], known.right[places]))
    assert steerer.moments.values is not None and part.moments.values is not None
    assert torch.equal(steerer.moments.values, part.moments.values)


@pytest.mark.parametrize("known", [pairs(3), Pairs(torch.zeros(4, 2), torch.zeros(5, 2))])
def test_pairs_that_are_not_the_same_are_refused(known):
    with pytest.raises(UserError, match="must be of the same samples, got pairs of"):
        Steerer(Uniform())(pairs(4), known)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("scale", [0.7, "auto"])
def test_on_a_device_nothing_waits_for_a_number(gamma, scale, monkeypatch):
    """Meta tensors hold no numbers: whatever asked for one would raise."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # which knows no meta device

    def features():
        return torch.zeros(12, 4, device="meta", requires_grad=True)

    steerer = Steerer(KL(temperature=0.1, epsilon=1e-4), reference_scale=scale, memory=DualMemory(40, gamma=gamma))
    ids = torch.zeros(12, dtype=torch.long, device="meta")
    for _ in range(2):
        some = Pairs(features(), features())
        steered = steerer(some, Pairs(features(), features()), ids=ids)
        steered.loss.backward()
        assert some.left.grad is not None and steered.effective.shape == (24,)
