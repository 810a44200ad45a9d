"""The dose of steering that the labels themselves ask for."""

from dataclasses import dataclass

from steering.errors import UserError
from steering.rules.uniform import Uniform

__all__ = ["Auto"]


@dataclass(frozen=True)
class Auto(Uniform):
    """Weights by the posterior that a label is right, fitted to the noisy labels by maximum likelihood; no knob.

    The weights are those of ``steering.auto``, given to the Steerer as base weights: ``steerer.fit(scores, labels)``
    in a loop of one's own; ``steer run TASK --rule auto`` fits them itself. They are uniform where the reference knows
    nothing, where it was trained on these very labels, and where no label looks wrong.

    Args:
        folds: 0 takes the reference alone, at no training; k trains k plain targets, each without a fold of the
            samples, and takes their scores beside the reference's. ``steer run`` alone can do that.
        race: whether that is the start of a race among arms (``steering.auto.race``), whose winner is trained.
    """

    folds: int = 0
    race: bool = False
    needs_base = True

    def __post_init__(self):
        if not isinstance(self.folds, int) or self.folds < 0 or self.folds == 1:
            raise UserError(f"auto has folds of 0, or of 2 and more, got {self.folds!r}")
