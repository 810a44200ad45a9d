"""A race: arms are trained without a part of the samples and judged by it, and the winner takes all of them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from steering.auto.estimate import answers_of, base_of, cross_fitted, estimate
from steering.auto.posterior import fit_posterior
from steering.auto.weights import FittedWeights
from steering.errors import UserError
from steering.references.store import ReferenceLosses
from steering.settings import Arm, Recipe, Strict
from steering.task import HeldOut, Task
from steering.training.training_sets import training_samples

FOLDS = 4
MARGIN = 1.0  # paired standard errors by which both metrics have to improve
FRESH, LEAK = 100, 3.0  # samples to tell a leak by, and the t value from which it is one


class Lane(Strict):
    """How one arm did against the first one: improvements of the profile loss, in nats a label."""

    name: str
    mean: float  # over labels
    half: float  # half width of its paired 95 % interval
    balanced: float  # over classes, all alike
    balanced_half: float  # half width of that

    def __str__(self) -> str:
        both = ((self.mean, self.half), (self.balanced, self.balanced_half))
        figures = (f"{mean:+.4f} \u00b1 {half:.4f}" for mean, half in both)
        return f"{self.name:<20} {next(figures)} a label, {next(figures)} balanced over classes"


class Outcome(Strict):
    """What came of a race."""

    winner: str
    arm: Arm
    lanes: list[Lane]
    leaked: bool | None  # None where there are no fresh samples to know it by

    @property
    def sentence(self) -> str:
        leak = {True: "the reference has seen these labels", None: "no fresh samples to exclude a leak by", False: ""}
        guard = f" ({leak[self.leaked]}: plain training and auto alone may race)" if self.leaked is not False else ""
        return f"the race is won by {self.winner}{guard}"


def run(
    task: Task,
    reference: ReferenceLosses,
    *,
    recipe: Recipe,
    seed: int,
    folds: int = 0,
    device: torch.device | str = "cpu",
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Outcome, FittedWeights | None]:
    """Races arms by the profile loss of labels that they were not trained on.

    The profile loss is minus the log likelihood of the mixture of ``steering.auto.posterior``, fitted to an arm's
    cross-fitted scores: it charges no arm for being too sure about labels that are wrong. The first arm is ``auto``
    with folds; another one wins if its loss is lower by more than one paired standard error both over labels and over
    classes. Where the reference was trained on these labels, or may have been, only plain training and ``auto`` race.

    Args:
        task: drawn for this repetition, in memory.
        reference: its losses.
        recipe: how targets are trained; its arms without a selector race.
        seed: of the repetition.
        folds: number of parts; 0 takes 4.
        device: where targets are trained.
        note: told what goes on, the cost before it is spent.

    Returns:
        What came of it, and the base weights of the winner if it has some.
    """
    folds = folds or FOLDS
    answer = answers_of(task, reference, recipe.batch)
    if answer.labels is None or len(answer.ids) != task.size:
        raise UserError("a race is for classification in memory: leave race out")
    leaked = seems_leaked(task, reference)
    arms = contestants(recipe, folds, everything=leaked is False)
    cost = folds * len(arms) + sum(getattr(base_of(arm), "folds", 0) for arm in arms.values() if not arm.distill)
    note(f"a race of {len(arms)} arms on {folds} folds: {cost} trainings on a part before that of the winner on all")
    every = {"recipe": recipe, "seed": seed, "device": device}
    fitted: dict[str | None, FittedWeights | None] = {None: None}
    likelihoods: dict[str, Tensor] = {}
    for name, arm in arms.items():
        settings = base_of(arm)
        if settings is not None and arm.base not in fitted:
            fitted[arm.base] = estimate(task, reference, folds=settings.folds, note=note, **every)
        weights = fitted[arm.base]
        base = None if weights is None else weights.weights
        note(f"race of {name}")
        scores = cross_fitted(task, arm, reference=reference, base=base, folds=folds, **every)[answer.ids]
        likelihoods[name] = fit_posterior(scores, answer.labels).likelihoods(scores, answer.labels)[1]
    first, *others = arms
    lanes = [_lane(name, likelihoods[name] - likelihoods[first], answer.labels) for name in others]
    winner = max(lanes, key=_margin, default=None)
    name = winner.name if winner is not None and _margin(winner) > MARGIN else first
    outcome = Outcome(winner=name, arm=arms[name], lanes=lanes, leaked=leaked)
    for line in (f"against {first}, improvements in nats:", *map(str, lanes), outcome.sentence):
        note(line)
    return outcome, fitted[arms[name].base]


def contestants(recipe: Recipe, folds: int, everything: bool) -> dict[str, Arm]:
    """The arms of a race, the first one to be beaten."""
    plain = recipe.arms[recipe.baseline].model_copy(update={"base": None})
    auto, half = plain.model_copy(update={"base": "auto"}), {"distill": 0.5}
    if not everything:
        return {"auto": auto, recipe.baseline: plain}
    both = plain.model_copy(update={"base": f"auto(folds={folds})"})
    mixed = {"distill": plain.model_copy(update=half), "auto_folds_distill": both.model_copy(update=half)}
    steered = Arm(rule="kl(temperature=0.5)", reference_scale=1.0)
    rest = {name: arm for name, arm in recipe.arms.items() if arm.selector is None and base_of(arm) is None}
    return {"auto_folds": both, "auto": auto, recipe.baseline: plain, "kl_0.5": steered} | mixed | rest


def seems_leaked(task: Task, reference: ReferenceLosses) -> bool | None:
    """Whether the reference's losses of fresh samples are higher than those of training samples, by 3 standard errors.

    Fresh samples are the task's held-out ones, noise included. None where it has fewer than 100 of them, or where the
    reference is no model.
    """
    if reference.model is None or not isinstance(task, HeldOut) or task.held_out is None:
        return None  # answers by id are of training samples alone
    fresh = [reference.reference(part.to(reference.device)).per_sample(len(part)) for part in task.held_out(FRESH)]
    seen = reference(training_samples(task).to(reference.device)).per_sample(task.size)
    new, old = (torch.cat([x for x in parts if isinstance(x, Tensor)]).double() for parts in (fresh, [seen]))
    if len(new) < FRESH:
        return None
    error = (new.var() / len(new) + old.var() / len(old)).sqrt()
    return bool((new.mean() - old.mean()) > LEAK * error)


def _lane(name: str, gains: Tensor, labels: Tensor) -> Lane:
    """The improvements ``[n]`` of an arm, over labels and over classes."""
    counts = labels.bincount().double()
    weights = (len(labels) / (counts > 0).sum() / counts)[labels]
    figures = []
    for values in (gains, gains * weights):
        figures += [float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values))]
    return Lane(name=name, mean=figures[0], half=figures[1], balanced=figures[2], balanced_half=figures[3])


def _margin(lane: Lane) -> float:
    """The lesser of both improvements, in standard errors."""
    both = ((lane.mean, lane.half), (lane.balanced, lane.balanced_half))
    return min(1.96 * mean / half if half > 0 else 0.0 for mean, half in both)
