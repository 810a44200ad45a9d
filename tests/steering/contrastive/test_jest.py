"""JEST against its formula, written down slowly, and against what it is for."""

import pytest
import torch
from torch.nn.functional import normalize, softplus

from steering import Pairs, UserError
from steering.contrastive import jest
from steering.contrastive.jest import Jest

SIXTHS = [1 / 6, 2 / 6, 3 / 6]
both_forms = pytest.mark.parametrize("form", ["softmax", "sigmoid"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=23, width=6, seed=0):
    """Target and reference of n pairs, unlike scales."""
    sides = torch.randn(4, n, width, generator=generator(seed), dtype=torch.float64)
    sides[1::2] += sides[::2]
    sides = normalize(sides, dim=-1)
    return Pairs(sides[0], sides[1], 5.0), Pairs(sides[2], sides[3], 9.0)


def draw(log_weights, number, chance):
    """Draws without replacement by Gumbel noise, the same as the selector's."""
    noise = -torch.empty(len(log_weights), dtype=torch.float64).exponential_(generator=chance).log()
    return (log_weights + noise).topk(number).indices.tolist()


def slow_jest(target, known, sizes, *, form, sampled, chance, bias=-10.0):
    """The formula, with full matrices recomputed in every round and sums written as loops."""
    chosen: list[int] = []
    n = len(target.left)
    mine, other = (side.scale * (side.left @ side.right.T) for side in (target, known))
    z = 2 * torch.eye(n, dtype=torch.float64) - 1
    for number in sizes:
        if form == "sigmoid":
            d = softplus(-z * (mine + bias)) - softplus(-z * (other + bias))
            first = score = torch.stack([d[i, i] + sum(d[i, c] + d[c, i] for c in chosen) for i in range(n)])
        else:
            d = other - mine
            first, score = (d.diagonal() - d.diagonal().min()).log(), d.diagonal().clone()
            for i in range(n if chosen else 0):
                for logits, sign in ((mine, 1), (other, -1)):
                    images, texts = (x[chosen, i].exp().sum().log() for x in (logits, logits.T))
                    score[i] += sign * (images + texts) / 2
        score[chosen] = -torch.inf
        if sampled or not chosen:
            chosen += draw(score if chosen else first, number, chance)
        else:
            chosen += score.topk(number).indices.tolist()
    return chosen


@both_forms
@pytest.mark.parametrize("sampled", [True, False], ids=["drawn", "largest"])
def test_jest_is_its_formula_recomputed_from_scratch_every_round(form, sampled, monkeypatch):
    """11 places in 4 chunks, 3, 3, 3, 2; 23 candidates in blocks of 5, the last one smaller, change nothing."""
    for seed in range(3):
        selector, sides = Jest(chunks=4, form=form, draw=sampled), batch(seed=seed)
        formula = slow_jest(*sides, [3, 3, 3, 2], form=form, sampled=sampled, chance=generator(seed))
        assert selector(*sides, number=11, generator=generator(seed)).tolist() == formula
        with monkeypatch.context() as patch:
            patch.setattr(jest, "BLOCK", 5)
            assert selector(*sides, number=11, generator=generator(seed)).tolist() == formula


def test_a_single_pair_at_a_time_is_the_greedy_formula():
    target, known = batch(n=9)
    got = Jest(chunks=9, form="sigmoid", draw=False)(target, known, number=9, generator=generator())
    assert got.tolist() == slow_jest(target, known, [1] * 9, form="sigmoid", sampled=False, chance=generator())


@both_forms
def test_exactly_the_number_asked_for_comes_out_whatever_the_chunks(form):
    for number, chunks in ((1, 16), (7, 3), (16, 16), (17, 16), (20, 6), (3, 1)):
        places = Jest(chunks=chunks, form=form)(*batch(n=20), number=number, generator=generator())
        assert len(places.unique()) == len(places) == number


def test_every_similarity_is_computed_once(monkeypatch):
    """12 of 20 in 4 chunks of 3: each meets the candidates left, 17, 14 and 11, on two sides under two models."""
    counted = 0

    def matmul(a, b):
        nonlocal counted
        counted += a.shape[0] * b.shape[1]
        return torch.matmul(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", matmul)
    Jest(chunks=4)(*batch(n=20), number=12, generator=generator())
    assert counted == 3 * (17 + 14 + 11) * 2 * 2


def test_features_in_half_precision_are_scored_as_exactly_as_they_can_be():
    half = [p._replace(left=p.left.bfloat16(), right=p.right.bfloat16()) for p in batch()]
    exact = [p._replace(left=p.left.float(), right=p.right.float()) for p in half]
    chosen, expected = (Jest(chunks=4)(*sides, number=11, generator=generator()).tolist() for sides in (half, exact))
    assert chosen == expected


def test_fields_replace_the_scales_of_the_models():
    target, known = batch()
    chosen = Jest(scale=3.0, reference_scale=4.0)(target, known, number=9, generator=generator())
    same = Jest()(target._replace(scale=3.0), known._replace(scale=4.0), number=9, generator=generator())
    own = Jest()(target, known, number=9, generator=generator())
    assert chosen.tolist() == same.tolist() != own.tolist()


def test_the_first_pair_is_drawn_with_linear_weights_in_the_softmax_form_and_exponential_ones_in_the_other():
    """0.05 is four standard errors of 1500 draws.

    Softmax: learnability alone 0, 1, 3, weights 0, 1/4, 3/4; of equal pairs all weights would be zero, and none may be
    forgotten. Sigmoid: losses log 1, log 2, log 3 over a reference of no loss, weights 1/6, 2/6, 3/6.
    """
    eye = torch.eye(3, dtype=torch.float64)
    similarity = torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64) / 3
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).log() + 1
    plain = Pairs(eye, eye, 1.0)
    for selector, target, known, expected in (
        (Jest(form="softmax"), Pairs(eye, eye * similarity, 3.0), plain, [0, 0.25, 0.75]),
        (Jest(form="softmax"), plain, plain, [1 / 3] * 3),
        (Jest(form="sigmoid", bias=0.0), Pairs(eye, eye * -losses.expm1().log(), 1.0), Pairs(eye, eye, 1e4), SIXTHS),
    ):
        assert shares(selector, target, known) == pytest.approx(expected, abs=0.05)


def shares(selector, target, known):
    """How often each of the candidates is drawn as the only one, over 1500 draws."""
    chance, counts = generator(), torch.zeros(3)
    for _ in range(1500):
        counts[selector(target, known, number=1, generator=chance)] += 1
    return (counts / 1500).tolist()


@pytest.mark.slow
def test_the_second_chunk_is_drawn_by_the_exponential_of_the_learnability_given_the_first():
    """The law of the second place, given each first, from the formula; 0.04 is four standard errors."""
    target, known = batch(n=4, seed=3)
    counts, chance = torch.zeros(4, 4), generator()
    for _ in range(6000):
        first, second = Jest(chunks=2, form="sigmoid", bias=-2.0)(target, known, number=2, generator=chance)
        counts[first, second] += 1
    mine, other = (p.scale * (p.left @ p.right.T) - 2.0 for p in (target, known))
    z = 2 * torch.eye(4) - 1
    d = softplus(-z * mine) - softplus(-z * other)
    law = d.diagonal() + d + d.T  # [first, i]
    law = law.fill_diagonal_(-torch.inf).softmax(-1).float()
    seen = counts.sum(-1) > 1000
    assert seen.sum() >= 2
    assert torch.allclose(counts[seen] / counts[seen].sum(-1, keepdim=True), law[seen], atol=0.04)


@both_forms
@pytest.mark.parametrize("sampled", [True, False], ids=["drawn", "largest"])
def test_wrong_pairs_that_the_reference_knows_are_left_out(form, sampled):
    """Half of the captions are shuffled; the reference sees it, the target (at random) does not."""
    target, _ = batch(n=80, width=32)
    ideas = normalize(torch.randn(80, 32, generator=generator(1), dtype=torch.float64), dim=-1)
    captions = torch.cat([ideas[:40], ideas[40:].roll(1, 0)])
    known = Pairs(ideas, captions, 20.0)
    target = Pairs(target.left, target.right.flip(0), 5.0)
    places = Jest(form=form, draw=sampled, chunks=4)(target, known, number=16, generator=generator())
    chosen_at_once = places[4:]  # the first chunk has no company yet
    assert (chosen_at_once < 40).double().mean() > 0.9


def test_what_cannot_be_chosen_from_is_refused_with_a_way_out():
    with pytest.raises(UserError, match=r"needs Pairs, got losses of shape \[9\] of the target: use it with"):
        Jest()(torch.rand(9), torch.rand(9), number=3, generator=generator())
    with pytest.raises(UserError, match="got nothing of the reference"):
        Jest()(batch()[0], None, number=3, generator=generator())
    with pytest.raises(UserError, match="got 23 of the target and 20 of the reference"):
        Jest()(batch()[0], batch(n=20)[1], number=3, generator=generator())
    with pytest.raises(UserError, match="jest has the forms softmax and sigmoid, got 'cosine'"):
        Jest(form="cosine")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="jest needs at least 1 of chunks, got 0"):
        Jest(chunks=0)
