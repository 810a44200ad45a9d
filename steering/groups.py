"""Groups of samples (classes, domains): excess within them, and weights over them."""

import torch
from torch import Tensor

from steering.distributed import all_reduce_sum
from steering.errors import UserError


def centre(excess: Tensor, groups: Tensor, mask: Tensor | None, count: int) -> Tensor:
    """Excess minus the mean excess of its group over all ranks, ``[rows, columns]``.

    A rule then compares samples within their group alone, and no class or domain is starved because its losses are
    lower than another's.

    Args:
        excess: ``[rows, columns]``, finite everywhere.
        groups: of every entry, ``[rows, columns]`` int64, from 0 to count - 1.
        mask: True where an entry counts, None where all do.
        count: number of groups, the same on every rank.
    """
    counted = torch.ones_like(excess) if mask is None else mask.to(excess)
    flat = groups.reshape(-1)
    sums = torch.stack([(excess * counted).reshape(-1), counted.reshape(-1)]).double()
    totals = all_reduce_sum(sums.new_zeros(2, count).index_add_(1, flat, sums))
    means = (totals[0] / totals[1].clamp(min=1)).to(excess)
    return excess - means[groups]


class GroupWeights:
    """Weights over groups that grow exponentially with the mean excess of a group.

    With the reference's losses subtracted these are like the domain weights of DoReMi (Xie et al. 2023, section 2),
    without them like group DRO's (Sagawa et al. 2020, algorithm 1): after every batch

        weight_g <- weight_g exp(step_size max(mean excess of g, 0)),

    normalised, then mixed with a little of the uniform weights. DoReMi clips the excess of every token, here it is the
    mean that is clipped; and a batch is the mean of its groups' losses by the weights of those groups alone that are in
    it, so that the size of the loss does not depend on which are.

    Args:
        step_size: of the exponentiated gradient, per unit of the loss, above 0; 1 in DoReMi, 0.01 in group DRO.
        smoothing: share of the uniform weights, at least 0 and below 1; 1e-3 in DoReMi.

    Example:
        >>> weights = GroupWeights(step_size=1.0, smoothing=0.0)
        >>> mean_excess, present = torch.tensor([0.6931, -1.0]), torch.tensor([True, True])  # log 2 doubles the first
        >>> [round(float(weight), 3) for weight in weights.update(mean_excess, present)]
        [0.667, 0.333]
    """

    def __init__(self, step_size: float = 1.0, smoothing: float = 1e-3):
        if not 0 < step_size < float("inf") or not 0 <= smoothing < 1:
            raise UserError(
                f"weights over groups need a step_size above 0 and a smoothing of at least 0 and below 1, got "
                f"{step_size:g} and {smoothing:g}"
            )
        self.step_size, self.smoothing = step_size, smoothing
        self.values: Tensor | None = None  # [groups] double, adding up to 1; None before the first batch

    def update(self, excess: Tensor, present: Tensor, *, frozen: bool = False) -> Tensor:
        """Brings the weights up to date and gives those of a batch.

        Args:
            excess: mean excess of every group, ``[groups]``; the same on every rank.
            present: which groups have any sample in the batch, ``[groups]`` bool.
            frozen: whether the weights stay as they are.

        Returns:
            ``[groups]``, adding up to one over the groups that are present, zero for the others.
        """
        count = len(excess)
        old = self.values
        if old is None:
            old = torch.full((count,), 1 / count, dtype=torch.float64, device=excess.device)
        elif len(old) < count:  # a group that was never seen begins with the mean weight
            old = torch.cat([old, old.new_full((count - len(old),), 1 / len(old))])
        old = old.to(excess.device) / old.sum()
        if not frozen:
            counted = present & excess.isfinite()  # a step that overflowed says nothing of its groups
            raised = old.log() + self.step_size * excess.double().clamp(min=0).masked_fill(~counted, 0)
            old = (1 - self.smoothing) * raised.softmax(0) + self.smoothing / count
            self.values = old
        shown = old.masked_fill(~present, 0)
        return shown / shown.sum().clamp(min=torch.finfo(torch.float64).tiny)

    def state_dict(self) -> dict:
        return {"values": self.values}

    def load_state_dict(self, state: dict | None) -> None:
        if state is None:
            raise UserError("the checkpoint has no weights over groups: was it made with another average?")
        self.values = state["values"]
