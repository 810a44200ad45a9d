"""What an arm was trained on, counted."""

from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from steering.distributed import all_reduce_sum, world_size
from steering.errors import UserError
from steering.task import Batch


@dataclass
class Counters:
    """Running totals of one arm, over all ranks.

    Attributes:
        samples: samples that took part in a gradient step.
        candidates: samples scored to choose them; equal to ``samples`` without a selector.
        cpu_seconds: process time of training, evaluation left out.
        facts: sums of every fact over the entries of the losses, weighted as they were trained on.
        weight: sum of those weights.
        effective: sum over steps of the mean effective sample size, a share.
    """

    samples: int = 0
    candidates: int = 0
    cpu_seconds: float = 0.0
    facts: dict[str, float] = field(default_factory=dict)
    weight: float = 0.0
    effective: float = 0.0

    def add(self, batch: Batch, weights: Tensor, *, candidates: int, rows: Tensor | None = None) -> None:
        """Counts one gradient step.

        A fact of a sample counts once for each of its losses, with that loss's own weight.

        Args:
            batch: what was trained on.
            weights: of its losses, ``[n]``, ``[n, columns]`` (0 where there is none), or ``[entries]`` with ``rows``.
            candidates: samples that the batch was chosen from.
            rows: ``[entries]`` the sample that each of the weights belongs to, as of Losses.

        Raises:
            UserError: a fact that is neither of samples nor of the entries of the losses.
        """
        self.samples += len(batch) * world_size()
        self.candidates += candidates * world_size()
        if not batch.facts:
            return
        facts = [_like(weights, name, fact.to(weights), batch, rows) for name, fact in batch.facts.items()]
        weight, *sums = all_reduce_sum(torch.stack([x.sum() for x in (weights, *(fact * weights for fact in facts))]))
        self.weight += float(weight)
        for name, value in zip(batch.facts, sums, strict=True):
            self.facts[name] = self.facts.get(name, 0.0) + float(value)

    def means(self) -> dict[str, float]:
        """Weighted mean of every fact over what was trained on."""
        return {name: value / self.weight for name, value in self.facts.items()} if self.weight else {}

    def state_dict(self) -> dict:
        return asdict(self)


def _like(weights: Tensor, name: str, fact: Tensor, batch: Batch, rows: Tensor | None) -> Tensor:
    """A fact of every entry of the losses, shaped like their weights."""
    if batch.rows is None and fact.shape == batch.ids.shape:
        fact = fact[rows] if rows is not None else fact.view(-1, *[1] * (weights.dim() - 1)).expand(weights.shape)
    if fact.shape != weights.shape or (
        rows is not None and batch.rows is not None and not torch.equal(rows, batch.rows)
    ):
        raise UserError(
            f"the fact {name!r} is [{len(batch)}], or shaped like the losses {list(weights.shape)} (flat ones with the "
            f"same rows), got {list(fact.shape)}"
        )
    return fact
