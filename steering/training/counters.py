"""What an arm was trained on, counted."""

from dataclasses import asdict, dataclass, field

from torch import Tensor

from steering.distributed import all_reduce_sum
from steering.task import Batch


@dataclass
class Counters:
    """Running totals of one arm, over all ranks.

    Attributes:
        samples: samples that took part in a gradient step.
        candidates: samples scored to choose them; equal to ``samples`` without a selector.
        cpu_seconds: process time of training, evaluation left out.
        facts: sums over trained samples of what is known of them, weighted as they were trained on.
        weight: sum of those weights.
        effective: sum over steps of the mean effective sample size, a share.
    """

    samples: int = 0
    candidates: int = 0
    cpu_seconds: float = 0.0
    facts: dict[str, float] = field(default_factory=dict)
    weight: float = 0.0
    effective: float = 0.0

    def add(self, batch: Batch, weights: Tensor, candidates: int, ranks: int) -> None:
        """Counts one gradient step; ``weights`` ``[n]`` are each sample's own, or anything else for all alike."""
        self.samples += len(batch) * ranks
        self.candidates += candidates * ranks
        if not batch.facts:
            return
        share = weights if weights.shape == batch.ids.shape else weights.new_ones(len(batch))
        self.weight += float(all_reduce_sum(share.sum()))
        for name, value in batch.facts.items():
            self.facts[name] = self.facts.get(name, 0.0) + float(all_reduce_sum((value.to(share) * share).sum()))

    def means(self) -> dict[str, float]:
        """Weighted mean of every fact over what was trained on."""
        return {name: value / self.weight for name, value in self.facts.items()} if self.weight else {}

    def state_dict(self) -> dict:
        return asdict(self)
