import pytest
import torch
from torch.nn.functional import normalize

from steering import KL, ChiSquare, CVaR, DualMemory, Pairs, Steerer, Uniform, UserError

RULES = [
    Uniform(),
    KL(temperature=0.5),
    KL(rho=20),
    CVaR(alpha=0.3),
    ChiSquare(temperature=0.5),
    ChiSquare(rho=20),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def draw(*shape, dtype=torch.float64, grad=True):
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def gradient(steered, losses):
    return torch.autograd.grad(steered.loss, losses)[0]


def remembered(steerer, *places):
    """Levels in the memory, ``[places, width]``."""
    found = steerer.memory.read(torch.tensor(places))
    assert found is not None
    return found


def pairs(n=4, width=3):
    return Pairs(*(normalize(draw(n, width, grad=False), dim=-1) for _ in range(2)))


# -- the loss and its gradient ------------------------------------------------------------------------------


def test_the_gradient_of_kl_penalised_is_that_of_its_log_mean_exp():
    losses, reference = draw(20), draw(20)
    risk = 0.5 * ((losses - reference) / 0.5).exp().mean().log()
    (wanted,) = torch.autograd.grad(risk, losses)
    found = gradient(Steerer(KL(temperature=0.5), reference_scale=1)(losses, reference), losses)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=0)


def test_the_gradient_of_a_constrained_rule_is_that_of_its_worst_case():
    """Danskin: the derivative of the inner maximum, here by finite differences of the risk itself."""
    losses, step = draw(9), 1e-6
    for rule in (KL(rho=2), ChiSquare(rho=2)):
        found = gradient(Steerer(rule, population=9)(losses), losses)
        for place in range(9):
            moved = losses.detach().repeat(2, 1)
            moved[:, place] += torch.tensor([step, -step])
            up, down = (Steerer(rule, population=9)(row).loss for row in moved)
            assert float(found[place]) == pytest.approx(float(up - down) / (2 * step), abs=1e-6)


@every_rule
def test_the_loss_is_the_weighted_mean_of_the_excess_and_its_gradient_the_weights(rule):
    losses, reference = draw(12), draw(12)
    steered = Steerer(rule, reference_scale=0.5, population=100)(losses, reference)
    excess = losses - 0.5 * reference
    assert torch.allclose(steered.loss, (steered.weights * excess).mean())
    assert torch.allclose(gradient(steered, losses), steered.weights / 12)
    assert not steered.weights.requires_grad and not steered.effective_share.requires_grad


@every_rule
def test_every_line_of_a_matrix_is_a_row_of_its_own(rule):
    losses = draw(3, 8)
    together = Steerer(rule, population=100)(losses)
    alone = [Steerer(rule, population=8)(row) for row in losses]  # a row stands for its own eight entries
    assert torch.allclose(together.loss, torch.stack([x.loss for x in alone]).mean())
    assert torch.allclose(together.weights, torch.stack([x.weights for x in alone]), atol=1e-9)
    assert torch.allclose(together.effective_share, torch.cat([x.effective_share for x in alone]))


def test_pairs_find_the_contrastive_gradient_of_the_paper():
    """Mean over the 2 n anchors of t log mean exp(loss / t), each over its n - 1 negatives."""
    some = pairs(5)
    left, right = some.left.requires_grad_(), some.right.requires_grad_()
    own = (left * right).sum(-1, keepdim=True)
    gaps = left @ right.T - own, right @ left.T - own
    others = ~torch.eye(5, dtype=torch.bool)
    risk = torch.stack([(x[others].view(5, 4) / 0.1).exp().mean(-1).log().mean() * 0.1 for x in gaps]).mean()
    wanted = torch.autograd.grad(risk, (left, right))
    found = torch.autograd.grad(Steerer(KL(temperature=0.1))(some).loss, (left, right))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found, wanted, strict=True))


# -- masks --------------------------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("padding", [0.0, 1e9, float("nan"), float("inf")])
def test_a_padded_entry_weighs_nothing_and_leaves_the_others_as_if_it_were_absent(rule, padding):
    losses, reference = draw(10), draw(10)
    mask = torch.arange(10) % 3 != 0
    padded = losses.detach().masked_fill(~mask, padding).requires_grad_()
    steered = Steerer(rule, population=100)(padded, reference, mask=mask)
    absent = Steerer(rule, population=100)(losses[mask], reference[mask])
    assert torch.allclose(steered.weights[mask], absent.weights)
    assert (steered.weights[~mask] == 0).all()
    assert torch.allclose(steered.loss, absent.loss)
    assert torch.allclose(steered.effective_share, absent.effective_share)
    found = gradient(steered, padded)
    assert torch.allclose(found[mask], absent.weights / int(mask.sum())) and (found[~mask] == 0).all()


def test_rows_of_tokens_with_padding_count_like_shorter_rows():
    """Rows of 4 and of 2 tokens: the mean over the two rows, each over its own tokens."""
    losses, rule = draw(2, 4), KL(temperature=0.5)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])  # integers, as tokenizers give them
    found = Steerer(rule)(losses, mask=mask)
    wanted = (Steerer(rule)(losses[0]).loss + Steerer(rule)(losses[1, :2]).loss) / 2
    assert torch.allclose(found.loss, wanted)


def test_a_row_that_is_all_padding_counts_as_absent():
    losses, rule = draw(3, 4), KL(temperature=0.5)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    found = Steerer(rule)(losses, mask=mask)
    assert torch.allclose(found.loss, Steerer(rule)(losses[[0, 2]]).loss)
    assert found.effective_share[1] == 0 and (found.weights[1] == 0).all()


@every_rule
def test_a_batch_of_nothing_but_padding_has_no_loss_and_no_gradient(rule):
    losses = draw(4)
    steered = Steerer(rule, population=100)(losses, draw(4), mask=torch.zeros(4, dtype=torch.bool))
    assert steered.loss == 0 and (gradient(steered, losses) == 0).all() and steered.effective_share == 0


def test_a_row_that_is_all_padding_leaves_its_remembered_level_alone():
    losses = draw(2, 4)
    steerer = Steerer(KL(temperature=0.5), memory=DualMemory(2, gamma=0.5))
    ids, mask = torch.tensor([0, 1]), torch.ones(2, 4, dtype=torch.bool)
    steerer(losses, ids=ids)
    before = remembered(steerer, 0, 1)
    mask[1] = False
    steerer(losses + 1, ids=ids, mask=mask)
    after = remembered(steerer, 0, 1)
    assert after[0] != before[0] and after[1] == before[1]


# -- precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_everything_is_at_least_single_precision_under_autocast(dtype):
    rows = draw(3, 8, dtype=torch.float32).to(dtype).detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        steered = Steerer(KL(temperature=0.1))(rows, rows.detach() / 2)
    exact = Steerer(KL(temperature=0.1))(rows.float(), rows.detach().float() / 2)
    assert steered.loss.dtype == steered.weights.dtype == torch.float32
    assert torch.allclose(steered.weights, exact.weights, rtol=1e-5)
    assert gradient(steered, rows).dtype == dtype


def test_similarities_of_pairs_are_not_rounded_by_autocast():
    some = Pairs(draw(8, 16, dtype=torch.float32), draw(8, 16, dtype=torch.float32))
    exact = Steerer(KL(temperature=0.01))(some).weights
    with torch.autocast("cpu", torch.bfloat16):
        found = Steerer(KL(temperature=0.01))(some).weights
    assert torch.equal(found, exact)


def test_double_stays_double():
    steered = Steerer(KL(rho=5), population=10)(draw(6), draw(6))
    assert steered.loss.dtype == steered.weights.dtype == steered.effective_share.dtype == torch.float64


# -- the reference ------------------------------------------------------------------------------------------


@every_rule
def test_without_a_reference_it_is_plain_dro(rule):
    losses = draw(10)
    plain = Steerer(rule, population=100)(losses)
    zero = Steerer(rule, population=100, reference_scale=1)(losses, torch.zeros(10))
    assert plain.scale == 0
    assert torch.equal(plain.weights, zero.weights) and torch.equal(plain.loss, zero.loss)


def test_a_reference_of_equal_losses_steers_like_none():
    losses = draw(10)
    found = Steerer(KL(temperature=0.5), reference_scale=1)(losses, torch.full((10,), 7.0))
    assert torch.allclose(found.weights, Steerer(KL(temperature=0.5))(losses).weights)


# -- the memory ---------------------------------------------------------------------------------------------


def test_one_row_blends_its_level_from_step_to_step():
    """Equal losses log 2 and then log 8 at temperature 1, gamma 1/2: u is 2 and then (2 + 8) / 2 = 5, so the
    second batch weighs 8 / 5."""
    steerer = Steerer(KL(temperature=1.0), memory=DualMemory(gamma=0.5))
    assert steerer(torch.full((3,), 2.0).log()).weights.tolist() == pytest.approx([1] * 3)
    assert steerer(torch.full((3,), 8.0).log()).weights.tolist() == pytest.approx([1.6] * 3)


def test_rows_find_their_own_level_again_by_id():
    """Temperature 1, gamma 1/2. Id 0 had exponentials of 6 and has 4: u = 5 and the weight is 4 / 5. Id 1 was
    never seen: its weight is one."""
    steerer = Steerer(KL(temperature=1.0), memory=DualMemory(5, gamma=0.5))
    rows = torch.tensor([[2.0, 2.0], [6.0, 6.0]]).log()
    steerer(rows, ids=torch.tensor([4, 0]))
    found = steerer(torch.tensor([[4.0, 4.0], [9.0, 9.0]]).log(), ids=torch.tensor([0, 1])).weights
    assert found.flatten().tolist() == pytest.approx([0.8, 0.8, 1, 1])


def test_a_batch_of_a_single_row_still_goes_by_its_id():
    steerer = Steerer(KL(temperature=1.0), memory=DualMemory(5, gamma=0.5))
    steerer(torch.tensor([[2.0, 2.0]]).log(), ids=torch.tensor([3]))
    assert remembered(steerer, 3).exp().item() == pytest.approx(2)
    assert remembered(steerer, 0).isnan().all()


def test_pairs_remember_left_and_right_side_by_side_so_that_data_can_be_added():
    steerer = Steerer(KL(temperature=0.5), memory=DualMemory(20, gamma=0.5))
    some, ids = pairs(3), torch.tensor([7, 2, 5])
    steerer(some, ids=ids)
    dual = KL(temperature=0.5).dual(*some.rows())
    assert torch.allclose(remembered(steerer, 14, 4, 10), dual[:3])
    assert torch.allclose(remembered(steerer, 15, 5, 11), dual[3:])


def test_a_rate_of_one_that_will_fall_remembers_what_it_saw():
    steerer = Steerer(KL(temperature=0.5), memory=DualMemory(20, gamma=1.0, keep=True))
    some, ids = pairs(3), torch.tensor([7, 2, 5])
    fresh = steerer(some, ids=ids).loss
    assert torch.equal(fresh, Steerer(KL(temperature=0.5))(some).loss)
    assert remembered(steerer, 14, 15).isfinite().all()


@every_rule
def test_a_rate_of_one_remembers_nothing(rule):
    steerer = Steerer(rule, population=100)
    losses = draw(2, 6)
    first = steerer(losses).weights
    steerer(draw(2, 6))
    assert torch.equal(steerer(losses).weights, first)


@every_rule
def test_a_checkpoint_continues_as_if_nothing_had_happened(rule, tmp_path):
    def fresh():
        return Steerer(rule, reference_scale="auto", population=100, memory=DualMemory(6, gamma=0.3))

    batches = [(draw(3, 6), draw(3, 6), torch.randperm(6)[:3]) for _ in range(4)]
    steerer, again = fresh(), fresh()
    for losses, reference, ids in batches[:2]:
        steerer(losses, reference, ids=ids)
    torch.save(steerer.state_dict(), tmp_path / "steerer.pt")
    again.load_state_dict(torch.load(tmp_path / "steerer.pt", weights_only=True))
    assert again.cautions() == steerer.cautions()
    for losses, reference, ids in batches[2:]:
        one, other = (x(losses, reference, ids=ids) for x in (steerer, again))
        assert torch.equal(one.weights, other.weights) and torch.equal(one.scale, other.scale)


# -- what the user got wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s: s(torch.tensor(1.0)), r"losses are \[n\], \[rows, columns\] or \[entries\] and not empty, got \[\]"),
        (lambda s: s(torch.zeros(0)), r"and not empty, got \[0\]"),
        (lambda s: s(torch.zeros(2, 2, 2)), r"got \[2, 2, 2\]"),
        (lambda s: s(torch.zeros(3, dtype=torch.complex64)), "losses are real numbers, got torch.complex64"),
        (lambda s: s(torch.zeros(3), torch.zeros(4)), "was reduction='none' forgotten"),
        (lambda s: s(torch.zeros(3), torch.zeros(1)), "must be of the same samples"),
        (lambda s: s(torch.zeros(3), torch.tensor(0.0)), r"must be of the same samples, got \[3\] and \[\]"),
        (lambda s: s(torch.zeros(3), mask=torch.ones(2)), r"shaped like the losses \[3\], got \[2\]"),
        (lambda s: s(pairs(), mask=torch.ones(8, 4)), "Pairs know their own mask and rows"),
        (lambda s: s(pairs(4), pairs(3)), "must be of the same samples"),
        (lambda s: s(pairs(4), torch.zeros(4)), "must be of the same samples, got Pairs and Tensor"),
        (lambda s: s(torch.zeros(4), pairs(4)), "must be of the same samples, got Tensor and Pairs"),
        (lambda s: s(Pairs(torch.zeros(4, 2), torch.zeros(4, 3))), "must have the same width"),
    ],
)
def test_losses_that_do_not_fit_are_explained(call, message):
    with pytest.raises(UserError, match=message):
        call(Steerer(Uniform()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"reference_scale": "best"}, "reference_scale is a number or 'auto', got 'best'"),
        ({"reference_scale": float("nan")}, "reference_scale is a number or 'auto', got nan"),
        ({"reference_scale": None}, "reference_scale is a number or 'auto', got None"),
        ({"population": 0}, "population is a number of samples, at least 1, got 0"),
        ({"memory": 0.5}, r"memory is DualMemory\(size, gamma=...\), got 0.5"),
        ({"rule": KL}, "a rule is .* say, got <class"),
        ({"rule": 3}, "a rule is .* say, got 3"),
    ],
    ids=str,
)
def test_options_that_are_none_are_explained(options, message):
    with pytest.raises(UserError, match=message):
        Steerer(**{"rule": Uniform()} | options)


def test_duals_of_another_rule_are_refused():
    states = []
    for rule in (KL(temperature=1.0), CVaR(alpha=0.5)):
        steerer = Steerer(rule, memory=DualMemory(gamma=0.5))
        steerer(torch.rand(4))
        states.append(steerer)
    with pytest.raises(UserError, match=r"remembers duals of KL\(.*\), this steerer's rule is CVaR"):
        states[1].load_state_dict(states[0].state_dict())


@pytest.mark.parametrize("losses", [torch.zeros(1, 3), torch.zeros(2, 3), pairs()], ids=type)
def test_a_memory_without_ids_is_explained(losses):
    with pytest.raises(UserError, match=r"of every sample needs its id: steerer\(..., ids=ids\)"):
        Steerer(KL(temperature=1.0), memory=DualMemory(9, gamma=0.5))(losses)


@pytest.mark.parametrize("ids", [torch.arange(3), torch.zeros(2, 2, dtype=torch.long), torch.zeros(2)], ids=str)
def test_ids_that_do_not_fit_are_explained(ids):
    steerer = Steerer(KL(temperature=1.0), memory=DualMemory(9, gamma=0.5))
    for losses in (torch.zeros(2, 3), pairs(2)):
        with pytest.raises(UserError, match="ids are 2 whole numbers, one for every sample, got"):
            steerer(losses, ids=ids)


def test_what_holds_no_numbers_is_explained():
    with pytest.raises(UserError, match="ids must be a tensor, an array or numbers, got list"):
        Steerer(KL(temperature=1.0), memory=DualMemory(9, gamma=0.5))(torch.zeros(2, 3), ids=["a", "b"])


def test_small_ids_may_be_of_any_whole_type():
    steerer = Steerer(KL(temperature=1.0), memory=DualMemory(9, gamma=0.5))
    steerer(torch.zeros(2, 3), ids=torch.tensor([0, 5], dtype=torch.int32))
    steerer(torch.zeros(2, 3), ids=[0, 5])
    assert remembered(steerer, 5).isfinite().all()


def test_a_radius_without_a_population_is_explained():
    with pytest.raises(UserError, match=r"kl\(rho=80\).*pass Steerer\(..., population=n\)"):
        Steerer(KL(rho=80))(torch.zeros(3))
