"""The contract that every rule keeps, and that the contract bites."""

from dataclasses import dataclass

import pytest
import torch

from steering import KL, ChiSquare, CVaR, Individual, Rule, Uniform, registry
from steering.testing import check_rule

RULES = [
    Uniform(),
    KL(temperature=0.5),
    KL(temperature=0.02),
    KL(temperature=50.0),
    KL(temperature=0.5, epsilon=1e-3),
    KL(rho=0.01),
    KL(rho=5),
    KL(rho=1000),
    CVaR(alpha=0.05),
    CVaR(alpha=0.3),
    CVaR(alpha=1),
    ChiSquare(temperature=0.1),
    ChiSquare(temperature=3.0),
    ChiSquare(rho=0.01),
    ChiSquare(rho=5),
    ChiSquare(rho=1000),
    Individual(),
    Individual(start=0.5, radius=1.0),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_rule_keeps_the_contract(rule):
    check_rule(rule)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_rule_is_a_value(rule):
    """Equal to, and written as, its own constructor call."""
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


class DualOfWrongShape(Whole):
    def dual(self, excess, mask, population):
        return super().dual(excess, mask, population)[:, 0]


class WrongType(Whole):
    def weights(self, excess, dual):
        return super().weights(excess.double(), dual)


class Overwrites(Whole):
    def dual(self, excess, mask, population):
        return super().dual(excess.masked_fill_(~mask, 0), mask, population)


class Negative(Whole):
    def weights(self, excess, dual):
        return 2 * super().weights(excess, dual) - 1.5


class NotNormalised(Whole):
    def weights(self, excess, dual):
        return 1.1 * super().weights(excess, dual)


class PrefersEasy(Whole):
    def dual(self, excess, mask, population):
        return super().dual(-excess, mask, population)

    def weights(self, excess, dual):
        return super().weights(-excess, dual)


class DependsOnShift(Whole):
    """Uses the sign of the excess itself: one above zero, scaled to the mean."""

    def dual(self, excess, mask, population):
        share = ((excess > 0) & mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        return 1 + share.to(excess.dtype)

    def weights(self, excess, dual):
        return (1 + (excess > 0).to(excess.dtype)) / dual.to(excess.dtype)

    def blend(self, old, new, gamma):
        return torch.lerp(old, new, gamma)


class IgnoresMask(Whole):
    def dual(self, excess, mask, population):
        return super().dual(excess, torch.ones_like(mask), population)


class MultipliesByMask(Whole):
    """NaN times zero is NaN."""

    def dual(self, excess, mask, population):
        return super().dual(excess, mask, population) + 0 * (excess * mask).sum(-1, keepdim=True)


class MixesRows(Whole):
    """The mean weight is one either way."""

    def weights(self, excess, dual):
        return super().weights(excess, dual) if len(excess) == 1 else torch.ones_like(excess)


class LooksAtPlaces(Whole):
    """A plain average if the last column exceeds the first; the mean weight is one either way."""

    def weights(self, excess, dual):
        rising = excess[0, 0] < excess[0, -1]
        return torch.ones_like(excess) if rising else super().weights(excess, dual)


class NaNForEmptyRows(Whole):
    def dual(self, excess, mask, population):
        return super().dual(excess, mask, population).where(mask.any(-1, keepdim=True), torch.nan)


class AssumesLayout(Whole):
    """Reads the memory of a transposed view in the wrong order."""

    def weights(self, excess, dual):
        flat = excess.as_strided(excess.shape, (excess.shape[1], 1))
        return super().weights(flat, dual)


class BlendsBackwards(Whole):
    def blend(self, old, new, gamma):
        return super().blend(new, old, gamma)


class BlendsTooMuch(Whole):
    def blend(self, old, new, gamma):
        return new + (1 - gamma)


class NotNormalisedAndUneven(Whole):
    """Free to have any mean, but not to weigh equal entries differently."""

    normalised = False

    def weights(self, excess, dual):
        return super().weights(excess, dual) * torch.arange(1, excess.shape[1] + 1)


class LooksAtItsTile(Whole):
    """Normalises what it is given, which may be a part of the row."""

    def weights(self, excess, dual):
        return super().weights(excess, dual) / super().weights(excess, dual).mean(-1, keepdim=True)


class NotSoExponential(Whole):
    exponent = 1.0

    def settle(self, dual):
        return dual


class SettlesElsewhere(NotSoExponential):
    def weights(self, excess, dual):
        return KL(temperature=1.0).weights(excess, dual)

    def settle(self, dual):
        return dual + 1


BROKEN = {
    LooksAtItsTile: "a weight must follow from its own excess and its row's dual alone",
    NotSoExponential: r"with exponent 1, weights must be exp\(\(excess - dual\) / exponent\)",
    SettlesElsewhere: "settle must give the dual from exponent",
    DualOfWrongShape: r"dual must be \[rows, width\] = \[3, 1\], got \[3\]",
    WrongType: "weights must be of the excess's type torch.float32, got torch.float64",
    Overwrites: "must not write into their arguments",
    Negative: "weights must be at least 0",
    NotNormalised: "must average one in every row",
    PrefersEasy: "a larger excess must never weigh less",
    DependsOnShift: "adding a constant to a row must not change",
    IgnoresMask: "must average one in every row",
    MultipliesByMask: "entries under the mask must change nothing, but nan there does",
    MixesRows: "a row must weigh alike alone and among other rows",
    LooksAtPlaces: "the order of the columns must not matter|alike alone and among other rows",
    NaNForEmptyRows: "a row without a True in its mask needs a finite dual",
    AssumesLayout: "transposed views must weigh like plain tensors",
    BlendsBackwards: r"blend\(old, new, 1\) must be new",
    BlendsTooMuch: r"blending a dual with itself \(gamma 0.1\) must give that dual",
    NotNormalisedAndUneven: "all equal must weigh the same",
}


def test_the_rule_that_is_broken_below_is_whole():
    check_rule(Whole())


@pytest.mark.parametrize("rule", BROKEN, ids=lambda rule: rule.__name__)
def test_a_broken_rule_is_told_which_promise_it_breaks(rule):
    with pytest.raises(AssertionError, match=BROKEN[rule]) as caught:
        check_rule(rule())
    assert rule.__name__ in str(caught.value), "the message names the rule"


def test_a_rule_without_all_its_parts_is_told_what_it_misses():
    class Half:
        width = 1

        def dual(self, excess, mask, population): ...

    with pytest.raises(AssertionError, match="a rule needs normalised, blend, weights"):
        check_rule(Half())  # type: ignore[arg-type]
