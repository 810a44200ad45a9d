"""What a weighting rule is."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Rule(Protocol):
    """A worst-case risk over rows of excess loss, written as a level per row and the weights it implies.

    A row is what one distribution is taken over: the whole batch for classification, the negatives of one
    anchor for contrastive learning. The level holds the row's dual variables (for KL the log-mean-exp, for
    CVaR the quantile, for chi-square the cut-off); it may be remembered from step to step. Columns are
    handled by passing a transposed view, so a rule never needs to know which way it looks.

    Nothing has to be inherited. ``steering.testing.check_rule`` states the contract as runnable checks.

    Attributes:
        width: how many numbers a level has.
        normalised: whether the weights of a fresh level average exactly one in every row.
    """

    @property
    def width(self) -> int: ...

    @property
    def normalised(self) -> bool: ...

    def level(self, excess: Tensor, mask: Tensor, population: int | None) -> Tensor:
        """Finds the level of every row.

        Args:
            excess: loss minus scaled reference loss, ``[rows, columns]``, in the units of the loss.
            mask: True where ``excess`` counts, ``[rows, columns]``. Other entries may hold anything.
            population: number of training samples a row stands for (the n of a radius rho / n), if known.

        Returns:
            ``[rows, width]``, in the precision of the excess, or in float64 where rounding would matter (an
            excess far larger than the temperature). Anything finite for a row whose mask has no True.
        """
        ...

    def blend(self, old: Tensor, new: Tensor, gamma: float) -> Tensor:
        """Moving average ``(1 - gamma) old + gamma new`` in the rule's own unit; all are ``[rows, width]``."""
        ...

    def weights(self, excess: Tensor, level: Tensor) -> Tensor:
        """Weights, at least 0, from ``[rows, columns]`` excess and ``[rows, width]`` levels.

        Weights are relative: 1 is the weight of a sample in a plain average. Entry by entry: a weight follows from
        its own excess and its row's level, and any part of the columns may be asked for.
        """
        ...


@runtime_checkable
class Exponential(Rule, Protocol):
    """A rule whose weights are ``exp((excess - level) / exponent)`` where ``exponent`` is not None.

    Levels of such a rule add up from parts of a row, so that rows of any length can be streamed, and all rows share
    one exponential. The engine makes use of it for Pairs; a rule that does not say so is served row by row.
    """

    @property
    def exponent(self) -> float | Tensor | None:
        """What differences to the level are divided by, in units of the loss; None if this rule is of another form."""
        ...

    def settle(self, level: Tensor) -> Tensor:
        """The rule's level from ``exponent * log mean exp(excess / exponent)``, both ``[rows, 1]``."""
        ...


@runtime_checkable
class Recalling(Rule, Protocol):
    """A rule whose fresh level depends on the one that was remembered, a temperature of each row's own say.

    The engine gives it a memory whatever the gamma.
    """

    def recall(self, excess: Tensor, mask: Tensor, old: Tensor) -> Tensor:
        """Finds the level of every row.

        Args:
            excess, mask: as of ``level``.
            old: remembered levels, ``[rows, width]``, NaN for rows that come for the first time.
        """
        ...


def find_level(rule: Rule, excess: Tensor, mask: Tensor, population: int | None, old: Tensor | None) -> Tensor:
    """The level of every row, ``[rows, width]``, for any kind of rule; ``old`` is what was remembered."""
    if isinstance(rule, Recalling) and old is not None:
        return rule.recall(excess, mask, old)
    return rule.level(excess, mask, population)


@runtime_checkable
class Figures(Protocol):
    """A rule that can tell what its levels mean, for the records of a run."""

    def figures(self, level: Tensor) -> Mapping[str, Tensor]:
        """Figures by name, each ``[rows]`` or a scalar: ``objective``, the risk of the rows; ``temperature``."""
        ...


@runtime_checkable
class Tempered(Protocol):
    """A rule for Pairs that takes its temperature from the model and says how the loss depends on it.

    Attributes:
        nats: whether its loss is in nats, or in units of the similarity.
    """

    @property
    def nats(self) -> bool: ...

    def at(self, temperature: Tensor, negatives: int) -> Exponential:
        """The rule at a temperature.

        Args:
            temperature: a scalar, without gradient, in units of the similarity.
            negatives: of every anchor.
        """
        ...

    def objective(self, linear: Tensor, level: Tensor, temperature: Tensor, negatives: int) -> Tensor:
        """The risk of a batch: its value, and its gradient in features and temperature.

        Args:
            linear: weighted mean of the excess, with the gradient of the features, a scalar.
            level: of this rank's anchors, ``[rows, 1]``.
            temperature: a scalar, with its gradient.
            negatives: of every anchor.
        """
        ...
