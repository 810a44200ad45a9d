"""The contract of a selector as runnable checks, for our selectors and yours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs, leaves_of, with_leaves
from steering.errors import UserError
from steering.selectors.selector import Selector
from steering.testing._contract import Contract, disturb
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
            case.check()


@dataclass(frozen=True)
class _Case(Contract):
    """One selector on one batch of candidates."""

    selector: Selector
    name: str
    losses: Tensor | Pairs
    reference: Tensor | Pairs | None

    def __str__(self) -> str:
        return f"{self.selector!r} on {self.name}"

    @property
    def candidates(self) -> int:
        return len(leaves_of(self.losses)[0])

    def __call__(self, number: int, losses: Tensor | Pairs | None = None) -> Tensor:
        losses = self.losses if losses is None else losses
        return self.selector(losses, self.reference, number=number, generator=torch.Generator().manual_seed(0))

    def is_accepted(self) -> bool:
        try:
            self(1)
        except UserError:
            return False
        return True

    def check_choices(self) -> None:
        for number in (7, 1, self.candidates):
            tensors = leaves_of(self.losses) + ([] if self.reference is None else leaves_of(self.reference))
            before = [value.clone().nan_to_num() for value in tensors]
            indices = self(number)
            unchanged = all(torch.equal(old, new.nan_to_num()) for old, new in zip(before, tensors, strict=True))
            self.require(unchanged, "does not write into its arguments", "changed losses")
            well_formed = isinstance(indices, Tensor) and (indices.shape, indices.dtype) == ((number,), torch.int64)
            self.require(well_formed, f"gives places [{number}] int64", f"{list(indices.shape)} {indices.dtype}")
            inside = 0 <= int(indices.min()) and int(indices.max()) < self.candidates
            self.require(inside, f"places lie from 0 to {self.candidates - 1}", indices)
            self.require(len(indices.unique()) == number, "every place is given once at most", indices)
            disturb()
            again = self(number)
            promise = "the generator is the only source of chance, so that the same one gives the same places"
            self.require(torch.equal(indices, again), promise, f"{indices} and then {again}")
            self.quietly("a selector", lambda number=number: self(number))

    def check_losses_with_gradient(self) -> None:
        leaves = [value.clone().requires_grad_() for value in leaves_of(self.losses)]
        indices, plain = self(7, with_leaves(self.losses, leaves)), self(7)
        promise = "chooses alike whether or not the losses carry a gradient"
        self.require(torch.equal(indices, plain), promise, f"{indices} and {plain}")
        self.require(all(leaf.grad is None for leaf in leaves), "computes no gradient", "one")


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
