"""The curvature unit: an activation between ReLU and smoother ones."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from steering.errors import UserError


class CurvatureUnit(nn.Module):
    """phi(x) = c sigmoid(beta x / (1 - beta)) x + (1 - c) (1 - beta) softplus(x / (1 - beta)).

    beta = 1 is ReLU, to the bit; the smaller beta, the smoother. At beta = 0 the unit is smooth, but not linear.
    Source: Hu et al. (2025), Curvature Tuning.

    Args:
        beta: within 0 and 1.
        coefficient: the c above, share of the Swish half, within 0 and 1.
        channels: number of channels with values of their own; None shares one pair of values.
        axis: of the channels in the input; by default the second of images ``[n, channels, ...]`` with at least four
            axes, and the last of anything else.
        trainable: whether beta and c are learned, as logits; both then have to start strictly between 0 and 1.

    Raises:
        UserError: beta or c is out of range.

    Example:
        >>> CurvatureUnit(1.0)(torch.tensor([-2.0, 3.0])).tolist()
        [0.0, 3.0]
    """

    def __init__(
        self,
        beta: float,
        coefficient: float = 0.5,
        *,
        channels: int | None = None,
        axis: int | None = None,
        trainable: bool = False,
    ):
        super().__init__()
        for name, value in (("beta", beta), ("coefficient", coefficient)):
            if not 0 <= value <= 1 or (trainable and value in (0, 1)):
                allowed = "strictly between 0 and 1 where it is learned" if trainable else "within 0 and 1"
                raise UserError(f"{name} of a curvature unit is {allowed}, got {value:g}")
        self.channels, self.axis, self.trainable = channels, axis, trainable
        self.fixed = (beta, coefficient)
        if trainable:
            shape = () if channels is None else (channels,)
            self.beta_logit = nn.Parameter(torch.full(shape, math.log(beta / (1 - beta))))
            self.coefficient_logit = nn.Parameter(torch.full(shape, math.log(coefficient / (1 - coefficient))))

    def forward(self, x: Tensor) -> Tensor:
        if not self.trainable and self.fixed[0] == 1:
            return torch.relu(x)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # x / (1 - beta) overflows half precision
        beta, one_minus_beta, coefficient = (self._per_channel(value, wide) for value in self._values())
        swish = torch.sigmoid(beta * wide / one_minus_beta) * wide
        # Beyond the threshold softplus is taken as linear; the usual 20 is too early in double precision.
        smooth = one_minus_beta * softplus(wide / one_minus_beta, threshold=50)
        return (coefficient * swish + (1 - coefficient) * smooth).to(x.dtype)

    def _values(self) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
        """beta, 1 - beta without cancellation, and c."""
        if not self.trainable:
            return self.fixed[0], 1 - self.fixed[0], self.fixed[1]
        one_minus_beta = torch.sigmoid(-self.beta_logit).clamp_min(torch.finfo(self.beta_logit.dtype).tiny)
        return torch.sigmoid(self.beta_logit), one_minus_beta, torch.sigmoid(self.coefficient_logit)

    def _per_channel(self, value: Tensor | float, x: Tensor) -> Tensor | float:
        """Values ``[channels]`` in a shape that can be multiplied with ``x``."""
        if self.channels is None or not isinstance(value, Tensor):
            return value
        shape = [1] * x.dim()
        shape[channel_axis(x) if self.axis is None else self.axis] = self.channels
        return value.reshape(shape)

    @property
    @torch.no_grad()
    def beta(self) -> Tensor | float:
        """Its present value, ``[channels]`` where they have values of their own, without gradient."""
        return self._values()[0]

    @property
    @torch.no_grad()
    def coefficient(self) -> Tensor | float:
        """Its present value, like ``beta``."""
        return self._values()[2]

    def extra_repr(self) -> str:
        kind = f"{self.channels} channels, " if self.channels else ""
        return f"{kind}trainable" if self.trainable else f"beta={self.fixed[0]:g}, coefficient={self.fixed[1]:g}"


def channel_axis(x: Tensor) -> int:
    """Where the channels of an input are: second of images, last of anything else."""
    return 1 if x.dim() >= 4 else -1


def units(model: nn.Module) -> list[CurvatureUnit]:
    """All curvature units of a model."""
    return [part for part in model.modules() if isinstance(part, CurvatureUnit)]


def set_beta(model: nn.Module, beta: float) -> None:
    """Gives all units that are not learned the same beta.

    Raises:
        UserError: beta is not within 0 and 1.
    """
    if not 0 <= beta <= 1:
        raise UserError(f"beta of a curvature unit is within 0 and 1, got {beta:g}")
    for unit in units(model):
        unit.fixed = (beta, unit.fixed[1])
