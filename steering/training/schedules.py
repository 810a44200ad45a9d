"""What changes with the step: the learning rate, and gamma, the share of the newest dual in the moving average."""

import math
from functools import cached_property

from steering.settings import Arm, Recipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of step ``step``, counted from 0: linear warm-up, then constant or cosine to zero."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return recipe.learning_rate
    return recipe.learning_rate * _cosine((step - recipe.warmup) / max(1, recipe.steps - recipe.warmup))


class GammaSchedule:
    """gamma as a function of the step.

    FastCLIP's schedule (Wei et al. 2024, section 4) begins at 1, when nothing is worth remembering yet, and comes down
    like a cosine. How far depends on how often a sample comes back: after many epochs its level may be averaged over
    many visits (the rule ``auto``, from the code of DRRho-CLIP).

    An epoch is here as many steps as visit every level once on average. A level is visited when its sample is in a
    gradient step, so a selector makes epochs of the data shorter, but not these.

    Args:
        arm: whose ``gamma``, ``gamma_schedule`` and ``gamma_decay`` these are.
        recipe: its steps and batch.
        size: number of training samples, or a bound on it; samples held out make the epochs by as much too long.
    """

    def __init__(self, arm: Arm, recipe: Recipe, size: int):
        self.arm, self.steps = arm, recipe.steps
        self.per_epoch = max(1, size // recipe.batch)  # steps

    @cached_property
    def final(self) -> float:
        """The gamma at the end of the schedule."""
        if self.arm.gamma == "auto":
            return min(1.0, 4.177 * max(1.0, self.steps / self.per_epoch) ** -0.7265)
        return self.arm.gamma

    @property
    def constant(self) -> bool:
        return self.arm.gamma_schedule == "constant" or self.final == 1

    def __call__(self, step: int) -> float:
        """The gamma of step ``step``, counted from 0."""
        if self.constant:
            return self.final
        if self.arm.gamma_schedule == "cosine":
            step -= step % self.per_epoch
        return self.final + (1 - self.final) * _cosine(min(1.0, step / (self.arm.gamma_decay * self.steps)))


def _cosine(done: float) -> float:
    """Half a cosine from 1 down to 0, by the share that is done."""
    return (1 + math.cos(math.pi * done)) / 2
