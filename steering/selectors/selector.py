"""What a selector is, and what selectors share: the score of a candidate, and two ways to choose by a score."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from steering.arrange import tensor_of
from steering.contrastive.pairs import Pairs, is_pairs
from steering.errors import UserError


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
        self, losses: Tensor | Pairs, reference: Tensor | Pairs | None, *, number: int, generator: torch.Generator
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


def check_keep(selector: str, keep: float) -> None:
    if not 0 < keep <= 1:
        raise UserError(f"{selector} needs a keep above 0 and at most 1, got {keep:g}")


def per_candidate(selector: str, losses: Tensor | Pairs | None) -> Tensor:
    """One loss a candidate, ``[n]``: the loss itself, the mean of its entries, or the contrastive loss of a pair.

    Args:
        selector: for the message.
        losses: ``[n]``, ``[n, columns]`` with NaN where there is no entry, or Pairs.

    Returns:
        ``[n]``, -inf for a candidate without entries, from which there is nothing to learn.

    Raises:
        UserError: there are none, or one of ``[n]`` is NaN.
    """
    if losses is None:
        raise UserError(f"{selector} needs the reference's losses of the candidates, got None")
    if is_pairs(losses):
        return losses.per_sample()
    losses = tensor_of(losses, "losses")
    if losses.dim() not in (1, 2):
        raise UserError(f"{selector} chooses by losses [n], [n, columns] or Pairs, got {list(losses.shape)}")
    if losses.dim() == 1 and losses.isnan().any():
        raise UserError(f"{selector} needs a loss of every candidate, got NaN at {_first(losses.isnan())}")
    if losses.dim() == 2:
        losses = losses.nanmean(-1).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return losses


def excess(selector: str, losses: Tensor | Pairs, reference: Tensor | Pairs | None) -> Tensor:
    """Loss minus reference loss of every candidate, ``[n]``: RHO-LOSS, JEST's learnability of one sample."""
    scores, reference_scores = per_candidate(selector, losses), per_candidate(selector, reference)
    if scores.shape != reference_scores.shape:
        raise UserError(
            f"{selector} compares losses of the same candidates, got {len(scores)} of the target and "
            f"{len(reference_scores)} of the reference"
        )
    if not is_pairs(losses) and not is_pairs(reference):
        one, other = (tensor_of(x, "losses").isnan() for x in (losses, reference))
        if one.shape == other.shape and not torch.equal(one, other.to(one.device)):
            unlike = (one != other.to(one.device)).reshape(len(one), -1).any(-1)
            raise UserError(f"{selector} compares losses of the same entries, got others for {_first(unlike)}")
    return torch.where(scores.isneginf(), scores, scores - reference_scores.to(scores))


def _first(where: Tensor) -> str:
    """The first three candidates of ``[n]`` bool."""
    return "candidates " + ", ".join(map(str, where.nonzero()[:3, 0].tolist()))


def largest(scores: Tensor, number: int) -> Tensor:
    """Indices of the ``number`` largest of ``[n]`` scores, the first of equals first."""
    if number > len(scores):
        raise UserError(f"{number} are to be chosen of {len(scores)} candidates: draw more of them")
    return scores.argsort(descending=True, stable=True)[:number]


def sample(scores: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Draws ``number`` indices one after the other, each with probability proportional to exp(score).

    The ``number`` largest sums of score and Gumbel noise have exactly that law (Kool et al. 2019, section 2),
    and exp is never taken, so that no score is too large.

    Args:
        scores: ``[n]``; -inf is drawn after everything else.
        number: at most n.
        generator: on the CPU.
    """
    noise = torch.empty(len(scores), dtype=torch.float64).exponential_(generator=generator)
    return largest(scores - noise.log().to(scores), number)
