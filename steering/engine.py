"""The engine: from losses and reference losses to one steered loss."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from torch import Tensor

from steering import cautions, registry
from steering.agreement import Matrix, agree
from steering.arrange import Grouping, Over, arrange, tensor_of
from steering.base_weights import BaseWeights
from steering.contrastive.pair_rows import PairRows
from steering.contrastive.pairs import Pairs, is_pairs
from steering.distributed import all_gather, all_gather_numbers, world_size
from steering.dual_memory import DualMemory
from steering.errors import UserError
from steering.groups import GroupWeights
from steering.loss_rows import Average
from steering.rules.rule import Recalling, Rule, Tempered
from steering.running_variance import RunningVariance
from steering.steered import RowFigures, Steered
from steering.window import Window, window

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class Steerer:
    """Steers a model by a reference: weighs losses by how much they exceed the reference's losses.

    Implements DRRho risk minimisation (Wei et al. 2025, section 3): the worst case, over weights close to
    uniform, of the mean excess loss. The reference acts through the weights alone. ``docs/engine.md`` is the contract.

    Args:
        rule: turns rows of excess loss into weights, ``KL(rho=80)`` or ``"kl(rho=80)"`` say; for Pairs whose scale is
            learned ``GlobalContrastive()`` or ``InfoNCE()``.
        reference_scale: the excess is loss - reference_scale * reference loss. 1 is the paper's; ``"auto"``
            estimates online the control-variate coefficient Cov / Var(reference), kept within 0 and 1, which makes
            the excess vary least and never more than the loss. Which one is better depends on the task: see the
            README, "The scale of the reference".
        population: the n of a radius rho / n where a row is the batch, or an anchor's negatives: number of training
            samples (of training tokens, where those are the losses). A row that is whole in the batch, such as the
            tokens of a document, has the n of its own entries.
        memory: moving average of the duals by id, for rows that come back (``DualMemory(2 * n, gamma=0.8)``).
        over: what weights are distributed over: ``"batch"``, all entries of all ranks, or ``"rows"``, the entries of
            every row for themselves. By default ``"rows"`` where losses are given in rows.
        average: whether the loss is the mean over ``"rows"``, each of them the mean of its entries, or over
            ``"entries"`` (tokens, as Hugging Face's and TRL's trainers average); or weights over groups.
        grouping: what ``groups`` are for: ``"centre"`` takes the mean excess of its group from every excess, ``"rows"``
            makes a row of every group. Weights over groups imply the latter.
        base: base weights by sample id, ``[size]``, which every call with ``ids`` uses; or see ``fit``.
        budget: bytes of pair similarities that are kept from the pass that finds duals to the one that weighs; the
            others are computed again. 0 takes least memory. None is 256 MiB, on a GPU a twentieth of its memory.

    Example:
        >>> losses, reference_losses = torch.tensor([3.0, 1.0, 2.0], requires_grad=True), torch.tensor([1.0, 1.0, 2.0])
        >>> steered = Steerer("kl(temperature=1)")(losses, reference_losses)
        >>> steered.loss.backward()
        >>> [round(float(weight), 2) for weight in steered.weights]
        [2.36, 0.32, 0.32]
    """

    def __init__(
        self,
        rule: Rule | Tempered | str,
        *,
        reference_scale: float | Literal["auto"] = 1.0,
        population: int | None = None,
        memory: DualMemory | None = None,
        over: Over | None = None,
        average: Average | GroupWeights = "rows",
        grouping: Grouping | None = None,
        base: Any = None,
        budget: int | None = None,
    ):
        grouping = "rows" if isinstance(average, GroupWeights) else grouping
        _check_options(reference_scale, population, memory, over, average, grouping)
        self.rule: Rule | Tempered = registry.build("rules", rule) if isinstance(rule, str) else rule
        if isinstance(self.rule, type) or not isinstance(self.rule, Rule | Tempered):
            raise UserError(f"a rule is KL(rho=80) or 'kl(rho=80)' say, got {self.rule!r}")
        self._tempered = self.rule if isinstance(self.rule, Tempered) else None  # asking a protocol takes time
        self._recalls = isinstance(self.rule, Recalling)
        self.reference_scale, self.population, self.budget = reference_scale, population, budget
        self.over: Over | None = over
        self.average: Average | GroupWeights = average
        self.grouping: Grouping | None = grouping
        self.base = BaseWeights(base)
        self.memory = memory or DualMemory()
        self.variance = RunningVariance()
        self.scale = torch.zeros(())  # of the reference loss, as last used
        self.training = True
        self._last: Steered | None = None  # figures of the last batch, without its graph
        self._restored = torch.zeros(2)  # effective sample sizes of a checkpoint, until a batch was seen
        self._anchors = False  # whether the rows of the last batch were anchors of Pairs

    def train(self, mode: bool = True) -> Self:
        """Whether calls move the memory, the variances and the weights over groups, as they do by default."""
        self.training = mode
        return self

    def eval(self) -> Self:
        """From here on a call leaves no trace: what is remembered is used, but stays as it is."""
        return self.train(False)

    def __call__(
        self,
        losses: "Tensor | Pairs | ArrayLike",
        reference: Any = None,
        *,
        ids: Any = None,
        mask: Any = None,
        rows: Any = None,
        groups: Any = None,
        base: Any = None,
        scores: Any = None,
    ) -> Steered:
        """Weighs one batch.

        Args:
            losses: of the target, with gradient: ``[n]`` (one row over all ranks), ``[rows, columns]`` (every line a
                row of its own, as for tokens), ``[entries]`` with ``rows``, or Pairs (two rows a pair). Ranks may hold
                unlike numbers of them, none included, but for Pairs. Features of Pairs in half precision are
                multiplied in half precision, which costs their gradient about a hundredth of its length.
            reference: the reference's losses of the same entries; None steers by the loss alone (plain DRO).
            ids: ``[n]`` sample ids, one a row, needed where duals are remembered, unless losses are ``[n]``.
            mask: False (or 0) where there is no loss (padding), like ``losses``; not for Pairs.
            rows: ``[entries]`` whole numbers from 0 on: the row of every entry, in any order.
            groups: a whole number from 0 on for every sample (row), if the steerer groups them.
            base: base weights q, at least 0, of every loss or of every sample (row, pair), by a posterior, a filter or
                a file: the divergence of the rule is taken to q in place of the uniform weights, and where a sample is
                a row of its own, the mean over rows is weighted by q.
            scores: like the losses: what the rule weighs by in place of the excess, the larger the more (an excess that
                is smoothed over neighbours, a posterior, random numbers as a control); not for Pairs.

        Raises:
            UserError: shapes that do not fit, or a memory without ids; on all ranks if it befalls one.
        """
        device = losses.left.device if is_pairs(losses) else getattr(losses, "device", "cpu")
        device = torch.device(device)  # NumPy's is a word
        if torch.is_autocast_enabled(device.type):
            with torch.autocast(device.type, enabled=False):
                options = {"ids": ids, "mask": mask, "rows": rows, "groups": groups, "base": base, "scores": scores}
                return self(losses, reference, **options)
        base = self.base.of(ids, self.rule) if base is None else base
        matrix, index = self._arranged(losses, reference, ids, mask, rows, groups, base, scores)
        rule, temperature = self._rule_at(losses)
        scale, factor = self._scale(matrix)
        fresh, dual = self._duals(matrix, rule, factor, index, 1 if temperature is None else temperature.detach())
        row_base = matrix.base.repeat(2) if isinstance(matrix, PairRows) and matrix.base is not None else None
        steered = matrix.steer(rule, fresh, dual, scale, self.average, frozen=not self.training)
        dual_of_rows = fresh.dual if dual is None else lambda: dual
        steered = self._with_figures(steered, rule, dual_of_rows, temperature, _negatives(losses), row_base)
        if self.training:
            self.scale, self._anchors = scale, is_pairs(losses)
            self._last = Steered(scale, scale, scale, steered.measure)  # not to hold the graph
        return steered

    def weigh(self, losses: Tensor | Pairs, reference: Any = None, **options: Any) -> Window:
        """Settles the weights of a whole window of samples, so that micro-batches can be differentiated one by one.

        Args:
            losses: of the whole window, as of a call; no gradient is asked of them.
            reference, options: as of a call.

        Example:
            >>> steerer = Steerer("kl(temperature=1)")
            >>> window = steerer.weigh(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 2.0]))
            >>> part = torch.tensor([1.0, 2.0], requires_grad=True)  # the same samples once more, with gradient
            >>> window.loss(part, slice(1, 3)).backward()
            >>> [round(float(gradient), 3) for gradient in part.grad]
            [0.107, 0.107]
        """
        return window(losses, lambda leaves: self(leaves, reference, **options))

    def fit(self, scores: "Tensor | Pairs", labels: Any = None, *, ids: Any = None, size: int | None = None) -> str:
        """Fits base weights to what a reference says of all training samples: what the rule ``auto`` lives on.

        Arguments, errors and an example are those of ``BaseWeights.fit``.
        """
        return self.base.fit(scores, labels, ids=ids, size=size)

    # -- one call, step by step -----------------------------------------------------------------------------

    def _arranged(self, losses, reference, ids, mask, rows, groups, base, scores) -> tuple[Matrix, Tensor | None]:
        """The losses as rows that all ranks agree on, and the index of these rows in the memory if it is used."""
        index: Tensor | None = None

        def make() -> Matrix:
            nonlocal index
            matrix = self._matrix(losses, reference, ids, mask, rows, groups, base, scores)
            if self._remembers:
                index = matrix.memory_index(None if ids is None else tensor_of(ids, "ids"))
                self.memory.check(index)
            return matrix

        matrix = agree(make)
        if index is not None and matrix.shared:
            index = matrix.memory_index(None)  # there may be rows that only other ranks have entries of
        return matrix, index

    def _matrix(self, losses, reference, ids, mask, rows, groups, base, scores) -> Matrix:
        if reference is not None and is_pairs(losses) != is_pairs(reference):
            raise UserError(
                f"target and reference losses must be of the same samples, got {type(losses).__name__} and "
                f"{type(reference).__name__}"
            )
        if self.grouping is not None and reference is None and self.reference_scale != 0:
            raise UserError(
                "excess by group needs the reference's losses, got None: give them, or say reference_scale=0 to group "
                "by the loss alone (group DRO)"
            )
        if is_pairs(losses):
            if mask is not None or rows is not None or groups is not None:
                raise UserError("Pairs know their own mask and rows, and have no groups; got another one")
            if scores is not None:
                raise UserError("scores take the place of the excess of single losses, got some for Pairs")
            if self.grouping is not None or self.over == "batch":
                raise UserError("the rows of Pairs are their anchors: over='batch' and groups are for other losses")
            return PairRows(losses, reference, self.budget, base=base)
        group_weights = self.average.values if isinstance(self.average, GroupWeights) else None
        return arrange(
            tensor_of(losses, "losses"),
            reference,
            mask=mask,
            rows=rows,
            groups=groups,
            over=self.over,
            grouping=self.grouping,
            row_count=len(tensor_of(ids, "ids")) if ids is not None and rows is not None else None,
            group_count=0 if group_weights is None else len(group_weights),
            base=base,
            scores=scores,
            squeeze=self.memory.size == 1,
        )

    def _scale(self, matrix: Matrix) -> tuple[Tensor, Tensor | float]:
        """The factor of the reference loss, a scalar, and the same as a number if it is one; updates the variances."""
        sample = matrix.variance_sample()
        if sample is None:
            return self.scale.new_zeros(()), 0.0
        if self.training:
            self.variance.update(*sample)
        if self.reference_scale != "auto":  # a copy from the host would wait for the device
            return sample[0].new_full((), float(self.reference_scale)), float(self.reference_scale)
        variance = self.variance
        if variance.values is None:
            variance = RunningVariance()
            variance.update(*sample)
        scale = variance.best_scale().to(sample[0])
        return scale, scale

    def _rule_at(self, losses: "Tensor | Pairs | ArrayLike") -> tuple[Rule, Tensor | None]:
        """The rule of this call, and the model's temperature if the rule is one at that temperature."""
        if self._tempered is None:
            return cast(Rule, self.rule), None
        if not is_pairs(losses):
            raise UserError(
                f"{self.rule!r} takes its temperature from the scale of Pairs, got losses of shape "
                f"{list(tensor_of(losses, 'losses').shape)}: use kl(temperature=...) for these"
            )
        temperature = 1 / torch.as_tensor(losses.scale, device=losses.left.device).double().reshape(())
        return self._tempered.at(temperature.detach(), _negatives(losses)), temperature

    @property
    def _remembers(self) -> bool:
        return self.memory.gamma < 1 or self.memory.keep or self._recalls

    def _duals(self, matrix: Matrix, rule: Rule, scale: Tensor | float, index: Tensor | None, unit: Tensor | int):
        """Fresh duals, and the same blended with the remembered ones, ``[rows, width]``.

        What is remembered is the dual over ``unit``: at a temperature that changes log u lasts, and not t log u.
        """
        if index is None:
            return matrix.fresh(rule, scale, self.population, None), None
        old = self.memory.read(index)
        if old is None:
            old = torch.full((len(index), rule.width), torch.nan, dtype=torch.float64, device=index.device)
        fresh = matrix.fresh(rule, scale, self.population, old if self._recalls else None)
        dual, filled = fresh.dual(), matrix.filled()
        old = old.to(dual) * unit
        blended = rule.blend(old, dual, self.memory.gamma)
        dual = torch.where(old.isnan() | blended.isnan(), dual, blended)
        dual = torch.where(filled, dual, old)  # an empty row has nothing new to tell
        if self.training:
            kept = torch.cat([dual / unit, filled.to(dual)], -1)
            if not matrix.shared:
                sizes = [numbers[0] for numbers in all_gather_numbers([len(index)])]
                index, kept = all_gather(index, sizes), all_gather(kept, sizes)
            self.memory.write(index, kept[:, :-1], kept[:, -1])
        return fresh, dual

    def _with_figures(
        self,
        steered: Steered,
        rule: Rule,
        dual: Callable[[], Tensor],
        temperature: Tensor | None,
        negatives: int,
        base: Tensor | None,
    ) -> Steered:
        """The steered loss with what the rule says of it: the risk, and the temperature's gradient."""
        figures_of: Callable[[Tensor], Mapping[str, Any]] | None = getattr(rule, "figures", None)  # see Figures
        loss, plain = steered.loss, steered.measure
        has_risk = self.average == "rows" and self.grouping != "centre" and temperature is None
        if temperature is not None and self._tempered is not None:
            duals = dual() if base is None else dual() * base[:, None]  # whose mean is then the weighted one
            loss = self._tempered.objective(loss, duals, temperature, negatives)

        def measure() -> RowFigures:  # holds no graph
            figures = {} if figures_of is None else figures_of(dual())
            risk = figures.get("objective") if has_risk else None
            return plain()._replace(risk=risk, row_temperature=figures.get("temperature"))

        return Steered(loss, steered.weights, steered.scale, measure)

    # -- what it remembers ----------------------------------------------------------------------------------

    @property
    def effective_sample_size(self) -> Tensor:
        """Mean effective sample size of this rank's rows in the last batch, then as a share of entries, ``[2]``."""
        if self._last is None:
            return self._restored
        counted = self._last.entries > 0
        both = torch.stack([self._last.effective_sample_size, self._last.effective_share])
        return both.masked_fill(~counted, 0).sum(-1) / counted.sum().clamp(min=1)

    def cautions(self) -> list[str]:
        """What the running figures warn of, one line each: a reference that adds noise, collapse."""
        size, share = self.effective_sample_size.tolist()
        rows_rest_on_many = not self._anchors  # of an anchor's negatives few are near
        return cautions.of_weights(size, share, rows_rest_on_many) + cautions.of_reference(
            self.variance, self.reference_scale
        )

    def state_dict(self) -> dict:
        return {
            "rule": repr(self.rule),
            "memory": self.memory.state_dict(),
            "variance": self.variance.state_dict(),
            "scale": self.scale,
            "effective_sample_size": self.effective_sample_size,
            "anchors": self._anchors,
            "base": self.base.table,
            "group_weights": self.average.state_dict() if isinstance(self.average, GroupWeights) else None,
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes over what another steerer of the same rule remembered, gamma included.

        Raises:
            UserError: duals of another rule, weights over groups that are missing, or a memory of other data.
        """
        if state["memory"]["table"] is not None and state["rule"] != repr(self.rule):
            raise UserError(f"the checkpoint remembers duals of {state['rule']}, this steerer's rule is {self.rule!r}")
        self.memory.load_state_dict(state["memory"])
        self.variance.load_state_dict(state["variance"])
        self.scale, self._last, self._restored = state["scale"], None, state["effective_sample_size"]
        self._anchors = state["anchors"]
        self.base = BaseWeights(state.get("base"))
        if isinstance(self.average, GroupWeights):
            self.average.load_state_dict(state["group_weights"])


def _negatives(losses: object) -> int:
    """Negatives of every anchor of Pairs, at least 1."""
    return max(1, len(losses.left) * world_size() - 1) if is_pairs(losses) else 1


def _check_options(reference_scale, population, memory, over, average, grouping) -> None:
    """Refuses options of a Steerer that are none."""
    number = isinstance(reference_scale, int | float) and math.isfinite(reference_scale)
    if reference_scale != "auto" and not number:
        raise UserError(f"reference_scale is a number or 'auto', got {reference_scale!r}")
    if population is not None and not (isinstance(population, int | float) and population >= 1):
        raise UserError(f"population is a number of samples, at least 1, got {population!r}")
    if memory is not None and not isinstance(memory, DualMemory):
        raise UserError(f"memory is DualMemory(size, gamma=...), got {memory!r}")
    if over not in (None, "batch", "rows"):
        raise UserError(f"weights are distributed over 'batch' or 'rows', got {over!r}")
    if not isinstance(average, GroupWeights) and average not in ("rows", "entries"):
        raise UserError(f"average is 'rows', 'entries' or GroupWeights(...), got {average!r}")
    if grouping not in (None, "centre", "rows"):
        raise UserError(f"grouping is 'centre' or 'rows', got {grouping!r}")
