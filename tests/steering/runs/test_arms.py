"""Which arms a run has."""

import pytest

from steering import UserError
from steering.runs.config import RunConfig, choose_arms
from steering.settings import Arm, Recipe

RECIPE = Recipe(
    steps=1,
    batch=1,
    arms={
        "erm": Arm(rule="uniform", subtract=False),
        "chosen": Arm(rule="uniform", selector="top_k", subtract=False),
        "kl": Arm(rule="kl(rho=8)", reference_scale=1.0, gamma=0.5),
        "cvar": Arm(rule="cvar(alpha=0.5)"),
    },
    baseline="erm",
)


def chosen(names: str | None = None, recipe: Recipe = RECIPE, **method) -> Recipe:
    return choose_arms(RunConfig(task="digits", recipe=recipe), names, method).recipe


def test_without_options_all_arms_stay():
    assert chosen() == RECIPE


def test_named_arms_come_in_the_order_they_are_named():
    recipe = chosen("kl, erm")
    assert list(recipe.arms) == ["kl", "erm"] and recipe.baseline == "erm"
    assert recipe.arms["kl"] == RECIPE.arms["kl"]


def test_without_the_baseline_the_first_arm_takes_its_place():
    assert chosen("cvar,kl").baseline == "cvar"


def test_the_reference_is_always_there_and_may_be_named():
    assert list(chosen("reference,kl").arms) == ["kl"]
    assert chosen("reference").arms == {}


def test_an_unknown_arm_is_refused_with_the_nearest_name():
    with pytest.raises(
        UserError, match=r"no arm is named 'cvr'; did you mean cvar\? Known: reference, erm, chosen, kl, cvar"
    ):
        chosen("kl,cvr")
    with pytest.raises(UserError, match=r"no arm is named 'zzz'\. Known: "):
        chosen("zzz")


def test_the_users_arm_stands_beside_those_without_reference_and_selector():
    recipe = chosen(rule="kl(rho=80)")
    assert list(recipe.arms) == ["erm", "steered"]
    assert recipe.arms["steered"] == Arm(rule="kl(rho=80)", reference_scale=1.0, gamma=0.5)


def test_what_was_not_typed_of_it_comes_from_the_first_steered_arm():
    arm = chosen(selector="jest", reference_scale="auto").arms["steered"]
    assert arm == Arm(rule="kl(rho=8)", selector="jest", reference_scale="auto", gamma=0.5)


def test_it_can_be_run_alone():
    assert list(chosen("steered", rule="kl(rho=80)").arms) == ["steered"]


@pytest.mark.parametrize("text, scale", [("0.5", 0.5), ("auto", "auto"), ("0", 0.0)])
def test_the_scale_is_auto_or_a_number(text, scale):
    assert chosen(reference_scale=text).arms["steered"].reference_scale == scale


def test_another_scale_is_refused():
    with pytest.raises(UserError, match="--reference-scale is auto or a number of at least 0, got 'half'"):
        chosen(reference_scale="half")


def test_arms_that_are_there_for_the_asking_run_only_when_asked_for():
    more = RECIPE.model_copy(update={"more": {"extra": Arm(rule="kl(rho=1)")}})
    assert list(chosen(recipe=more).arms) == list(RECIPE.arms)
    assert list(chosen("extra,erm", more).arms) == ["extra", "erm"]
    assert list(chosen("all", more).arms) == [*RECIPE.arms, "extra"]
    assert chosen("all", more).more == {}, "what runs is written down once"
