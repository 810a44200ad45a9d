"""The contract that every selector keeps, and that the contract bites."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from steering import Pairs, Selector, UserError, registry
from steering.contrastive.jest import Jest
from steering.selectors import Boltzmann, ReferenceOnly, TopK, TopLoss, Uniform
from steering.testing import check_selector

SELECTORS = [
    Uniform(keep=0.25),
    TopLoss(keep=0.25),
    ReferenceOnly(keep=0.25),
    TopK(),
    Boltzmann(keep=0.25),
    Boltzmann(keep=1, temperature=1e-6),
    Jest(),
    Jest(chunks=1),
    Jest(chunks=1000),
    Jest(chunks=3, draw=False),
    Jest(chunks=3, form="sigmoid"),
    Jest(chunks=3, form="sigmoid", draw=False, scale=1000.0, reference_scale=5.0, bias=-3.0),
    Jest(form="softmax", scale=1000.0),
]


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_every_selector_keeps_the_contract(selector):
    check_selector(selector)


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_every_selector_is_a_value(selector):
    """Equal to, and written as, its own constructor call."""
    assert registry.build("selectors", f"{type(selector).__module__}:{selector!r}") == selector
    assert isinstance(selector, Selector)


def test_the_list_above_has_every_selector_of_ours():
    mine = {type(selector) for selector in SELECTORS}
    assert mine == {registry.load("selectors", name) for name in registry.names("selectors")}


def test_the_check_leaves_the_global_generators_alone():
    before = torch.get_rng_state()
    check_selector(TopK())
    assert torch.equal(torch.get_rng_state(), before)


@dataclass(frozen=True)
class Whole:
    """A correct selector, to be broken."""

    keep: float = 0.5
    uses_reference: bool = False

    def __call__(self, losses, reference, *, number, generator):
        if isinstance(losses, Pairs):
            raise UserError("for a loss per sample")
        return torch.randperm(len(losses), generator=generator)[:number]


class TooMany(Whole):
    def __call__(self, losses, reference, *, number, generator):
        return super().__call__(losses, reference, number=number + 1, generator=generator)


class OneShort(Whole):
    """Counts a share of its own instead of what is asked for."""

    def __call__(self, losses, reference, *, number, generator):
        return super().__call__(losses, reference, number=int(0.35 * len(losses)), generator=generator)


class Mask(Whole):
    def __call__(self, losses, reference, *, number, generator):
        places = super().__call__(losses, reference, number=number, generator=generator)
        return torch.zeros(number, dtype=torch.bool).index_fill(0, places[places < number], True)


class WithReplacement(Whole):
    def __call__(self, losses, reference, *, number, generator):
        super().__call__(losses, reference, number=number, generator=generator)
        return torch.randint(len(losses), (number,), generator=generator)


class CountsFromOne(Whole):
    def __call__(self, losses, reference, *, number, generator):
        return 1 + super().__call__(losses, reference, number=number, generator=generator)


class GlobalChance(Whole):
    def __call__(self, losses, reference, *, number, generator):
        super().__call__(losses, reference, number=number, generator=generator)
        return torch.randperm(len(losses))[:number]


class NumPyTrace(Whole):
    """Its choice is right, but somebody else's next NumPy number is another."""

    def __call__(self, losses, reference, *, number, generator):
        np.random.rand()
        return super().__call__(losses, reference, number=number, generator=generator)


class Overwrites(Whole):
    def __call__(self, losses, reference, *, number, generator):
        places = super().__call__(losses, reference, number=number, generator=generator)
        losses.data.sub_(losses.data.mean())
        return places


class NeedsTheReference(Whole):
    """Says that it does not use the reference, and does."""

    def __call__(self, losses, reference, *, number, generator):
        return (losses - reference).argsort()[:number]


class Refuses(Whole):
    def __call__(self, losses, reference, *, number, generator):
        raise UserError("never")


BROKEN = {
    TooMany: r"gives places \[7\] int64, got \[8\]",
    OneShort: r"gives places \[1\] int64, got \[7\]",
    Mask: r"gives places \[7\] int64, got \[7\] torch.bool",
    WithReplacement: "every place is given once at most",
    CountsFromOne: "places lie from 0 to 19",
    GlobalChance: "the generator is the only source of chance",
    NumPyTrace: r"leaves the global generators alone, got another state of \['numpy'\]",
    Overwrites: "does not write into its arguments",
    Refuses: "refuses a loss per sample, rows of entries and Pairs",
}


def test_the_selector_that_is_broken_below_is_whole():
    check_selector(Whole())


@pytest.mark.parametrize("selector", BROKEN, ids=lambda selector: selector.__name__)
def test_a_broken_selector_is_told_which_promise_it_breaks(selector):
    with pytest.raises(AssertionError, match=BROKEN[selector]) as caught:
        check_selector(selector())
    assert selector.__name__ in str(caught.value), "the message names the selector"


def test_a_selector_that_hides_its_use_of_the_reference_fails():
    with pytest.raises(TypeError, match="NoneType"):
        check_selector(NeedsTheReference())


def test_a_keep_of_nothing_is_no_selector():
    with pytest.raises(AssertionError, match="keep lies above 0 and at most 1, got 0"):
        check_selector(Whole(keep=0))


def test_a_selector_without_all_its_parts_is_told_what_it_misses():
    class Half:
        keep = 0.5

    with pytest.raises(AssertionError, match="a selector needs uses_reference, __call__"):
        check_selector(Half())  # type: ignore[arg-type]
