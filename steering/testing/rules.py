"""The contract of a rule as runnable checks, for our rules and yours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from steering.rules.rule import Exponential, Fused, Rule
from steering.rules.solve import NEVER

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
            case = _Case(rule, population, f"{name} excess in {str(dtype)[6:]}", excess, mask)
            for check in _CHECKS:
                check(case)


@dataclass(frozen=True)
class _Case:
    """One rule on one batch, ``[rows, columns]``."""

    rule: Rule
    population: int
    name: str
    excess: Tensor
    mask: Tensor

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

    def fail(self, promise: str, detail: object = "") -> str:
        """The message of a broken promise."""
        return f"{self.rule!r} on {self.name}: {promise}" + (f"\n{detail}" if str(detail) else "")

    def require_same(self, got: Tensor, wanted: Tensor, promise: str) -> None:
        """Asserts that two sets of weights, or of duals, agree; NaN equals NaN."""
        size = wanted.nan_to_num().abs().amax(-1, keepdim=True).clamp(min=1)
        same = torch.allclose(got / size, wanted / size, rtol=0, atol=self.tolerance, equal_nan=True)
        assert same, self.fail(promise, f"got\n{got}\ninstead of\n{wanted}")


def _batches(dtype: torch.dtype) -> list[tuple[str, Tensor, Tensor]]:
    """Name, excess and mask of every batch.

    Entries are multiples of 1/64, so that shifting them by a small integer is exact in float32.
    """
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


def _check_shapes(case: _Case) -> None:
    rows, width = len(case.excess), case.rule.width
    excess = case.excess.clone()  # whether it is overwritten comes next
    dual = case.dual(excess)
    promise = f"dual must be [rows, width] = [{rows}, {width}]"
    assert list(dual.shape) == [rows, width], case.fail(f"{promise}, got {list(dual.shape)}")
    assert dual.is_floating_point(), case.fail(f"dual must be floating point, got {dual.dtype}")
    assert dual.isfinite().all(), case.fail("dual must be finite, got", dual)
    weights = case.rule.weights(excess, dual)
    promise = f"weights must be shaped like the excess {list(case.excess.shape)}"
    assert weights.shape == case.excess.shape, case.fail(f"{promise}, got {list(weights.shape)}")
    promise = f"weights must be of the excess's type {case.excess.dtype}"
    assert weights.dtype == case.excess.dtype, case.fail(f"{promise}, got {weights.dtype}")


def _check_leaves_its_arguments_alone(case: _Case) -> None:
    excess, mask = case.excess.clone(), case.mask.clone()
    case.weights(excess, mask)
    same = torch.equal(excess, case.excess) and torch.equal(mask, case.mask)
    assert same, case.fail("dual and weights must not write into their arguments")


def _check_not_negative(case: _Case) -> None:
    counted = case.fresh[case.mask]
    assert counted.isfinite().all(), case.fail("weights must be finite, got", counted)
    assert (counted >= 0).all(), case.fail("weights must be at least 0, got", counted)


def _check_mean_one(case: _Case) -> None:
    if not case.rule.normalised:
        return
    means = case.fresh.nanmean(-1)
    size = case.fresh.nan_to_num().amax(-1).clamp(min=1)
    assert ((means - 1).abs() / size <= case.tolerance).all(), case.fail(
        "weights of a fresh dual must average one in every row (or set normalised = False), got means", means
    )


def _check_monotone(case: _Case) -> None:
    weights = case.fresh
    for excess, row, counts in zip(case.excess, weights, case.mask, strict=True):
        ordered = row[counts][excess[counts].argsort()]
        slack = case.tolerance * max(1.0, float(ordered.max()))
        promise = "a larger excess must never weigh less; weights in the order of the excess"
        assert (ordered.diff() >= -slack).all(), case.fail(promise, ordered)


def _check_equal_entries_weigh_alike(case: _Case) -> None:
    same = case.excess[:, :1].expand_as(case.excess).contiguous()
    weights = case.weights(same)
    if case.rule.normalised:
        wanted = torch.ones_like(weights).masked_fill(~case.mask, torch.nan)
        case.require_same(weights, wanted, "entries of a row that are all equal must weigh one")
    else:
        wanted = weights[:, :1].expand_as(weights).masked_fill(~case.mask, torch.nan)
        case.require_same(weights, wanted, "entries of a row that are all equal must weigh the same")


def _check_shift(case: _Case) -> None:
    if not case.rule.normalised:
        return
    shifts = torch.tensor([[3.0], [-8.0], [16.0]], dtype=case.excess.dtype)
    shifted = case.weights(case.excess + shifts)
    case.require_same(shifted, case.fresh, "adding a constant to a row must not change its weights")


def _check_mask(case: _Case) -> None:
    if case.mask.all():
        return
    dual, weights = case.dual(), case.fresh
    for other in (torch.nan, torch.inf, -torch.inf):
        excess = case.excess.masked_fill(~case.mask, other)
        promise = f"entries under the mask must change nothing, but {other} there does"
        case.require_same(case.dual(excess), dual, f"{promise} (dual)")
        case.require_same(case.weights(excess), weights, f"{promise} (weights)")


def _check_absent(case: _Case) -> None:
    if case.mask.all():
        return
    for row in range(len(case.excess)):
        counts = case.mask[row]
        alone = case.excess[row : row + 1, counts]
        weights = case.weights(alone, torch.ones_like(alone, dtype=torch.bool))
        masked = case.fresh[row : row + 1, counts]
        case.require_same(masked, weights, "masked entries must weigh on the others as if they were absent")


def _check_rows_alone(case: _Case) -> None:
    together = case.fresh
    for row in range(len(case.excess)):
        alone = case.weights(case.excess[row : row + 1], case.mask[row : row + 1])
        case.require_same(alone, together[row : row + 1], "a row must weigh alike alone and among other rows")


def _check_column_order(case: _Case) -> None:
    back = case.weights(case.excess.flip(-1), case.mask.flip(-1)).flip(-1)
    case.require_same(back, case.fresh, "the order of the columns must not matter")


def _check_transposed(case: _Case) -> None:
    excess, mask = case.excess.T.contiguous().T, case.mask.T.contiguous().T
    promise = "transposed views must weigh like plain tensors"
    case.require_same(case.weights(excess, mask), case.fresh, promise)


def _check_fused(case: _Case) -> None:
    if not isinstance(case.rule, Fused):
        return
    everything = case.mask.all()
    result = case.rule.weights_and_dual(case.excess.masked_fill(~case.mask, NEVER), None if everything else case.mask)
    if result is None:
        return
    weights, dual = result
    promise = "weights_and_dual must give what weights and dual give"
    case.require_same(weights.masked_fill(~case.mask, torch.nan), case.fresh, f"{promise} (weights)")
    case.require_same(dual.double(), case.dual().double(), f"{promise} (dual)")
    assert (weights[~case.mask] == 0).all(), case.fail("weights_and_dual must give 0 where there is no entry", weights)


def _check_empty_row(case: _Case) -> None:
    mask = case.mask.clone()
    mask[0] = False
    dual = case.dual(mask=mask)
    promise = "a row without a True in its mask needs a finite dual, got"
    assert dual.isfinite().all(), case.fail(promise, dual)
    weights = case.rule.weights(case.excess, dual)
    promise = "a row without a True in its mask must not weigh NaN, got"
    assert not weights.isnan().any(), case.fail(promise, weights)
    promise = "a row without a True in its mask must leave the other rows alone"
    case.require_same(case.weights(mask=mask)[1:], case.fresh[1:], promise)


def _check_entry_by_entry(case: _Case) -> None:
    dual, columns = case.dual(), case.excess.shape[1]
    parts = [case.rule.weights(case.excess[:, place : place + 1], dual) for place in range(columns)]
    weights = torch.cat(parts, 1).masked_fill(~case.mask, torch.nan)
    promise = "a weight must follow from its own excess and its row's dual alone, whatever else is in the tile"
    case.require_same(weights, case.fresh, promise)


def _check_exponential(case: _Case) -> None:
    exponent = getattr(case.rule, "exponent", None)
    if not isinstance(case.rule, Exponential) or exponent is None:
        return
    dual = case.dual()
    weights = ((case.excess - dual) / exponent).exp().to(case.excess.dtype).masked_fill(~case.mask, torch.nan)
    promise = f"with exponent {exponent:g}, weights must be exp((excess - dual) / exponent)"
    case.require_same(case.fresh, weights, promise)
    scaled = (case.excess.double() / exponent).masked_fill(~case.mask, -torch.inf)
    mean = scaled.logsumexp(-1, keepdim=True) - case.mask.sum(-1, keepdim=True).double().log()
    settled = case.rule.settle(exponent * mean)
    promise = "settle must give the dual from exponent * log mean exp(excess / exponent)"
    case.require_same(settled / exponent, dual.double() / exponent, promise)


def _check_blend(case: _Case) -> None:
    old, new = case.dual(case.excess.roll(1, 0), case.mask.roll(1, 0)), case.dual()
    case.require_same(case.rule.blend(old, new, 1.0), new, "blend(old, new, 1) must be new")
    for gamma in (0.1, 0.5, 1.0):
        promise = f"blending a dual with itself (gamma {gamma}) must give that dual"
        case.require_same(case.rule.blend(new, new, gamma), new, promise)
    blended = case.rule.blend(old, new, 0.3)
    promise = f"blend must give {list(new.shape)}"
    assert blended.shape == new.shape, case.fail(f"{promise}, got {list(blended.shape)}")
    assert blended.isfinite().all(), case.fail("blend of finite duals must be finite, got", blended)
    weights = case.rule.weights(case.excess, blended)[case.mask]
    promise = "weights of a blended dual must be at least 0 and not NaN, got"
    assert (weights >= 0).all(), case.fail(promise, weights)


_CHECKS: tuple[Callable[[_Case], None], ...] = (
    _check_shapes,
    _check_leaves_its_arguments_alone,
    _check_not_negative,
    _check_mean_one,
    _check_equal_entries_weigh_alike,
    _check_monotone,
    _check_shift,
    _check_mask,
    _check_absent,
    _check_rows_alone,
    _check_column_order,
    _check_transposed,
    _check_entry_by_entry,
    _check_exponential,
    _check_fused,
    _check_empty_row,
    _check_blend,
)
