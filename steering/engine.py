"""The engine: from losses and reference losses to one steered loss."""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from steering.contrastive.pair_rows import PairRows
from steering.contrastive.pairs import Pairs
from steering.distributed import all_gather, world_size
from steering.dual_memory import DualMemory
from steering.errors import UserError
from steering.rows import LossRows, Rows, Steered
from steering.rules.rule import Figures, Recalling, Rule, Tempered
from steering.running_variance import RunningVariance


class Steerer:
    """Steers a model by a reference: weighs losses by how much they exceed the reference's losses.

    Implements DRRho risk minimisation (Wei et al. 2025, section 3): the worst case, over weights close to
    uniform, of the mean excess loss. The reference acts through the weights alone.

    Args:
        rule: turns rows of excess loss into weights, ``KL(rho=80)`` say; for Pairs whose scale is learned
            ``GlobalContrastive()`` or ``InfoNCE()``.
        reference_scale: the excess is loss - reference_scale * reference loss. 1 is the paper's; ``"auto"``
            estimates online the control-variate coefficient Cov / Var(reference), kept within 0 and 1, which makes
            the excess vary least and never more than the loss. Which one is better depends on the task: see the
            README, "The scale of the reference".
        population: number of training samples, which rules with a radius rho / n need.
        memory: moving average of the levels by id, for rows that come back (``Levels(2 * n, gamma=0.8)``).
        budget: bytes of pair similarities that are kept from the pass that finds levels to the one that weighs; the
            others are computed again. 0 takes least memory. None is 256 MiB, on a GPU a twentieth of its memory.

    Example:
        >>> steerer = Steerer(KL(temperature=0.5))
        >>> steered = steerer(losses, reference_losses)
        >>> steered.loss.backward()
    """

    def __init__(
        self,
        rule: Rule | Tempered,
        *,
        reference_scale: float | Literal["auto"] = 1.0,
        population: int | None = None,
        memory: DualMemory | None = None,
        budget: int | None = None,
    ):
        if reference_scale != "auto" and (isinstance(reference_scale, str) or not math.isfinite(reference_scale)):
            raise UserError(f"reference_scale is a number or 'auto', got {reference_scale!r}")
        self.rule = rule
        self.reference_scale = reference_scale
        self.population = population
        self.budget = budget
        self.memory = memory or DualMemory()
        self.moments = RunningVariance()
        self.scale = torch.zeros(())  # of the reference loss, as last used
        self._last: Steered | None = None
        self._alive = torch.zeros(())  # of the checkpoint, until a batch was seen

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
                line a row of its own, as for tokens), or Pairs (two rows a pair). Features of Pairs in half precision
                are multiplied in half precision, which costs their gradient about a hundredth of its length.
            reference: the reference's losses of the same samples; None steers by the loss alone (plain DRO).
            ids: ``[n]`` sample ids, needed when the memory's gamma is below 1, unless losses are ``[n]``.
            mask: False (or 0) where there is no loss (padding), like ``losses``; not for Pairs.

        Raises:
            UserError: shapes that do not fit, or a memory without ids.
        """
        device = losses.left.device if isinstance(losses, Pairs) else losses.device
        if torch.is_autocast_enabled(device.type):
            with torch.autocast(device.type, enabled=False):
                return self(losses, reference, ids=ids, mask=mask)
        rows = _arrange(losses, reference, mask, self.budget)
        rule, temperature = self._settled(losses)
        with torch.no_grad():
            scale = self._scale(rows)
            level = self._level(rows, rule, scale, ids, unit=1 if temperature is None else temperature.detach())
        steered = rows.steer(rule, scale, level)
        steered = self._told(steered, rule, level, temperature, _negatives(losses))
        self.scale, self._last = scale, replace(steered, loss=steered.loss.detach())  # not to hold the graph
        return steered

    @property
    def alive(self) -> Tensor:
        """Mean effective sample size of the rows of the last batch, in samples, a scalar."""
        return self._alive if self._last is None else self._last.alive

    def _scale(self, rows: Rows) -> Tensor:
        """The factor of the reference loss, a scalar; also brings the variances up to date."""
        sample = rows.sample()
        if sample is None:
            return self.scale.new_zeros(())
        self.moments.update(*sample)
        if self.reference_scale == "auto":
            return self.moments.best_scale().to(sample[0])
        return sample[0].new_full((), float(self.reference_scale))  # a copy from the host would wait for the device

    def _settled(self, losses: Tensor | Pairs) -> tuple[Rule, Tensor | None]:
        """The rule of this call, and the model's temperature if the rule is one at that temperature."""
        if not isinstance(self.rule, Tempered):
            return self.rule, None
        if not isinstance(losses, Pairs):
            raise UserError(
                f"{self.rule!r} takes its temperature from the scale of Pairs, got losses of shape "
                f"{list(losses.shape)}: use kl(temperature=...) for these"
            )
        temperature = 1 / torch.as_tensor(losses.scale, device=losses.left.device).double()
        return self.rule.at(temperature.detach(), _negatives(losses)), temperature

    def _level(self, rows: Rows, rule: Rule, scale: Tensor, ids: Tensor | None, unit: Tensor | int) -> Tensor:
        """Fresh levels, blended with the remembered ones, ``[rows, width]``.

        What is remembered is the level over ``unit``: at a temperature that changes log u lasts, and not t log u.
        """
        recalls = isinstance(rule, Recalling)
        if self.memory.gamma == 1 and not self.memory.keep and not recalls:
            return rows.level(rule, scale, self.population, None)
        places = rows.places(self.memory, ids)
        old = self.memory.read(places)
        if old is None:
            old = torch.full((len(places), rule.width), torch.nan, dtype=torch.float64, device=places.device)
        level = rows.level(rule, scale, self.population, old if recalls else None)
        old = old.to(level) * unit
        blended = rule.blend(old, level, self.memory.gamma)
        level = torch.where(old.isnan() | blended.isnan(), level, blended)
        level = torch.where(rows.filled(), level, old)  # an empty row has nothing new to tell
        kept = level / unit
        self.memory.write(*((places, kept) if rows.shared else (all_gather(places), all_gather(kept))))
        return level

    def _told(self, steered: Steered, rule: Rule, level: Tensor, temperature: Tensor | None, negatives: int) -> Steered:
        """The steered loss with what the rule says of it: the risk, and the temperature's gradient."""
        found = rule.figures(level) if isinstance(rule, Figures) else {}
        if temperature is not None and isinstance(self.rule, Tempered):
            steered = replace(steered, loss=self.rule.objective(steered.loss, level, temperature, negatives))
            found = {**found, "objective": steered.loss.detach()}
        objective = _mean(found.get("objective", steered.objective), steered.entries)
        at = found.get("temperature")
        return replace(steered, objective=objective, temperature=None if at is None else _mean(at, steered.entries))

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
        self.scale, self._last, self._alive = state["scale"], None, state["alive"]


def _mean(values: Tensor, entries: Tensor) -> Tensor:
    """Mean over the rows that have any entry, of ``[rows]`` or a scalar."""
    if values.dim() == 0:
        return values
    counted = (entries > 0).to(values)
    return torch.dot(values, counted) / counted.sum().clamp(min=1)


def _negatives(losses: Tensor | Pairs) -> int:
    """Negatives of every anchor of Pairs, at least 1."""
    return max(1, len(losses.left) * world_size() - 1) if isinstance(losses, Pairs) else 1


def _arrange(losses, reference, mask: Tensor | None, budget: int | None) -> Rows:
    """Losses and reference losses as rows, in at least single precision."""
    if reference is not None and isinstance(losses, Pairs) != isinstance(reference, Pairs):
        raise UserError(
            f"target and reference losses must be of the same samples, got {type(losses).__name__} and "
            f"{type(reference).__name__}"
        )
    if not isinstance(losses, Pairs):
        return LossRows(losses, reference, mask)
    if mask is not None:
        raise UserError("Pairs know their own mask; got another one")
    return PairRows(losses, reference, budget)
