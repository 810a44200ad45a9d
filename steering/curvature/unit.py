"""The curvature unit: an activation between ReLU and smoother ones, and what is exactly known of it."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from steering.errors import UserError


class CurvatureUnit(nn.Module):
    """phi(x) = c sigmoid(beta x / (1 - beta)) x + (1 - c) (1 - beta) softplus(x / (1 - beta)).

    beta = 1 is ReLU, to the bit; the smaller beta, the smoother. At beta = 0 the unit is smooth, but not linear.

    Args:
        beta: within 0 and 1.
        coefficient: the c above, share of the Swish half, within 0 and 1.
        channels: number of channels with values of their own; None shares one pair of values.
        axis: of the channels in the input; by default the second of images ``[n, channels, ...]`` with at least four
            axes, and the last of anything else.
        trainable: whether beta and c are learned, as logits; both then have to start strictly between 0 and 1.
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
        beta, rest, coefficient = (self._shaped(value, wide) for value in self._values())
        swish = torch.sigmoid(beta * wide / rest) * wide
        # Beyond the threshold softplus is taken as linear; the usual 20 is too early in double precision.
        smooth = rest * softplus(wide / rest, threshold=50)
        return (coefficient * swish + (1 - coefficient) * smooth).to(x.dtype)

    def _values(self) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
        """beta, 1 - beta without cancellation, and c."""
        if not self.trainable:
            return self.fixed[0], 1 - self.fixed[0], self.fixed[1]
        rest = torch.sigmoid(-self.beta_logit).clamp_min(torch.finfo(self.beta_logit.dtype).tiny)
        return torch.sigmoid(self.beta_logit), rest, torch.sigmoid(self.coefficient_logit)

    def _shaped(self, value: Tensor | float, x: Tensor) -> Tensor | float:
        """Values of channels, ready to be multiplied with ``x``."""
        if self.channels is None or not isinstance(value, Tensor):
            return value
        axis = channel_axis(x) if self.axis is None else self.axis
        shape = [1] * x.dim()
        shape[axis] = self.channels
        return value.reshape(shape)

    @property
    def beta(self) -> Tensor | float:
        """Its present value, ``[channels]`` where they have values of their own, without gradient."""
        return _detached(self._values()[0])

    @property
    def coefficient(self) -> Tensor | float:
        """Its present value, like ``beta``."""
        return _detached(self._values()[2])

    def extra_repr(self) -> str:
        kind = f"{self.channels} channels, " if self.channels else ""
        return f"{kind}trainable" if self.trainable else f"beta={self.fixed[0]:g}, coefficient={self.fixed[1]:g}"


def _detached(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, Tensor) else value


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


def largest_deviation(beta: float, coefficient: float = 0.5) -> float:
    """phi(0) = (1 - c) (1 - beta) ln 2, at c = 0.5 the largest distance of the unit from ReLU.

    Another c can put a larger one beside 0: Swish alone is farthest from ReLU where x is not 0.
    """
    return (1 - coefficient) * (1 - beta) * math.log(2)


def curvature_at_zero(beta: float, coefficient: float = 0.5) -> float:
    """phi''(0) = c beta / (2 (1 - beta)) + (1 - c) / (4 (1 - beta)), for beta below 1."""
    return (2 * coefficient * beta + 1 - coefficient) / (4 * (1 - beta))


def mean_shift(beta: float, coefficient: float = 0.5) -> float:
    """Integral of phi - ReLU over all x: pi^2 / 6 ((1 - c) (1 - beta)^2 - c ((1 - beta) / beta)^2), for beta above 0.

    The halves shift the mean in opposite directions, which is why c = 0.5: near beta = 1 they cancel.
    """
    rest = 1 - beta
    return math.pi**2 / 6 * ((1 - coefficient) * rest**2 - coefficient * (rest / beta) ** 2)
