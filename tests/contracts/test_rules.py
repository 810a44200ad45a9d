"""The contract that every rule keeps, and that the contract bites."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from steering import KL, ChiSquare, CVaR, Individual, Rule, Uniform, registry
from steering.testing import check_rule

RULES = [
    Uniform(),
    *(KL(temperature=value) for value in (0.02, 0.5, 50.0)),
    KL(temperature=0.5, epsilon=1e-3),
    *(CVaR(alpha=value) for value in (0.05, 0.3, 1)),
    *(ChiSquare(temperature=value) for value in (0.1, 3.0)),
    *(kind(rho=value) for kind in (KL, ChiSquare) for value in (0.01, 5, 1000)),
    Individual(),
    Individual(start=0.5, radius=1.0),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_rule_keeps_the_contract_and_is_a_value(rule):
    """Equal to, and written as, its own constructor call."""
    check_rule(rule)
    assert registry.build("rules", f"{type(rule).__module__}:{rule!r}") == rule
    assert isinstance(rule, Rule)


@pytest.mark.parametrize("population", [2, 10**9])
@pytest.mark.parametrize("rule", [KL(rho=5), ChiSquare(rho=5)], ids=repr)
def test_a_radius_may_be_larger_than_the_simplex_or_next_to_nothing(rule, population):
    check_rule(rule, population=population)


@dataclass(frozen=True)
class Whole:
    """A correct rule, to be broken: half plain average, half KL at temperature 1."""

    width = 1
    normalised = True

    def dual(self, excess, mask, population):
        return KL(temperature=1.0).dual(excess, mask)

    def blend(self, old, new, gamma):
        return KL(temperature=1.0).blend(old, new, gamma)

    def weights(self, excess, dual):
        return 0.5 + 0.5 * KL(temperature=1.0).weights(excess, dual)


whole, kl = Whole(), KL(temperature=1.0)


def share_above_zero(_, excess, mask, population):
    share = ((excess > 0) & mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return 1 + share.to(excess.dtype)


def exponential(**members):
    return {"exponent": 1.0, "settle": lambda _, dual: dual} | members


# The promise that the users of a rule are told of, and what breaks it in one that keeps all others.
BROKEN = [
    (
        "a weight must follow from its own excess and its row's dual alone",
        {"weights": lambda _, x, dual: (w := whole.weights(x, dual)) / w.mean(-1, keepdim=True)},
    ),
    (r"with exponent 1, weights must be exp\(\(excess - dual\) / exponent\)", exponential()),
    (
        "settle must give the dual from exponent",
        exponential(weights=lambda _, *args: kl.weights(*args), settle=lambda _, dual: dual + 1),
    ),
    (r"dual must be \[rows, width\] = \[3, 1\], got \[3\]", {"dual": lambda _, *args: whole.dual(*args)[:, 0]}),
    ("excess's type torch.float32, got torch.float64", {"weights": lambda _, x, dual: whole.weights(x.double(), dual)}),
    ("not write into their arguments", {"dual": lambda _, x, mask, n: whole.dual(x.masked_fill_(~mask, 0), mask, n)}),
    ("weights must be at least 0", {"weights": lambda _, *args: 2 * whole.weights(*args) - 1.5}),
    ("must average one in every row", {"weights": lambda _, *args: 1.1 * whole.weights(*args)}),
    ("must average one in every row", {"dual": lambda _, x, mask, n: whole.dual(x, torch.ones_like(mask), n)}),
    (
        "a larger excess must never weigh less",
        {
            "dual": lambda _, x, mask, n: whole.dual(-x, mask, n),
            "weights": lambda _, x, dual: whole.weights(-x, dual),
        },
    ),
    (
        "adding a constant to a row must not change",
        {
            "dual": share_above_zero,
            "weights": lambda _, x, dual: (1 + (x > 0).to(x.dtype)) / dual.to(x.dtype),
            "blend": lambda _, *args: torch.lerp(*args),
        },
    ),
    (  # NaN times zero is NaN
        "entries under the mask must change nothing, but nan there does",
        {"dual": lambda _, x, mask, n: whole.dual(x, mask, n) + 0 * (x * mask).sum(-1, keepdim=True)},
    ),
    (
        "a row must weigh alike alone and among other rows",
        {"weights": lambda _, x, dual: whole.weights(x, dual) if len(x) == 1 else torch.ones_like(x)},
    ),
    (
        "the order of the columns must not matter|alike alone and among other rows",
        {"weights": lambda _, x, dual: torch.ones_like(x) if x[0, 0] < x[0, -1] else whole.weights(x, dual)},
    ),
    (
        "a row without a True in its mask needs a finite dual",
        {"dual": lambda _, x, mask, n: whole.dual(x, mask, n).where(mask.any(-1, keepdim=True), torch.nan)},
    ),
    (
        "transposed views must weigh like plain tensors",
        {"weights": lambda _, x, dual: whole.weights(x.as_strided(x.shape, (x.shape[1], 1)), dual)},
    ),
    (r"blend\(old, new, 1\) must be new", {"blend": lambda _, old, new, gamma: whole.blend(new, old, gamma)}),
    (r"a dual with itself \(gamma 0.1\) must give that dual", {"blend": lambda _, old, new, gamma: new + (1 - gamma)}),
    (  # free to have any mean, but not to weigh equal entries differently
        "all equal must weigh the same",
        {"normalised": False, "weights": lambda _, x, dual: whole.weights(x, dual) * torch.arange(1, x.shape[1] + 1)},
    ),
]


def test_the_rule_that_is_broken_below_is_whole():
    check_rule(Whole())


@pytest.mark.parametrize(("promise", "members"), BROKEN)
def test_a_broken_rule_is_told_which_promise_it_breaks(promise, members):
    with pytest.raises(AssertionError, match=promise) as caught:
        check_rule(type("Faulty", (Whole,), members)())
    assert "Faulty" in str(caught.value), "the message names the rule"


def test_a_rule_without_all_its_parts_is_told_what_it_misses():
    half: Any = type("Half", (), {"width": 1, "dual": lambda self, excess, mask, population: None})()
    with pytest.raises(AssertionError, match="a rule needs normalised, blend, weights"):
        check_rule(half)
