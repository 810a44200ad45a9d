"""What a selector is."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs


@runtime_checkable
class Selector(Protocol):
    """Chooses which samples of a larger batch are worth a gradient step.

    The loop draws ``number / keep`` candidates, scores them without side effects (evaluation mode, no
    gradient) and trains on those that are chosen. With several ranks each chooses among its own candidates.

    Attributes:
        keep: share of the candidates that is kept, above 0 and at most 1.
        uses_reference: whether the reference has to score the candidates at all.
    """

    @property
    def keep(self) -> float: ...

    @property
    def uses_reference(self) -> bool: ...

    def __call__(
        self,
        losses: Tensor | Pairs,
        reference: Tensor | Pairs | None,
        *,
        number: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Chooses ``number`` of n candidates.

        Args:
            losses: of the target: ``[n]``, ``[n, columns]`` with NaN where a candidate has no entry (tokens), or Pairs
                of n.
            reference: the reference's losses of the same candidates.
            number: how many to keep, at most n.
            generator: the only source of chance, on the CPU.

        Returns:
            Indices of candidates, ``[number]`` int64, each at most once.
        """
        ...
