"""The contract that every selector keeps, and that the contract bites."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from steering import Pairs, Selector, UserError, registry
from steering.contrastive.jest import Jest
from steering.selectors import Boltzmann, ReferenceOnly, TopK, TopLoss, Uniform
from steering.testing import check_selector

SELECTORS = [
    *(kind(keep=0.25) for kind in (Uniform, TopLoss, ReferenceOnly)),
    TopK(),
    Boltzmann(keep=0.25),
    Boltzmann(keep=1, temperature=1e-6),
    *(Jest(chunks=chunks) for chunks in (1, 16, 1000)),
    Jest(chunks=3, draw=False),
    Jest(chunks=3, form="sigmoid", draw=False, scale=1000.0, reference_scale=5.0, bias=-3.0),
    Jest(form="softmax", scale=1000.0),
]


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_every_selector_keeps_the_contract_and_is_a_value(selector):
    """Equal to, and written as, its own constructor call."""
    check_selector(selector)
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


def choosing(choose):
    """A selector whose choice is made of the correct one's."""

    def call(self, losses, reference, *, number, generator):
        return choose(Whole()(losses, reference, number=number, generator=generator), losses, number, generator)

    return type("Faulty", (Whole,), {"__call__": call})()


def refuse(*_):
    raise UserError("never")


# The promise that the users of a selector are told of, and a choice that breaks it.
BROKEN = {
    r"gives places \[7\] int64, got \[8\]": lambda right, *_: torch.cat([right, right[:1]]),
    r"gives places \[1\] int64, got \[7\]": lambda _, losses, number, chance: torch.arange(int(0.35 * len(losses))),
    r"gives places \[7\] int64, got \[7\] torch.bool": lambda right, *_: right > 0,
    "every place is given once at most": lambda _, losses, number, __: torch.zeros(number, dtype=torch.long),
    "places lie from 0 to 19": lambda right, *_: right + 1,
    "the generator is the only source of chance": lambda _, losses, number, chance: torch.randperm(len(losses))[
        :number
    ],
    r"leaves the global generators alone, got another state of \['numpy'\]": lambda right, *_: (
        np.random.rand(),
        right,
    )[1],
    "does not write into its arguments": lambda right, losses, *_: (losses.data.sub_(losses.data.mean()), right)[1],
    "refuses a loss per sample, rows of entries and Pairs": refuse,
}


def test_the_selector_that_is_broken_below_is_whole():
    check_selector(Whole())


@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_selector_is_told_which_promise_it_breaks(promise):
    with pytest.raises(AssertionError, match=promise) as caught:
        check_selector(choosing(BROKEN[promise]))
    assert "Faulty" in str(caught.value), "the message names the selector"


class NeedsTheReference(Whole):
    """Says that it does not use the reference, and does."""

    def __call__(self, losses, reference, *, number, generator):
        return (losses - reference).argsort()[:number]


def test_a_selector_that_hides_its_use_of_the_reference_fails():
    with pytest.raises(TypeError, match="NoneType"):
        check_selector(NeedsTheReference())


def test_a_keep_of_nothing_is_no_selector():
    with pytest.raises(AssertionError, match="keep lies above 0 and at most 1, got 0"):
        check_selector(Whole(keep=0))


def test_a_selector_without_all_its_parts_is_told_what_it_misses():
    half: Any = type("Half", (), {"keep": 0.5})()
    with pytest.raises(AssertionError, match="a selector needs uses_reference, __call__"):
        check_selector(half)
