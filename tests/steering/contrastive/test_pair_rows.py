"""Two passes over tiles agree with the plain matrix of all pairs, whatever the rule, the tiles and the budget."""

import pytest
import torch
from torch.nn.functional import normalize

from steering import KL, ChiSquare, CVaR, DualMemory, Pairs, Steerer, Uniform, UserError
from steering.contrastive import passes

RULES = [Uniform(), KL(temperature=0.02), KL(temperature=0.1, epsilon=0.3), KL(rho=2.4), CVaR(alpha=0.3)]
RULES += [ChiSquare(temperature=0.5), ChiSquare(rho=2.4)]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def pairs(n=13, width=4, dtype=torch.float64, size=1.0):
    sides = (size * normalize(torch.randn(n, width, dtype=dtype), dim=-1) for _ in range(2))
    return Pairs(*(side.requires_grad_() for side in sides))


def gradients(steered, target):
    return torch.autograd.grad(steered.loss, target[:2])


def close(steered, target, expected, of, rtol, atol):
    """Whether two losses have the same gradients."""
    pairs = zip(gradients(steered, target), gradients(expected, of), strict=True)
    return all(torch.allclose(got, want, rtol=rtol, atol=atol) for got, want in pairs)


def dense(rule, target, reference=None, **options):
    """The plain path: the whole matrix, one line an anchor, and autograd."""
    values, mask = target.rows()
    ids = options.pop("ids", None)
    ids = None if ids is None else torch.cat([2 * ids, 2 * ids + 1])
    reference = None if reference is None else reference.rows()[0]
    return Steerer(rule, population=12, **options)(values, reference, mask=mask, ids=ids)


@pytest.fixture(params=[((3, 5), 300), ((13, 13), None), ((1, 4), 0)], ids=["some kept", "kept", "redone"])
def budget(request, monkeypatch):
    """Tiles that are ragged, whole, and of a single row that holds nothing but its own pair, and which are kept."""
    shape, budget = request.param
    monkeypatch.setattr(passes, "TILE", shape)
    monkeypatch.setattr(passes, "LINE", 13 * shape[0])
    return budget


@every_rule
def test_tiles_find_what_the_whole_matrix_finds(rule, budget):
    target, reference = pairs(), pairs(width=6)
    steered = Steerer(rule, population=12, reference_scale=0.7, budget=budget)(target, reference)
    expected = dense(rule, target, reference, reference_scale=0.7)
    assert torch.allclose(steered.loss, expected.loss, rtol=1e-12)
    assert torch.allclose(steered.effective_share, expected.effective_share, rtol=1e-10)
    assert torch.allclose(steered.entries, expected.entries)
    pull = expected.weights.sum(-1).view(2, -1).mean(0) / 12
    assert torch.allclose(steered.weights, pull, rtol=1e-10)
    assert close(steered, target, expected, target, 1e-10, 1e-14)


@every_rule
def test_remembered_duals_and_the_automatic_scale_are_those_of_the_matrix(rule, budget):
    steerer = Steerer(rule, population=12, reference_scale="auto", memory=DualMemory(60, gamma=0.3))
    plain = Steerer(rule, population=12, reference_scale="auto", memory=DualMemory(60, gamma=0.3))
    for _ in range(3):
        target, reference, ids = pairs(), pairs(), torch.randperm(30)[:13]
        steered = steerer(target, reference, ids=ids)
        values, mask = target.rows()
        expected = plain(values, reference.rows()[0], mask=mask, ids=torch.cat([2 * ids, 2 * ids + 1]))
        assert torch.allclose(steered.loss, expected.loss, rtol=1e-11)
        assert close(steered, target, expected, target, 1e-9, 1e-14)
    assert steerer.memory.table is not None and plain.memory.table is not None
    assert torch.allclose(steerer.memory.table, plain.memory.table, equal_nan=True, rtol=1e-11)
    assert torch.allclose(steerer.scale, plain.scale)


@pytest.mark.parametrize("rule", [KL(temperature=0.01), KL(temperature=0.01, epsilon=1e-8)])
@pytest.mark.parametrize("kind", ["random", "duplicates", "opposite", "clustered"])
def test_bad_numbers_are_met_in_single_precision(rule, kind):
    """Differences up to 200 times the temperature either way, equal and opposite features."""
    left, right = (normalize(torch.randn(13, 8), dim=-1) for _ in range(2))
    opposite = torch.where(torch.arange(13)[:, None] % 2 == 0, left[:1], -left[:1])
    clustered = normalize(left[:3].repeat(5, 1)[:13] + 1e-3 * left, dim=-1)
    sides = {
        "random": (left, right),
        "duplicates": (left[:1].repeat(13, 1), right[:1].repeat(13, 1)),
        "opposite": (opposite, opposite.roll(1, 0)),
        "clustered": (clustered, clustered.flip(0)),
    }[kind]
    target = Pairs(*(side.clone().requires_grad_() for side in sides))
    exact = Pairs(*(side.detach().double().requires_grad_() for side in target[:2]))
    steered, expected = Steerer(rule, budget=0)(target), dense(rule, exact)
    assert steered.loss.dtype == torch.float32 and steered.loss.isfinite()
    assert torch.allclose(steered.loss.double(), expected.loss, rtol=1e-4, atol=1e-5)
    for got, want in zip(gradients(steered, target), gradients(expected, exact), strict=True):
        assert torch.allclose(got.double(), want, rtol=1e-3, atol=2e-5 * float(want.abs().max()) + 1e-7)


def test_anchors_hundreds_of_nats_apart_keep_their_weights(budget):
    """One right far from all others: one exponential cannot serve both directions, so two do."""
    target = pairs(size=3.0)
    steered, expected = Steerer(KL(temperature=0.02))(target), dense(KL(temperature=0.02), target)
    assert torch.allclose(steered.effective_share, expected.effective_share, rtol=1e-9)
    assert close(steered, target, expected, target, 1e-9, 1e-13)


@pytest.mark.parametrize(
    "rule, dtype", [(KL(temperature=0.1), torch.bfloat16), (CVaR(alpha=0.3), torch.float16)], ids=str
)
def test_features_in_half_precision_give_a_gradient_close_to_the_exact_one(rule, dtype):
    half, reference = (Pairs(*(x.detach().to(dtype) for x in pairs(64, 16, torch.float32)[:2])) for _ in range(2))
    same = Pairs(*(side.float().requires_grad_() for side in half[:2]))
    half = Pairs(*(side.requires_grad_() for side in half[:2]))
    steered = Steerer(rule)(half, reference)
    expected = Steerer(rule)(same, Pairs(reference.left.float(), reference.right.float()))
    assert steered.loss.dtype == torch.float32
    for got, want in zip(gradients(steered, half), gradients(expected, same), strict=True):
        assert got.dtype == dtype
        assert (got.float() - want).norm() < 0.1 * want.norm()


@pytest.mark.parametrize("rule", [KL(temperature=0.5), ChiSquare(rho=2.4)], ids=repr)
def test_a_pair_without_negatives_has_no_loss_and_without_gradients_the_loss_is_the_same(rule):
    single, target = pairs(1), pairs()
    steered = Steerer(rule, population=12)(single, pairs(1))
    assert steered.loss == 0 and (steered.effective_share == 0).all()
    assert all((gradient == 0).all() for gradient in gradients(steered, single))
    with torch.no_grad():
        loss = Steerer(rule, population=12)(target).loss
    assert torch.equal(loss, Steerer(rule, population=12)(target).loss.detach()) and not loss.requires_grad


def test_the_gradient_is_the_same_again_for_one_side_alone_and_scaled_by_what_follows():
    target, reference = pairs(), pairs()
    once = gradients(Steerer(KL(temperature=0.1))(target, reference), target)
    for factor in (1, 3):
        loss = factor * Steerer(KL(temperature=0.1))(target, reference).loss
        again = torch.autograd.grad(loss, target[:2], retain_graph=True)
        same = torch.equal if factor == 1 else torch.allclose
        assert all(same(factor * a, b) for a, b in zip(once, again, strict=True))
        with pytest.raises(RuntimeError, match="can be differentiated once"):
            torch.autograd.grad(loss, target[:2])
    frozen = Pairs(target.left.detach(), target.right)
    (right,) = torch.autograd.grad(Steerer(KL(temperature=0.1))(frozen, reference).loss, frozen.right)
    assert torch.equal(right, once[1])


def test_variances_are_estimated_from_a_part_of_a_large_batch(monkeypatch):
    monkeypatch.setattr("steering.contrastive.pair_rows.SAMPLED", 4)
    sides = pairs(12), pairs(12)
    steerer, part = Steerer(KL(temperature=0.5)), Steerer(KL(temperature=0.5))
    steerer(*sides)
    part(*(Pairs(side.left[::3], side.right[::3]) for side in sides))
    assert steerer.variance.values is not None and part.variance.values is not None
    assert torch.equal(steerer.variance.values, part.variance.values)


@pytest.mark.parametrize("reference", [pairs(3), Pairs(torch.zeros(4, 2), torch.zeros(5, 2))])
def test_pairs_that_are_not_the_same_are_refused(reference):
    with pytest.raises(UserError, match="must be of the same samples, got pairs of"):
        Steerer(Uniform())(pairs(4), reference)


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
        target = Pairs(features(), features())
        steered = steerer(target, Pairs(features(), features()), ids=ids)
        steered.loss.backward()
        assert target.left.grad is not None and steered.effective_share.shape == (24,)
