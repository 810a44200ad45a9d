"""The engine: from losses and reference losses to one steered loss."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steering.collect import gather, total, world_size
from steering.errors import UserError
from steering.levels import Levels
from steering.moments import Moments
from steering.pairs import Pairs
from steering.rules.rule import Rule


@dataclass(frozen=True)
class Steered:
    """What one call of a Steerer gives; all but ``loss`` are detached.

    Attributes:
        loss: scalar that carries the gradient. Averaged over ranks, as DistributedDataParallel averages
            gradients, it gives the gradient of one process with the whole batch.
        weights: like the losses; 1 is the weight in a plain average. For Pairs ``[2 n, world * n]``.
        effective: effective sample size of every row as a share of its entries, ``[rows]``, 0 to 1.
        scale: factor of the reference loss that was used, a scalar.
    """

    loss: Tensor
    weights: Tensor
    effective: Tensor
    scale: Tensor


class Steerer:
    """Steers a model by a reference: weighs losses by how much they exceed the reference's losses.

    Implements DRRho risk minimisation (Wei et al. 2025, section 3): the worst case, over weights close to
    uniform, of the mean excess loss. The reference acts through the weights alone.

    Args:
        rule: turns rows of excess loss into weights, ``KL(rho=80)`` say.
        reference_scale: the excess is loss - reference_scale * reference loss. 1 is the paper's; ``"auto"``
            estimates online the control-variate coefficient Cov / Var(reference), kept within 0 and 1, which makes
            the excess vary least and never more than the loss. Which one is better depends on the task: see the
            README, "The scale of the reference".
        population: number of training samples, which rules with a radius rho / n need.
        memory: moving average of the levels by id, for rows that come back (``Levels(2 * n, rate=0.8)``).

    Example:
        >>> steerer = Steerer(KL(temperature=0.5))
        >>> steered = steerer(losses, reference_losses)
        >>> steered.loss.backward()
    """

    def __init__(
        self,
        rule: Rule,
        *,
        reference_scale: float | Literal["auto"] = 1.0,
        population: int | None = None,
        memory: Levels | None = None,
    ):
        if isinstance(reference_scale, str) and reference_scale != "auto":
            raise UserError(f"reference_scale is a number or 'auto', got {reference_scale!r}")
        self.rule = rule
        self.reference_scale = reference_scale
        self.population = population
        self.memory = memory or Levels()
        self.moments = Moments()
        self.scale = torch.zeros(())  # of the reference loss, as last used
        self.alive = torch.zeros(())  # mean effective sample size of the rows of the last batch, in samples

    def __call__(
        self,
        losses: Tensor | Pairs,
        reference: Tensor | Pairs | None = None,
        *,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Steered:
        """Weighs one batch.

        Args:
            losses: of the target, with gradient: ``[n]`` (one row over all ranks), ``[rows, columns]`` (every
                line a row of its own, as for tokens), or Pairs (two rows a pair).
            reference: the reference's losses of the same samples; None steers by the loss alone (plain DRO).
            ids: ``[n]`` sample ids, needed when the memory's rate is below 1, unless losses are ``[n]``.
            mask: False (or 0) where there is no loss (padding), like ``losses``; not for Pairs.

        Raises:
            UserError: shapes that do not fit, or a memory without ids.
        """
        device = losses.left.device if isinstance(losses, Pairs) else losses.device
        with torch.autocast(device.type, enabled=False):
            values, counted = _rows(losses, mask)
            known = values.new_zeros(values.shape) if reference is None else _reference_rows(reference, values)
            return self._steer(losses, values, known, counted, ids, with_reference=reference is not None)

    def _steer(self, losses, values, known, counted, ids, *, with_reference: bool) -> Steered:
        one_row = isinstance(losses, Tensor) and losses.dim() == 1  # one distribution over all ranks
        with torch.no_grad():
            if with_reference:
                rows = (values, known, counted)
                self.moments.update(*(gather(x[0])[None] for x in rows) if one_row else rows)
            scale = self._scale(values) if with_reference else values.new_zeros(())
        excess = values - scale * known
        with torch.no_grad():
            level = self._level(losses, excess.detach(), counted, ids, one_row)
            weights = self.rule.weights(excess.detach(), level).masked_fill(~counted, 0)
            entries = (total(counted.sum(-1)) if one_row else counted.sum(-1)).to(weights)
            effective = _effective(weights, entries, one_row)
            self.scale, self.alive = scale.detach(), (effective * entries).mean()
            share = _share(entries, one_row)
        loss = (weights * excess.masked_fill(~counted, 0) * share[:, None]).sum()
        shape = losses.shape if isinstance(losses, Tensor) else weights.shape
        return Steered(loss, weights.reshape(shape), effective, scale.detach())

    def _scale(self, values: Tensor) -> Tensor:
        """The factor of the reference loss, a scalar."""
        if self.reference_scale == "auto":
            return self.moments.best_scale().to(values)
        return values.new_tensor(self.reference_scale)

    def _level(self, losses, excess: Tensor, counted: Tensor, ids: Tensor | None, one_row: bool) -> Tensor:
        """Fresh levels, blended with the remembered ones, ``[rows, width]``."""
        if one_row:
            excess, counted = gather(excess[0])[None], gather(counted[0])[None]
        level = self.rule.level(excess, counted, self.population)
        if self.memory.rate == 1:
            return level
        places = level.new_zeros(1, dtype=torch.long) if one_row else self._places(losses, ids)
        old = self.memory.read(places)
        old = torch.full_like(level, torch.nan) if old is None else old.to(level)
        blended = self.rule.blend(old, level, self.memory.rate)
        level = torch.where(old.isnan() | blended.isnan(), level, blended)
        level = torch.where(counted.any(-1, keepdim=True), level, old)  # an empty row has nothing new to tell
        if one_row:
            self.memory.write(places, level)
        else:
            self.memory.write(gather(places), gather(level))
        return level

    def _places(self, losses, ids: Tensor | None) -> Tensor:
        """Where in the memory every row lives, ``[rows]``."""
        if ids is None:
            raise UserError("a memory with a rate below 1 needs the samples' ids: steerer(..., ids=ids)")
        if isinstance(losses, Pairs):
            return torch.cat([ids, self.memory.size // 2 + ids])
        return ids

    def cautions(self) -> list[str]:
        """What the running figures warn of, one line each: a reference that adds noise, collapse."""
        found = []
        if 0 < float(self.alive) < 2:
            found.append(
                f"the weights rest on {float(self.alive):.1f} samples of a row (effective sample size): "
                f"use a smaller rho, a larger temperature or a larger alpha"
            )
        if self.moments.values is None:
            return found
        best = float(self.moments.best_scale())
        scale = best if isinstance(self.reference_scale, str) else self.reference_scale
        ratio, plain = float(self.moments.ratio(scale)), float(self.moments.ratio(1.0))
        if ratio > 1:
            found.append(
                f"the excess loss varies more than the loss itself (ratio {ratio:.2f}): at this scale the "
                f"reference adds noise; try reference_scale='auto' (now {best:.2f})"
            )
        if plain < 1e-3:
            found.append(
                f"the target has collapsed onto the reference "
                f"(Var(loss - reference) / Var(loss) = {plain:.1e}): "
                f"use a smaller rho, a larger temperature, or another reference"
            )
        return found

    def state_dict(self) -> dict:
        memory, moments = self.memory.state_dict(), self.moments.state_dict()
        return {"memory": memory, "moments": moments, "scale": self.scale, "alive": self.alive}

    def load_state_dict(self, state: dict) -> None:
        self.memory.load_state_dict(state["memory"])
        self.moments.load_state_dict(state["moments"])
        self.scale, self.alive = state["scale"], state["alive"]


def _rows(losses: Tensor | Pairs, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses as rows and which entries count, both ``[rows, columns]``, in at least float32."""
    if isinstance(losses, Pairs):
        if mask is not None:
            raise UserError("Pairs know their own mask; got another one")
        return losses.rows()
    if losses.dim() not in (1, 2) or losses.shape[-1] == 0:
        raise UserError(f"losses are [n] or [rows, columns] and not empty, got {list(losses.shape)}")
    values = losses if losses.dtype == torch.float64 else losses.float()
    counted = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
    if counted.shape != values.shape:
        raise UserError(f"the mask is shaped like the losses {list(values.shape)}, got {list(counted.shape)}")
    if values.dim() == 1:
        values, counted = values[None], counted[None]
    return values, counted


def _reference_rows(reference: Tensor | Pairs, values: Tensor) -> Tensor:
    """The reference's losses, without gradient, shaped like the target's rows."""
    known, _ = _rows(reference.detach(), None)
    if known.shape != values.shape:
        raise UserError(
            f"target and reference losses must be of the same samples, got {list(values.shape)} and "
            f"{list(known.shape)} (was reduction='none' forgotten?)"
        )
    return known.to(values)


def _share(entries: Tensor, one_row: bool) -> Tensor:
    """Share of one entry of every row in the plain average, ``[rows]``, times the number of ranks.

    The entries of a row share evenly, and so do the rows, of all ranks, that have any.
    """
    rows = 1 if one_row else total((entries > 0).sum()).clamp(min=1)
    return world_size() / (rows * entries.clamp(min=1))


def _effective(weights: Tensor, entries: Tensor, one_row: bool) -> Tensor:
    """Effective sample size (sum w)^2 / sum w^2 as a share of the ``[rows]`` entries, ``[rows]``."""
    sums = torch.stack([weights.sum(-1), weights.square().sum(-1)])
    first, second = total(sums) if one_row else sums
    return first.square() / (second * entries.clamp(min=1)).clamp(min=torch.finfo(weights.dtype).tiny)
