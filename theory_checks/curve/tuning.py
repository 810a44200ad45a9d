"""Hyper-parameters chosen for every method and size, with the same number of trials for all of them."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from steering.settings import Arm
from steering.theory_checks.curve.plan import Method, Plan
from steering.theory_checks.curve.units import Outcome, Unit, unit

Trials = dict[tuple[str, int], list[Method]]  # by method and size
Chosen = dict[tuple[str, int], Method]
Make = Callable[[Sequence[Unit]], list[Outcome]]

WIDEST = 10.0  # factor from the recipe's weight decay to the smallest and the largest that are tried
LEAST = 1e-3  # weight decay in the middle where the recipe has none
PARAMETER = re.compile(r"\b(temperature|rho|alpha|keep)=([0-9.eE+-]+)")


def tuned(plan: Plan, make: Make) -> Chosen:
    """The best settings of every method and size, by the mean error over the tuning seeds.

    Two rounds of ``plan.tune`` trials each, for all methods alike: first the weight decay; then, at the best one, the
    method's own parameter (temperature, rho or alpha of the rule, share of the filter, weight of distillation). A
    method without any, such as plain training, tries weight decays between the neighbours of its best one instead.
    """
    decays = spread(plan.recipe.weight_decay or LEAST, plan.tune)
    first: Trials = {
        (name, size): [method.model_copy(update={"weight_decay": decay}) for decay in decays]
        for name, method in plan.methods.items()
        for size in plan.sizes
    }
    best = _best(plan, first, make, "1")
    second = {key: [method, *second_round(method, decays, plan.tune)] for key, method in best.items()}
    return _best(plan, second, make, "2")


def with_choice(unit: Unit, chosen: Chosen) -> Unit:
    """A unit with what was chosen for its method and size, if anything was."""
    return unit.model_copy(update={"method": chosen.get((unit.name, unit.size), unit.method)})


def at_the_end(plan: Plan, chosen: Chosen) -> list[str]:
    """Methods and sizes for which a weight decay beyond those that were tried might be better still."""
    first, *_, last = spread(plan.recipe.weight_decay or LEAST, plan.tune)
    return [f"{name} at n = {size}" for (name, size), method in chosen.items() if method.weight_decay in (first, last)]


def spread(middle: float, number: int) -> list[float]:
    """Values in equal ratios around one that is among them, or between two if the number is even."""
    return [float(f"{value:.3g}") for value in np.geomspace(middle / WIDEST, middle * WIDEST, number)]


def second_round(method: Method, decays: Sequence[float], number: int) -> list[Method]:
    """Trials of a method's own parameter, or of finer weight decays."""
    if method.data == "filtered":
        return [method.model_copy(update={"keep": share}) for share in shares(number)]
    if method.arm.distill:
        return [_with(method, distill=value) for value in spread(method.arm.distill, number)]
    if match := PARAMETER.search(method.arm.rule):
        name, value = match[1], float(match[2])
        values = shares(number) if name in ("alpha", "keep") else spread(value, number)
        return [_with(method, rule=PARAMETER.sub(f"{name}={new:g}", method.arm.rule, count=1)) for new in values]
    return [method.model_copy(update={"weight_decay": value}) for value in finer(method.weight_decay, decays, number)]


def shares(number: int) -> list[float]:
    """Shares to keep, evenly from 0.3 to 0.9."""
    return np.linspace(0.3, 0.9, number).round(3).tolist()


def finer(best: float | None, decays: Sequence[float], number: int) -> list[float]:
    """Values between the neighbours of the best one, in equal ratios, none of which was tried before."""
    assert best is not None
    index = list(decays).index(best)
    low, high = decays[max(0, index - 1)], decays[min(len(decays) - 1, index + 1)]
    return [float(f"{value:.4g}") for value in np.geomspace(low, high, number + 2)[1:-1]]


def _with(method: Method, **changes) -> Method:
    return method.model_copy(update={"arm": Arm.model_validate(method.arm.model_dump() | changes)})


def _best(plan: Plan, trials: Trials, make: Make, number: str) -> Chosen:
    """The trial of least mean error for every method and size; of equal ones the first."""
    begun = [
        unit(f"{name}-{index}", method, size, seed, folder=f"tuning/round{number}")
        for seed in plan.tuning_numbers()
        for (name, size), methods in trials.items()
        for index, method in enumerate(methods)
    ]
    errors = {key: [0.0] * len(methods) for key, methods in trials.items()}
    for trial, outcome in zip(begun, make(begun), strict=True):
        name, _, index = trial.name.rpartition("-")
        errors[name, trial.size][int(index)] += outcome.error
    return {key: methods[errors[key].index(min(errors[key]))] for key, methods in trials.items()}
