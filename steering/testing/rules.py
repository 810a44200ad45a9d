"""The contract of a rule as runnable checks, for our rules and yours."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from steering.rules.rule import Exponential, Fused, Rule
from steering.rules.solve import NEVER
from steering.testing._contract import Contract

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of a weight, relative to the largest of its row


def check_rule(rule: Rule, *, population: int = 100) -> None:
    """Checks that a rule keeps the contract that the engine builds on.

    Every check runs on several batches of excess losses (mild, wide, tied, masked) in float32 and float64.

    Args:
        rule: an instance, ``KL(rho=80)`` say.
        population: number of training samples that ``dual`` is told.

    Raises:
        AssertionError: names the rule, the promise that it breaks, and the numbers that show it.

    Example:
        >>> from steering import KL
        >>> check_rule(KL(temperature=0.5))
    """
    parts = ("width", "normalised", "dual", "blend", "weights")
    missing = [part for part in parts if not hasattr(rule, part)]
    assert not missing, f"{rule!r}: a rule needs {', '.join(missing)}; see steering.rules.rule.Rule"
    for dtype in (torch.float32, torch.float64):
        for name, excess, mask in _batches(dtype):
            _Case(rule, population, f"{name} excess in {str(dtype)[6:]}", excess, mask).check()


def _batches(dtype: torch.dtype) -> list[tuple[str, Tensor, Tensor]]:
    """Name, excess and mask of every batch, whose entries are multiples of 1/64: small shifts are exact in float32."""
    generator = torch.Generator().manual_seed(0)
    mild = (torch.randn(3, 9, generator=generator) * 64).round() / 64
    everything = torch.ones(3, 9, dtype=torch.bool)
    two_or_more = torch.rand(3, 9, generator=generator) < 0.6
    two_or_more[:, :2] = True
    batches = [
        ("mild", mild, everything),
        ("wide", mild * 64, everything),
        ("offset", mild - 1000, everything),
        ("tied", mild.round(), everything),
        ("masked", mild, two_or_more),
        ("single", mild[:, :1], everything[:, :1]),
    ]
    return [(name, excess.to(dtype), mask) for name, excess, mask in batches]


@dataclass(frozen=True)
class _Case(Contract):
    """One rule on one batch, ``[rows, columns]``."""

    rule: Rule
    population: int
    name: str
    excess: Tensor
    mask: Tensor

    def __str__(self) -> str:
        return f"{self.rule!r} on {self.name}"

    def dual(self, excess: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        excess = self.excess if excess is None else excess
        return self.rule.dual(excess, self.mask if mask is None else mask, self.population)

    def weights(self, excess: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Weights of a fresh dual, with NaN where the mask is False."""
        excess = self.excess if excess is None else excess
        mask = self.mask if mask is None else mask
        return self.rule.weights(excess, self.dual(excess, mask)).masked_fill(~mask, torch.nan)

    @cached_property
    def fresh(self) -> Tensor:
        """Weights of the batch as it is."""
        return self.weights()

    @property
    def tolerance(self) -> float:
        return _TOLERANCE[self.excess.dtype]

    def require_same(self, got: Tensor, expected: Tensor, promise: str) -> None:
        """Asserts that two sets of weights, or of duals, agree; NaN equals NaN."""
        size = expected.nan_to_num().abs().amax(-1, keepdim=True).clamp(min=1)
        if not torch.allclose(got / size, expected / size, rtol=0, atol=self.tolerance, equal_nan=True):
            self.require(False, promise, f"\n{got}\ninstead of\n{expected}")

    def check_shapes(self) -> None:
        excess = self.excess.clone()  # whether it is overwritten comes next
        dual = self.dual(excess)
        shape = [len(excess), self.rule.width]
        self.require(list(dual.shape) == shape, f"dual must be [rows, width] = {shape}", list(dual.shape))
        self.require(dual.is_floating_point(), "dual must be floating point", dual.dtype)
        self.require(dual.isfinite().all(), "dual must be finite", dual)
        weights, shape = self.rule.weights(excess, dual), self.excess.shape
        self.require(
            weights.shape == shape, f"weights must be shaped like the excess {list(shape)}", list(weights.shape)
        )
        promise = f"weights must be of the excess's type {self.excess.dtype}"
        self.require(weights.dtype == self.excess.dtype, promise, weights.dtype)

    def check_that_arguments_stay(self) -> None:
        excess, mask = self.excess.clone(), self.mask.clone()
        self.weights(excess, mask)
        same = torch.equal(excess, self.excess) and torch.equal(mask, self.mask)
        self.require(same, "dual and weights must not write into their arguments")

    def check_not_negative(self) -> None:
        counted = self.fresh[self.mask]
        self.require(counted.isfinite().all(), "weights must be finite", counted)
        self.require((counted >= 0).all(), "weights must be at least 0", counted)

    def check_mean_one(self) -> None:
        means, size = self.fresh.nanmean(-1), self.fresh.nan_to_num().amax(-1).clamp(min=1)
        kept = not self.rule.normalised or ((means - 1).abs() / size <= self.tolerance).all()
        promise = "weights of a fresh dual must average one in every row (or set normalised = False)"
        self.require(kept, promise, f"means {means}")

    def check_equal_entries(self) -> None:
        weights = self.weights(self.excess[:, :1].expand_as(self.excess).contiguous())
        weight = torch.ones_like(weights) if self.rule.normalised else weights[:, :1].expand_as(weights)
        promise = f"entries of a row that are all equal must weigh {'one' if self.rule.normalised else 'the same'}"
        self.require_same(weights, weight.masked_fill(~self.mask, torch.nan), promise)

    def check_monotone(self) -> None:
        for excess, row, counts in zip(self.excess, self.fresh, self.mask, strict=True):
            ordered = row[counts][excess[counts].argsort()]
            slack = self.tolerance * max(1.0, float(ordered.max()))
            promise = "a larger excess must never weigh less; weights in the order of the excess"
            self.require((ordered.diff() >= -slack).all(), promise, ordered)

    def check_shift(self) -> None:
        if self.rule.normalised:
            shifts = torch.tensor([[3.0], [-8.0], [16.0]], dtype=self.excess.dtype)
            promise = "adding a constant to a row must not change its weights"
            self.require_same(self.weights(self.excess + shifts), self.fresh, promise)

    def check_mask(self) -> None:
        for other in () if self.mask.all() else (torch.nan, torch.inf, -torch.inf):
            excess = self.excess.masked_fill(~self.mask, other)
            promise = f"entries under the mask must change nothing, but {other} there does"
            self.require_same(self.dual(excess), self.dual(), f"{promise} (dual)")
            self.require_same(self.weights(excess), self.fresh, f"{promise} (weights)")

    def check_rows_alone(self) -> None:
        for row, counts in enumerate(self.mask):
            alone = self.weights(self.excess[row : row + 1], self.mask[row : row + 1])
            promise = "a row must weigh alike alone and among other rows"
            self.require_same(alone, self.fresh[row : row + 1], promise)
            entries = self.excess[row : row + 1, counts]
            weights = self.weights(entries, torch.ones_like(entries, dtype=torch.bool))
            promise = "masked entries must weigh on the others as if they were absent"
            self.require_same(self.fresh[row : row + 1, counts], weights, promise)

    def check_order_of_columns(self) -> None:
        back = self.weights(self.excess.flip(-1), self.mask.flip(-1)).flip(-1)
        self.require_same(back, self.fresh, "the order of the columns must not matter")
        transposed = self.weights(self.excess.T.contiguous().T, self.mask.T.contiguous().T)
        self.require_same(transposed, self.fresh, "transposed views must weigh like plain tensors")

    def check_entry_by_entry(self) -> None:
        dual = self.dual()
        weights = torch.cat([self.rule.weights(column, dual) for column in self.excess.split(1, 1)], 1)
        promise = "a weight must follow from its own excess and its row's dual alone, whatever else is in the tile"
        self.require_same(weights.masked_fill(~self.mask, torch.nan), self.fresh, promise)

    def check_exponential(self) -> None:
        exponent = getattr(self.rule, "exponent", None)
        if not isinstance(self.rule, Exponential) or exponent is None:
            return
        dual = self.dual()
        weights = ((self.excess - dual) / exponent).exp().to(self.excess.dtype).masked_fill(~self.mask, torch.nan)
        promise = f"with exponent {exponent:g}, weights must be exp((excess - dual) / exponent)"
        self.require_same(self.fresh, weights, promise)
        scaled = (self.excess.double() / exponent).masked_fill(~self.mask, -torch.inf)
        mean = scaled.logsumexp(-1, keepdim=True) - self.mask.sum(-1, keepdim=True).double().log()
        settled = self.rule.settle(exponent * mean)
        promise = "settle must give the dual from exponent * log mean exp(excess / exponent)"
        self.require_same(settled / exponent, dual.double() / exponent, promise)

    def check_fused(self) -> None:
        if not isinstance(self.rule, Fused):
            return
        mask = None if self.mask.all() else self.mask
        result = self.rule.weights_and_dual(self.excess.masked_fill(~self.mask, NEVER), mask)
        if result is None:
            return
        weights, dual = result
        promise = "weights_and_dual must give what weights and dual give"
        self.require_same(weights.masked_fill(~self.mask, torch.nan), self.fresh, f"{promise} (weights)")
        self.require_same(dual().double(), self.dual().double(), f"{promise} (dual)")
        self.require((weights[~self.mask] == 0).all(), "weights_and_dual must give 0 where there is no entry", weights)

    def check_empty_row(self) -> None:
        mask = self.mask.clone()
        mask[0] = False
        dual = self.dual(mask=mask)
        self.require(dual.isfinite().all(), "a row without a True in its mask needs a finite dual", dual)
        weights = self.rule.weights(self.excess, dual)
        self.require(not weights.isnan().any(), "a row without a True in its mask must not weigh NaN", weights)
        promise = "a row without a True in its mask must leave the other rows alone"
        self.require_same(self.weights(mask=mask)[1:], self.fresh[1:], promise)

    def check_blend(self) -> None:
        old, new = self.dual(self.excess.roll(1, 0), self.mask.roll(1, 0)), self.dual()
        self.require_same(self.rule.blend(old, new, 1.0), new, "blend(old, new, 1) must be new")
        for gamma in (0.1, 0.5, 1.0):
            promise = f"blending a dual with itself (gamma {gamma}) must give that dual"
            self.require_same(self.rule.blend(new, new, gamma), new, promise)
        blended = self.rule.blend(old, new, 0.3)
        self.require(blended.shape == new.shape, f"blend must give {list(new.shape)}", list(blended.shape))
        self.require(blended.isfinite().all(), "blend of finite duals must be finite", blended)
        weights = self.rule.weights(self.excess, blended)[self.mask]
        self.require((weights >= 0).all(), "weights of a blended dual must be at least 0 and not NaN", weights)
