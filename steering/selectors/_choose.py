"""What several selectors share: checks, the excess loss, and two ways to choose by a score."""

import torch
from torch import Tensor

from steering.contrastive.pairs import Pairs
from steering.errors import UserError
from steering.selectors.selector import score


def check_keep(selector: str, keep: float) -> None:
    if not 0 < keep <= 1:
        raise UserError(f"{selector} needs a keep above 0 and at most 1, got {keep:g}")


def one_each(selector: str, losses: Tensor | Pairs | None) -> Tensor:
    """One loss a candidate, ``[n]``."""
    if losses is None:
        raise UserError(f"{selector} needs the reference's losses of the candidates, got None")
    values = score(losses)
    if values.dim() != 1:
        raise UserError(
            f"{selector} chooses by one loss a sample, [n], or Pairs, got losses of shape {list(values.shape)}: "
            f"average every sample's own losses first"
        )
    return values


def excess(selector: str, losses: Tensor | Pairs, reference: Tensor | Pairs | None) -> Tensor:
    """Loss minus reference loss of every candidate, ``[n]``: RHO-LOSS, JEST's learnability of one sample."""
    mine, known = one_each(selector, losses), one_each(selector, reference)
    if mine.shape != known.shape:
        raise UserError(
            f"{selector} compares losses of the same candidates, got {len(mine)} of the target and {len(known)} "
            f"of the reference"
        )
    return mine - known.to(mine)


def largest(scores: Tensor, number: int) -> Tensor:
    """Places of the ``number`` largest of ``[n]`` scores, the first of equals first."""
    return scores.argsort(descending=True, stable=True)[:number]


def sample(scores: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Draws ``number`` places one after the other, each with probability proportional to exp(score).

    The ``number`` largest sums of score and Gumbel noise have exactly that law (Kool et al. 2019, section 2),
    and exp is never taken, so that no score is too large.

    Args:
        scores: ``[n]``; -inf is drawn after everything else.
        number: at most n.
        generator: on the CPU.
    """
    noise = torch.empty(len(scores), dtype=torch.float64).exponential_(generator=generator)
    return largest(scores - noise.log().to(scores), number)
