"""What a weighting rule is."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

Population = int | Tensor | None


@runtime_checkable
class Rule(Protocol):
    """A worst-case risk over rows of excess loss, written as dual variables of a row and the weights they imply.

    A row is what one distribution is taken over: the whole batch for classification, the tokens of one document, the
    negatives of one anchor for contrastive learning. The dual of a row holds its dual variables (for KL the
    log-mean-exp, for CVaR the quantile, for chi-square the cut-off); it may be remembered from step to step. Columns
    are handled by passing a transposed view, so a rule never needs to know which way it looks.

    Nothing has to be inherited. ``steering.testing.check_rule`` states the contract as runnable checks.

    Attributes:
        width: how many numbers a dual has.
        normalised: whether the weights of a fresh dual average exactly one in every row.
    """

    @property
    def width(self) -> int: ...

    @property
    def normalised(self) -> bool: ...

    def dual(self, excess: Tensor, mask: Tensor, population: Population) -> Tensor:
        """Finds the dual of every row.

        Args:
            excess: loss minus scaled reference loss, ``[rows, columns]``, in the units of the loss.
            mask: True where ``excess`` counts, ``[rows, columns]``. Other entries may hold anything. For a rule that
                has an attribute ``takes_base``, True, it may hold base weights q instead, float64, 0 where an entry
                does not count: the divergence is then taken to q, and an entry of weight 2 is like two entries.
            population: what a row stands for, the n of a radius rho / n, if known: one number for all rows, or
                ``[rows, 1]``.

        Returns:
            ``[rows, width]``, in the precision of the excess, or in float64 where rounding would matter (an
            excess far larger than the temperature). Anything finite for a row whose mask has no True.
        """
        ...

    def blend(self, old: Tensor, new: Tensor, gamma: float) -> Tensor:
        """Moving average ``(1 - gamma) old + gamma new`` in the rule's own unit; all are ``[rows, width]``."""
        ...

    def weights(self, excess: Tensor, dual: Tensor) -> Tensor:
        """Weights, at least 0, from ``[rows, columns]`` excess and ``[rows, width]`` duals.

        Weights are relative: 1 is the weight of a sample in a plain average. Entry by entry: a weight follows from
        its own excess and its row's dual, and any part of the columns may be asked for.
        """
        ...


@runtime_checkable
class Fused(Rule, Protocol):
    """A rule that finds weights and dual in one go, which is faster where nothing is remembered."""

    def weights_and_dual(self, excess: Tensor, mask: Tensor | None) -> tuple[Tensor, Callable[[], Tensor]] | None:
        """The weights, and what computes the dual once somebody reads it, as ``weights`` and ``dual`` give them.

        Without a population; None where this form of the rule has no short cut.

        Args:
            excess: ``[rows, columns]``; entries that do not count hold ``NEVER``.
            mask: as of ``dual``; None where every entry counts.
        """
        ...


@runtime_checkable
class Exponential(Rule, Protocol):
    """A rule whose weights are ``exp((excess - dual) / exponent)`` where ``exponent`` is not None.

    Duals of such a rule add up from parts of a row, so that rows of any length can be streamed, and all rows share
    one exponential. The engine makes use of it for Pairs; a rule that does not say so is served row by row.
    """

    @property
    def exponent(self) -> float | Tensor | None:
        """What differences to the dual are divided by, in units of the loss; None if this rule is of another form."""
        ...

    def settle(self, dual: Tensor) -> Tensor:
        """The rule's dual from ``exponent * log mean exp(excess / exponent)``, both ``[rows, 1]``."""
        ...


@runtime_checkable
class Recalling(Rule, Protocol):
    """A rule whose fresh dual depends on the one that was remembered, a temperature of each row's own say.

    The engine gives it a memory whatever gamma is.
    """

    def recall(self, excess: Tensor, mask: Tensor, old: Tensor) -> Tensor:
        """Finds the dual of every row.

        Args:
            excess, mask: as of ``dual``.
            old: remembered duals, ``[rows, width]``, NaN for rows that come for the first time.
        """
        ...


def fresh_dual(rule: Rule, excess: Tensor, mask: Tensor, population: Population, remembered: Tensor | None) -> Tensor:
    """The dual of every row, ``[rows, width]``, for any kind of rule; ``remembered`` is None without a memory."""
    if isinstance(rule, Recalling) and remembered is not None:
        return rule.recall(excess, mask, remembered)
    return rule.dual(excess, mask, population)


@runtime_checkable
class Figures(Protocol):
    """A rule that can tell what its duals mean, for the records of a run."""

    def figures(self, dual: Tensor) -> Mapping[str, Tensor | float]:
        """Figures by name, each ``[rows]`` or a number: ``objective``, the risk of the rows; ``temperature``."""
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

    def objective(self, linear: Tensor, dual: Tensor, temperature: Tensor, negatives: int) -> Tensor:
        """The risk of a batch: its value, and its gradient in features and temperature.

        Args:
            linear: weighted mean of the excess, with the gradient of the features, a scalar.
            dual: of this rank's anchors, ``[rows, 1]``.
            temperature: a scalar, with its gradient.
            negatives: of every anchor.
        """
        ...
