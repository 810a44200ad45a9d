"""JEST: choosing pairs jointly, a chunk at a time."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from steering.errors import UserError
from steering.pairs import Pairs
from steering.selectors._choose import check_keep, largest, sample

__all__ = ["Jest"]


@dataclass(frozen=True)
class Jest:
    """Chooses the pairs that are most learnable together (Evans et al. 2024, section 2).

    The contrastive loss of a pair depends on the company it keeps. So pairs are chosen in chunks, each given
    the chunks before: with the loss of pair i among those chosen already,

        learnability(i) = loss of the target(i) - loss of the reference(i),

    the next chunk is drawn, none twice, with probability proportional to exp(learnability).

    ``form="sigmoid"`` is the paper's: the loss is a sum over pairs of softplus(-z (scale s_ij + bias)) with
    z = 1 for a pair and -1 for two strangers, hence learnability(i) = d_ii + sum over chosen c of (d_ic + d_ci)
    for d the difference of both models. The first chunk is drawn with the exponential of d_ii.

    ``form="softmax"`` follows the code of DRRho-CLIP (Wei et al. 2025), where JEST is a baseline: the loss is
    -scale s_ii plus the mean of both directions' log-sum-exp of scale s over the chosen, and the first chunk is
    drawn with the weights d_ii - min d_ii, linear and not exponential. (There the log-sum-exp runs over the
    pairs chosen on all ranks; here each rank chooses for itself.)

    Args:
        keep: share of the candidates, above 0 and at most 1.
        chunks: rounds, as far as there are places to fill: 16 in the paper, 2 in the code of DRRho-CLIP.
        form: of the contrastive loss that pairs are scored with.
        draw: False takes the largest learnability instead of drawing; the first chunk is drawn all the same.
        scale, reference_scale: inverse temperature of target and reference; None uses each model's own.
        bias, reference_bias: of the sigmoid form, where SigLIP starts; None uses the target's.
    """

    keep: float = 0.2
    chunks: int = 16
    form: Literal["softmax", "sigmoid"] = "softmax"
    draw: bool = True
    scale: float | None = None
    reference_scale: float | None = None
    bias: float = -10.0
    reference_bias: float | None = None
    uses_reference = True

    def __post_init__(self):
        check_keep("jest", self.keep)
        if self.chunks < 1:
            raise UserError(f"jest needs at least 1 of chunks, got {self.chunks}")
        if self.form not in ("softmax", "sigmoid"):
            raise UserError(f"jest has the forms softmax and sigmoid, got {self.form!r}")

    @torch.no_grad()
    def __call__(
        self,
        losses: Tensor | Pairs,
        reference: Tensor | Pairs | None,
        *,
        number: int,
        generator: torch.Generator,
    ) -> Tensor:
        target, known = self._contrast(losses, reference)
        alone = target.alone - known.alone
        chosen = torch.zeros_like(alone, dtype=torch.bool)
        chunk = sample(self._first(alone), self._sizes(number)[0], generator)
        found = [chunk]
        for size in self._sizes(number)[1:]:
            chosen[chunk] = True
            target.meet(chunk)
            known.meet(chunk)
            learnability = alone + target.together() - known.together()
            learnability = learnability.masked_fill(chosen, -torch.inf)
            chunk = sample(learnability, size, generator) if self.draw else largest(learnability, size)
            found.append(chunk)
        return torch.cat(found)

    def _first(self, alone: Tensor) -> Tensor:
        """Log weights of the first chunk, ``[n]``."""
        if self.form == "sigmoid":
            return alone
        # The least learnable pair weighs nothing; log(tiny) lets it in when nobody else is left.
        return (alone - alone.min()).clamp(min=torch.finfo(alone.dtype).tiny).log()

    def _sizes(self, number: int) -> list[int]:
        """Sizes of the chunks, which differ by one at most and add up to ``number``."""
        rounds = max(1, min(self.chunks, number))
        return [number // rounds + (place < number % rounds) for place in range(rounds)]

    def _contrast(self, losses, reference) -> "tuple[_Contrast, _Contrast]":
        """What scores the candidates under target and reference."""
        for owner, value in (("target", losses), ("reference", reference)):
            if not isinstance(value, Pairs):
                got = "nothing" if value is None else f"losses of shape {list(value.shape)}"
                raise UserError(
                    f"jest chooses by how pairs meet one another and needs Pairs, got {got} of the {owner}: use it "
                    f"with a contrastive task, or top_k or boltzmann where every sample has a loss of its own"
                )
        if len(losses.left) != len(reference.left):
            raise UserError(
                f"jest compares losses of the same candidates, got {len(losses.left)} of the target and "
                f"{len(reference.left)} of the reference"
            )
        if self.form == "softmax":
            return _Softmax(losses, self.scale), _Softmax(reference, self.reference_scale)
        known_bias = self.bias if self.reference_bias is None else self.reference_bias
        return _Sigmoid(losses, self.scale, self.bias), _Sigmoid(reference, self.reference_scale, known_bias)


class _Contrast(Protocol):
    """Contrastive losses of all candidates under one model, for a growing set of chosen ones.

    Attributes:
        alone: the part of every candidate's loss that is its own pair's, ``[n]``.
    """

    alone: Tensor

    def meet(self, new: Tensor) -> None:
        """Adds ``[k]`` candidates to the chosen; only their n x k similarities are computed, and once."""
        ...

    def together(self) -> Tensor:
        """The part of every candidate's loss that comes from the chosen, ``[n]``; not for the chosen."""
        ...


class _Logits:
    """Scaled similarities under one model, computed as they are asked for."""

    def __init__(self, pairs: Pairs, scale: float | None):
        exact = torch.promote_types(pairs.left.dtype, torch.float32)
        self.left, self.right = pairs.left.to(exact), pairs.right.to(exact)
        self.scale = pairs.scale if scale is None else scale

    def own(self) -> Tensor:
        """Of every pair itself, ``[n]``."""
        return self.scale * (self.left * self.right).sum(-1)

    def against(self, new: Tensor) -> Tensor:
        """Of every left with the new rights, and every right with the new lefts, ``[2, n, k]``."""
        sides = [self.left @ self.right[new].T, self.right @ self.left[new].T]
        return self.scale * torch.stack(sides)


class _Sigmoid:
    """Sum over pairs of softplus(-z (logit + bias))."""

    def __init__(self, pairs: Pairs, scale: float | None, bias: float):
        self.logits, self.bias = _Logits(pairs, scale), bias
        self.alone = softplus(-(self.logits.own() + bias))
        self.total = torch.zeros_like(self.alone)

    def meet(self, new: Tensor) -> None:
        self.total += softplus(self.logits.against(new) + self.bias).sum((0, 2))

    def together(self) -> Tensor:
        return self.total


class _Softmax:
    """Minus a pair's own logit, plus the mean over both directions of the log-sum-exp over the chosen."""

    def __init__(self, pairs: Pairs, scale: float | None):
        self.logits = _Logits(pairs, scale)
        self.alone = -self.logits.own()
        self.total = self.alone.new_full((2, len(self.alone)), -torch.inf)  # log-sum-exp of each direction

    def meet(self, new: Tensor) -> None:
        self.total = torch.logaddexp(self.total, self.logits.against(new).logsumexp(-1))

    def together(self) -> Tensor:
        return self.total.mean(0)
