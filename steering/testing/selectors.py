"""The contract of a selector as runnable checks, for our selectors and yours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs, leaves_of, with_leaves
from steering.errors import UserError
from steering.selectors.selector import Selector
from steering.testing._generators import disturb, states
from steering.training.seeds import untouched


def check_selector(selector: Selector) -> None:
    """Checks that a selector keeps the contract that the training loop builds on.

    It is tried on a loss per sample, on rows of entries (tokens) of unlike lengths, and on Pairs, in float32 and
    float64, for one candidate, seven and all. A selector that is not for all three kinds refuses the others with a
    UserError.

    Args:
        selector: an instance, ``TopK(keep=0.1)`` say.

    Raises:
        AssertionError: names the selector, the promise that it breaks, and what was seen.

    Example:
        >>> from steering.selectors import TopK
        >>> check_selector(TopK(keep=0.1))
    """
    missing = [part for part in ("keep", "uses_reference", "__call__") if not hasattr(selector, part)]
    assert not missing, f"{selector!r}: a selector needs {', '.join(missing)}; see Selector"
    assert 0 < selector.keep <= 1, f"{selector!r}: keep lies above 0 and at most 1, got {selector.keep}"
    uses = selector.uses_reference
    assert isinstance(uses, bool), f"{selector!r}: uses_reference is True or False, got {uses!r}"
    # The batch that is tried first may be overwritten by a faulty selector; what is checked is a second one.
    accepted = [case for case, trial in zip(_cases(selector), _cases(selector), strict=True) if trial.is_accepted()]
    assert accepted, f"{selector!r} refuses a loss per sample, rows of entries and Pairs"
    with untouched():
        for case in accepted:
            for number in (7, 1, case.candidates):
                _check_leaves_its_arguments_alone(case, number)
                _check_places(case, number)
                _check_same_again(case, number)
                _check_leaves_the_generators_alone(case, number)
            _check_losses_with_gradient(case)


@dataclass(frozen=True)
class _Case:
    """One selector on one batch of candidates."""

    selector: Selector
    name: str
    losses: Tensor | Pairs
    reference: Tensor | Pairs | None

    @property
    def candidates(self) -> int:
        return len(leaves_of(self.losses)[0])

    def __call__(self, number: int, losses: Tensor | Pairs | None = None, *, seed: int = 0) -> Tensor:
        losses = self.losses if losses is None else losses
        generator = torch.Generator().manual_seed(seed)
        return self.selector(losses, self.reference, number=number, generator=generator)

    def is_accepted(self) -> bool:
        try:
            self(1)
        except UserError:
            return False
        return True

    def fail(self, promise: str, got: object) -> str:
        """The message of a broken promise."""
        return f"{self.selector!r} on {self.name}: {promise}, got {got}"


def _cases(selector: Selector) -> list[_Case]:
    """Twenty candidates of every kind; a selector that does not use the reference is not given one."""
    chance = torch.Generator().manual_seed(0)
    cases = []
    for dtype in (torch.float32, torch.float64):
        losses, reference = torch.rand(2, 20, generator=chance, dtype=dtype)
        entries = torch.rand(2, 20, 5, generator=chance, dtype=dtype)
        entries[:, torch.rand(20, 5, generator=chance) < 0.3] = torch.nan
        sides = torch.nn.functional.normalize(torch.randn(4, 20, 5, generator=chance, dtype=dtype), dim=-1)
        kinds = [
            ("a loss per sample", losses, reference),
            ("rows of entries", *entries),
            ("Pairs", Pairs(sides[0], sides[1], 10.0), Pairs(sides[2], sides[3], 20.0)),
        ]
        for kind, target_losses, reference_losses in kinds:
            name = f"{kind} in {str(dtype)[6:]}"
            cases.append(_Case(selector, name, target_losses, reference_losses if selector.uses_reference else None))
    return cases


def _tensors(losses: Tensor | Pairs | None) -> list[Tensor]:
    return [] if losses is None else leaves_of(losses)


def _check_places(case: _Case, number: int) -> None:
    places = case(number)
    promise = f"gives places [{number}] int64"
    right = isinstance(places, Tensor) and places.shape == (number,) and places.dtype == torch.int64
    assert right, case.fail(promise, f"{list(places.shape)} {places.dtype}")
    promise = f"places lie from 0 to {case.candidates - 1}"
    assert 0 <= int(places.min()) and int(places.max()) < case.candidates, case.fail(promise, places)
    assert len(places.unique()) == number, case.fail("every place is given once at most", places)


def _check_same_again(case: _Case, number: int) -> None:
    first = case(number)
    disturb()
    again = case(number)
    promise = "the generator is the only source of chance, so that the same one gives the same places"
    assert torch.equal(first, again), case.fail(promise, f"{first} and then {again}")


def _check_leaves_its_arguments_alone(case: _Case, number: int) -> None:
    before = [value.clone() for value in _tensors(case.losses) + _tensors(case.reference)]
    case(number)
    after = _tensors(case.losses) + _tensors(case.reference)
    unchanged = all(torch.equal(old.nan_to_num(), new.nan_to_num()) for old, new in zip(before, after, strict=True))
    assert unchanged, case.fail("does not write into its arguments", "changed losses")


def _check_leaves_the_generators_alone(case: _Case, number: int) -> None:
    before = states()
    case(number)
    touched = [name for name, state in states().items() if state != before[name]]
    assert not touched, case.fail("leaves the global generators alone", f"another state of {touched}")


def _check_losses_with_gradient(case: _Case) -> None:
    leaves = [value.clone().requires_grad_() for value in _tensors(case.losses)]
    losses = with_leaves(case.losses, leaves)
    places = case(7, losses)
    promise = "chooses alike whether or not the losses carry a gradient"
    assert torch.equal(places, case(7)), case.fail(promise, f"{places} and {case(7)}")
    assert all(leaf.grad is None for leaf in leaves), case.fail("computes no gradient", "one")
