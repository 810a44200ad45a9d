"""The global contrastive loss at the model's own, learned temperature: SogCLR and FastCLIP v0, v1 and v3."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor

from steering.errors import UserError
from steering.rules.kl import KL

__all__ = ["GlobalContrastive"]


@dataclass(frozen=True)
class GlobalContrastive:
    """KL weights per anchor at the temperature t that the model brings along, with t's exact gradient.

    Over the anchors, the mean of ``t log(epsilon + u) + radius t`` with ``u = mean exp(excess / t)`` (the robust global
    contrastive loss of FastCLIP v3, Wei et al. 2024; v1 where the model's temperature is fixed). With a reference it is
    DRRho-CLIP's constrained form (Wei et al. 2025, section 5): the radius keeps the temperature from falling, as far as
    it lies below log of the number of negatives, which the divergence cannot exceed. ``scaled=False`` leaves the
    factor t away, as FastCLIP v0 and CLIP do; then the radius has no part.

    For Pairs only, whose scale is 1 / t. The memory holds log(epsilon + u), so that it outlives changes of t.

    Args:
        radius: price of the temperature, in nats, at least 0 (rho of FastCLIP: 6.5 to 16).
        epsilon: added to u.
        scaled: whether the loss is in units of the similarity, or in nats.
    """

    radius: float = 0.0
    epsilon: float = 1e-14
    scaled: bool = True
    width = 1
    normalised = False

    def __post_init__(self):
        if not self.radius >= 0 or not self.epsilon >= 0:
            raise UserError(
                f"global_contrastive needs a radius and an epsilon of at least 0, got {self.radius:g} and "
                f"{self.epsilon:g}"
            )

    @property
    def nats(self) -> bool:
        return not self.scaled

    def at(self, temperature: Tensor, negatives: int) -> KL:
        return KL(temperature=cast(float, temperature), epsilon=self.epsilon)

    def objective(self, linear: Tensor, dual: Tensor, temperature: Tensor, negatives: int) -> Tensor:
        t, value, risk = temperature.detach(), linear.detach(), dual.mean().to(linear)
        if not self.scaled:
            return risk / t + (linear - value) / t - (temperature - t) * value / t.square()
        slope = (risk - value) / t + self.radius
        return risk + self.radius * t + (linear - value) + (temperature - t) * slope
