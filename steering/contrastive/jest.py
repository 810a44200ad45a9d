"""JEST: choosing pairs jointly, a chunk at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from steering.contrastive.pairs import Pairs, is_pairs
from steering.errors import UserError
from steering.selectors.selector import check_keep, largest, sample

__all__ = ["Jest"]

BLOCK = 512  # candidates scored at a time: few enough to stay in a cache, enough to keep a core busy


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
        chunks: rounds, as far as there are candidates to choose: 16 in the paper, 2 in the code of DRRho-CLIP.
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
        target, reference_losses = self._contrast(losses, reference)
        alone = target.alone - reference_losses.alone
        chosen = torch.zeros_like(alone, dtype=torch.bool)
        chunk = sample(self._first(alone), self._sizes(number)[0], generator)
        chunks = [chunk]
        for size in self._sizes(number)[1:]:
            chosen[chunk] = True
            remaining = (~chosen).nonzero()[:, 0]
            target.add(chunk, remaining)
            reference_losses.add(chunk, remaining)
            learnability = alone + target.from_chosen() - reference_losses.from_chosen()
            learnability = learnability.masked_fill(chosen, -torch.inf)
            chunk = sample(learnability, size, generator) if self.draw else largest(learnability, size)
            chunks.append(chunk)
        return torch.cat(chunks)

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
            if not is_pairs(value):
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
        reference_bias = self.bias if self.reference_bias is None else self.reference_bias
        return _Sigmoid(losses, self.scale, self.bias), _Sigmoid(reference, self.reference_scale, reference_bias)


class _Contrast(Protocol):
    """Contrastive losses of all candidates under one model, for a growing set of chosen ones.

    Attributes:
        alone: the part of every candidate's loss that is its own pair's, ``[n]``.
    """

    alone: Tensor

    def add(self, new: Tensor, candidates: Tensor) -> None:
        """Adds ``[k]`` pairs to the chosen; only the candidates' similarities to them are computed, and once.

        Memory is that of one block of candidates, whatever their number.
        """
        ...

    def from_chosen(self) -> Tensor:
        """The part of every candidate's loss that comes from the chosen, ``[n]``; old where they met no more."""
        ...


class _Logits:
    """Scaled similarities under one model, computed as they are asked for, in at least float32."""

    def __init__(self, pairs: Pairs, scale: float | None):
        self.left, self.right = pairs.left, pairs.right
        self.exact = torch.promote_types(pairs.left.dtype, torch.float32)
        self.scale = pairs.scale if scale is None else scale

    def own(self) -> Tensor:
        """Of every pair itself, ``[n]``."""
        blocks = zip(self.left.split(BLOCK), self.right.split(BLOCK), strict=True)
        return self.scale * torch.cat([(left.to(self.exact) * right).sum(-1) for left, right in blocks])

    def against(self, new: Tensor, candidates: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of the candidates' lefts with the new rights (0), and of their rights with the new lefts (1).

        Yields:
            Side, indices ``[rows]`` of a block of candidates, and their logits ``[rows, k]``.
        """
        for side, (side_features, others) in enumerate([(self.left, self.right), (self.right, self.left)]):
            met = self.scale * others[new].to(self.exact)
            for indices in candidates.split(BLOCK):
                yield side, indices, side_features.index_select(0, indices).to(self.exact) @ met.T


class _Sigmoid:
    """Sum over pairs of softplus(-z (logit + bias))."""

    def __init__(self, pairs: Pairs, scale: float | None, bias: float):
        self.logits, self.bias = _Logits(pairs, scale), bias
        self.alone = softplus(-(self.logits.own() + bias))
        self.total = torch.zeros_like(self.alone)

    def add(self, new: Tensor, candidates: Tensor) -> None:
        for _, indices, logits in self.logits.against(new, candidates):
            self.total[indices] += softplus(logits + self.bias).sum(-1)

    def from_chosen(self) -> Tensor:
        return self.total


class _Softmax:
    """Minus a pair's own logit, plus the mean over both directions of the log-sum-exp over the chosen."""

    def __init__(self, pairs: Pairs, scale: float | None):
        self.logits = _Logits(pairs, scale)
        self.alone = -self.logits.own()
        self.total = self.alone.new_full((2, len(self.alone)), -torch.inf)  # log-sum-exp of each direction

    def add(self, new: Tensor, candidates: Tensor) -> None:
        for side, indices, logits in self.logits.against(new, candidates):
            self.total[side, indices] = torch.logaddexp(self.total[side, indices], logits.logsumexp(-1))

    def from_chosen(self) -> Tensor:
        return self.total.mean(0)
