"""The global contrastive loss with a learned temperature of each anchor's own: iSogCLR and FastCLIP v2."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.errors import UserError
from steering.rules.kl import log_mean_exp
from steering.rules.rule import Population
from steering.rules.solve import minus, present, top

__all__ = ["Individual"]

LARGEST = 5.0  # of a temperature's gradient, in nats, before momentum


@dataclass(frozen=True)
class Individual:
    """KL weights whose temperature every row learns by itself (Qiu et al. 2023; FastCLIP v2, Wei et al. 2024).

    A row's risk is ``t log(epsilon + u) + radius t`` with ``u = mean exp(excess / t)`` and a t of its own: rare
    concepts get a small one, frequent ones, whose negatives are often near, a large one. With a reference it is the
    constrained form of DRRho-CLIP (Wei et al. 2025, section 5), one constraint a row. After every visit t takes a step
    with momentum against its gradient ``log(epsilon + u) + radius - mean(weight excess) / t``.

    A dual is ``t log(epsilon + u)``, the t it was found at, the mean of the tilted excess over t, the momentum, and
    the t of the next visit. All of it lives in the memory of the Steerer, which such a rule always has.

    Args:
        radius: price of the temperature, in nats, at least 0; below the log of the number of negatives it matters.
        epsilon: added to u.
        start: temperature at the first visit, in units of the loss.
        least, most: bounds of the temperature.
        learning_rate: of the temperatures, above 0.
        momentum: share of the past in what a temperature moves by, below 1.
    """

    radius: float = 6.5
    epsilon: float = 1e-14
    start: float = 0.07
    least: float = 0.01
    most: float = 1.0
    learning_rate: float = 0.01
    momentum: float = 0.9
    width = 5
    normalised = False
    takes_base = True

    def __post_init__(self):
        if not self.radius >= 0 or not self.epsilon > 0:
            raise UserError(
                f"individual needs a radius of at least 0 and an epsilon above 0, got {self.radius:g} and "
                f"{self.epsilon:g}"
            )
        if not 0 < self.least <= self.start <= self.most < math.inf:
            raise UserError(
                f"individual needs 0 < least <= start <= most, got {self.least:g}, {self.start:g} and {self.most:g}"
            )
        if not self.learning_rate > 0 or not 0 <= self.momentum < 1:
            raise UserError(
                f"individual needs a learning_rate above 0 and a momentum within 0 and 1, got {self.learning_rate:g} "
                f"and {self.momentum:g}"
            )

    def dual(self, excess: Tensor, mask: Tensor, population: Population = None) -> Tensor:
        return self.recall(excess, mask, excess.new_full((len(excess), self.width), torch.nan))

    def recall(self, excess: Tensor, mask: Tensor, old: Tensor) -> Tensor:
        t = old[:, 4:].double()
        t = torch.where(t.isnan(), self.start, t)
        largest = top(excess, mask)
        counted = present(mask)
        tilted = ((excess - largest).double() / t).masked_fill(~counted, -torch.inf)
        share = (tilted if mask.dtype == torch.bool else tilted + mask.double().log()).softmax(-1)
        share = share.nan_to_num()  # of an empty row nothing
        drift = torch.linalg.vecdot(share, torch.where(counted, excess, 0).double())[:, None] / t
        inner = t * log_mean_exp(tilted.nan_to_num(neginf=0), mask) + largest
        dual = t * torch.logaddexp(inner / t, t.new_tensor(math.log(self.epsilon)))
        before = self.momentum * old[:, 3:4].double().nan_to_num()
        return self._after(dual, t, drift, before + (1 - self.momentum) * self._slope(dual, t, drift, dual))

    def blend(self, old: Tensor, new: Tensor, gamma: float) -> Tensor:
        fresh, t, drift, momentum, _ = new.split(1, -1)
        keep = math.log1p(-gamma) if gamma < 1 else -math.inf
        dual = t * torch.logaddexp(old[:, :1] / old[:, 1:2] + keep, fresh / t + math.log(gamma))
        change = self._slope(dual, t, drift, fresh) - self._slope(fresh, t, drift, fresh)
        return self._after(dual, t, drift, momentum + (1 - self.momentum) * change)

    def weights(self, excess: Tensor, dual: Tensor) -> Tensor:
        return (minus(excess, dual[:, :1]) / dual[:, 1:2].to(excess.dtype)).exp()

    def figures(self, dual: Tensor) -> dict[str, Tensor | float]:
        return {"objective": dual[:, 0] + self.radius * dual[:, 1], "temperature": dual[:, 1]}

    def _slope(self, dual: Tensor, t: Tensor, drift: Tensor, fresh: Tensor) -> Tensor:
        """Derivative of the risk by the temperature, ``[rows, 1]``; ``fresh`` is the dual before it was blended."""
        floor = (math.log(self.epsilon) - dual / t).exp()  # share of epsilon in epsilon + u
        weight = ((fresh - dual) / t).exp() - floor  # mean weight of the row's entries
        return (dual / t + self.radius - weight * drift).clamp(-LARGEST, LARGEST)

    def _after(self, dual: Tensor, t: Tensor, drift: Tensor, momentum: Tensor) -> Tensor:
        """The whole dual, with the temperature of the next visit."""
        then = (t - self.learning_rate * momentum).clamp(self.least, self.most)
        return torch.cat([dual, t, drift, momentum, then], -1)
