"""Selectors that score every candidate by itself: RHO-LOSS and what it has to be compared with."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs, leaves_of
from steering.errors import UserError
from steering.selectors.selector import check_keep, excess, largest, per_candidate, sample

__all__ = ["Boltzmann", "ReferenceOnly", "TopK", "TopLoss", "Uniform"]


@dataclass(frozen=True)
class ByScore:
    """Keeps the candidates of the highest score. On Pairs every pair is scored by its contrastive loss, and alone.

    Args:
        keep: share of the candidates, above 0 and at most 1.
    """

    keep: float
    name: ClassVar[str]
    uses_reference = True

    def __post_init__(self):
        check_keep(self.name, self.keep)

    def score(self, losses: Tensor | Pairs, reference: Tensor | Pairs | None, generator: torch.Generator) -> Tensor:
        """``[n]``, higher is better; any chance is the generator's."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self, losses: Tensor | Pairs, reference: Tensor | Pairs | None, *, number: int, generator: torch.Generator
    ) -> Tensor:
        """Indices of those to keep, ``[number]``."""
        return largest(self.score(losses, reference, generator), number)


@dataclass(frozen=True)
class TopK(ByScore):
    """Keeps the candidates of largest loss minus reference loss (RHO-LOSS, Mindermann et al. 2022, section 3).

    Learnable, worth learning, not yet learnt: without the reference the wrong labels would come first. Nothing
    is left to chance, and there is no threshold: the largest are kept even where all are below zero. ``jest`` scores
    pairs jointly.

    Args:
        keep: of ByScore; the paper keeps 32 of 320.

    Example:
        >>> losses, reference = torch.tensor([3.0, 5.0, 2.0, 1.0]), torch.tensor([1.0, 5.0, 1.0, 1.0])
        >>> TopK(keep=0.5)(losses, reference, number=2, generator=torch.Generator())
        tensor([0, 2])
    """

    keep: float = 0.1
    name = "top_k"

    def score(self, losses, reference, generator):
        return excess(self.name, losses, reference)


@dataclass(frozen=True)
class Boltzmann(ByScore):
    """Draws candidates with probability proportional to exp(excess / temperature), none of them twice.

    The Boltzmann form of RHO-LOSS (Mindermann et al. 2022). The authors' code draws with replacement, so that
    a candidate far above the others may fill its batch; here it is drawn first and the others follow.

    Args:
        keep: of ByScore.
        temperature: in units of the loss, above 0. Towards 0 this is ``top_k``, towards infinity ``uniform``.
    """

    temperature: float = 0.25
    name = "boltzmann"

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"boltzmann needs a temperature above 0, got {self.temperature:g}")

    def score(self, losses, reference, generator):
        return excess(self.name, losses, reference) / self.temperature

    @torch.no_grad()
    def __call__(self, losses, reference, *, number, generator):
        return sample(self.score(losses, reference, generator), number, generator)


@dataclass(frozen=True)
class TopLoss(ByScore):
    """Keeps the candidates of largest loss: online hard example mining, selective backprop without chance.

    What cannot be learned (a wrong label) has a large loss too and is kept for good, which is what a reference
    is there to prevent (Shrivastava et al. 2016; Jiang et al. 2019; JEST's "hard learner").
    """

    name = "top_loss"
    uses_reference = False

    def score(self, losses, reference, generator):
        return per_candidate(self.name, losses)


@dataclass(frozen=True)
class ReferenceOnly(ByScore):
    """Keeps the candidates of lowest reference loss: a filter by the reference, batch by batch.

    JEST calls it "easy reference" (Evans et al. 2024, section 2); data filtering networks do the same once for
    the whole data set (Fang et al. 2024), there by the similarity of a pair, here for Pairs by its contrastive
    loss among the candidates.
    """

    name = "reference_only"

    def score(self, losses, reference, generator):
        losses = per_candidate(self.name, reference)
        return torch.where(losses.isneginf(), losses, -losses)


@dataclass(frozen=True)
class Uniform(ByScore):
    """Keeps a random share of the candidates (random-k), at the cost of a selector that scores them."""

    name = "uniform"
    uses_reference = False

    def score(self, losses, reference, generator):
        return torch.rand(len(leaves_of(losses)[0]), generator=generator)
