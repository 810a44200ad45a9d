"""What a task is: data, models, and one loss function for target and reference alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import getattr_static
from typing import Any, NamedTuple, Protocol, Self, cast, runtime_checkable

import torch
from torch import Tensor, nn

from steering.contrastive.pairs import Pairs, is_pairs
from steering.errors import UserError
from steering.settings import Metric, Recipe


@dataclass(frozen=True)
class Batch:
    """Samples, each with an id that stays its own for the whole run.

    Attributes:
        ids: ``[n]`` positions in the training set, int64.
        fields: what the models and the loss need, each ``[n, ...]``.
        facts: what is reported of the samples and never trained on (that a label is wrong, say), each ``[n]`` or, for
            the entries of losses ``[n, columns]``, of that shape; a run reports their mean, weighted as trained on.
        rows: ``[entries]`` int64 for samples of any lengths that lie one behind the other (packed tokens): the index,
            within this batch, of the sample that an entry belongs to. Every field and fact is then ``[entries, ...]``.

    Example:
        >>> batch = Batch(torch.tensor([7, 8]), {"token": torch.tensor([4, 5, 6])}, rows=torch.tensor([0, 1, 1]))
        >>> batch.take(torch.tensor([1])).fields, batch.take(torch.tensor([1])).rows
        ({'token': tensor([5, 6])}, tensor([0, 0]))
    """

    ids: Tensor
    fields: Mapping[str, Tensor]
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    def take(self, indices: Tensor) -> "Batch":
        """The samples at ``[k]`` indices of this batch, none of them twice."""
        indices = indices.to(self.ids.device)
        if self.rows is None:
            return self._map(lambda x: x[indices.to(x.device)], self.ids[indices])
        new_index = self.rows.new_full((len(self),), -1)
        new_index[indices] = torch.arange(len(indices)).to(new_index)
        rows = new_index[self.rows]
        part = self._map(lambda x: x[(rows >= 0).to(x.device)], self.ids[indices])
        return replace(part, rows=rows[rows >= 0])

    def split(self, size: int | None) -> "list[Batch]":
        """Parts of at most ``size`` samples, in their order; the batch itself where it is no larger, or size None."""
        if size is None or len(self) <= size:
            return [self]
        return [self.take(indices) for indices in torch.arange(len(self)).split(size)]

    def to(self, device) -> "Batch":
        return self._map(lambda x: x.to(device, non_blocking=True), self.ids.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor], ids: Tensor) -> "Batch":
        fields, facts = ({name: change(x) for name, x in part.items()} for part in (self.fields, self.facts))
        return Batch(ids, fields, facts, None if self.rows is None else change(self.rows))


class Losses(NamedTuple):
    """Losses of a batch of n samples under one model.

    Attributes:
        values: ``[n]`` per sample; ``[n, columns]``, a row for each sample; ``[entries]`` with ``rows``; or Pairs for a
            contrastive loss.
        mask: False where there is no loss (padding), like ``values``.
        outputs: scores whose softmax is the model's answer, ``[*values.shape, classes]``, for distillation; Pairs have
            their own.
        rows: ``[entries]`` int64 where ``values`` lie one behind the other (packed tokens of samples of any lengths):
            the index, within the batch, of the sample that an entry belongs to.
        groups: ``[n]`` int64, the group (class, domain) of every sample, for weights that are balanced by group.
    """

    values: Tensor | Pairs
    mask: Tensor | None = None
    outputs: Tensor | None = None
    rows: Tensor | None = None
    groups: Tensor | None = None

    def in_order_of(self, rows: Tensor | None) -> "Losses":
        """The same losses with their entries in the order of others, given the rows of those.

        Raises:
            UserError: a sample has another number of entries there, or one has rows and the other has not.

        Example:
            >>> losses = Losses(torch.tensor([1.0, 2.0, 3.0]), rows=torch.tensor([0, 0, 1]))
            >>> losses.in_order_of(torch.tensor([1, 0, 0])).values
            tensor([3., 1., 2.])
        """
        if rows is None and self.rows is None:
            return self
        if rows is None or self.rows is None or rows.bincount().tolist() != self.rows.bincount().tolist():
            entries = ["one" if x is None else f"{len(x)} in all" for x in (rows, self.rows)]
            raise UserError(
                f"target and reference have losses of the same entries of every sample, got {' and '.join(entries)}"
            )
        order = self.rows.argsort(stable=True)[rows.argsort(stable=True).argsort()]
        mask, outputs = (None if part is None else part[order] for part in (self.mask, self.outputs))
        return Losses(cast(Tensor, self.values)[order], mask, outputs, rows, self.groups)

    def per_sample(self, n: int) -> Tensor | Pairs:
        """The mean of every sample's own losses, ``[n]``, NaN where it has none; Pairs stay as they are.

        Raises:
            UserError: losses that are not of n samples.

        Example:
            >>> Losses(torch.tensor([1.0, 2.0, 4.0]), rows=torch.tensor([0, 1, 1])).per_sample(2)
            tensor([1., 3.])
        """
        if is_pairs(self.values):
            return self.values
        if self.rows is None and self.values.shape[:1] != (n,):
            raise UserError(
                f"losses have a row for each of {n} samples, or rows that say whose they are, got losses of shape "
                f"{list(self.values.shape)} (was reduction='none' forgotten?)"
            )
        if self.rows is None and self.mask is None and self.values.dim() == 1:
            return self.values
        counts = torch.ones_like(self.values) if self.mask is None else self.mask.to(self.values)
        values = self.values if self.mask is None else self.values.masked_fill(~self.mask.bool(), 0)
        if self.rows is None:
            sums, number = (x.flatten(1).sum(1) for x in (values, counts))
        else:
            sums, number = (values.new_zeros(n).index_add(0, self.rows, x) for x in (values, counts))
        return sums / number

    def finite(self, n: int) -> Tensor:
        """Which samples have none but finite losses (Pairs: features), ``[n]`` bool."""
        if is_pairs(self.values):
            return self.values.left.isfinite().all(-1) & self.values.right.isfinite().all(-1)
        infinite = self._replace(values=(~self.values.detach().isfinite()).float()).per_sample(n)
        assert isinstance(infinite, Tensor)
        return ~(infinite > 0)  # also of a sample without losses

    @staticmethod
    def concatenate(parts: "Sequence[Losses]", sizes: Sequence[int]) -> "Losses":
        """The losses of a batch from those of its parts, of ``sizes`` samples each.

        Raises:
            UserError: the parts have unlike numbers of columns.

        Example:
            >>> first = Losses(torch.tensor([0.5, 0.25]), rows=torch.tensor([0, 0]))
            >>> second = Losses(torch.tensor([2.0]), rows=torch.tensor([0]))
            >>> Losses.concatenate([first, second], [1, 1]).rows
            tensor([0, 0, 1])
        """
        if len(parts) == 1:
            return parts[0]
        first = parts[0].values
        if is_pairs(first):
            left, right = (torch.cat([getattr(part.values, side) for part in parts]) for side in ("left", "right"))
            return Losses(Pairs(left, right, first.scale), groups=_cat([part.groups for part in parts]))
        columns = {tuple(part.values.shape[1:]) for part in parts if isinstance(part.values, Tensor)}
        if len(columns) > 1:
            raise UserError(
                f"the parts of a batch have losses of {sorted(columns)} columns: pad every sample alike, or give flat "
                f"losses with their rows (Losses.rows)"
            )
        rows = [None if part.rows is None else part.rows + sum(sizes[:k]) for k, part in enumerate(parts)]
        values, masks, outputs, _, groups = (list(column) for column in zip(*parts, strict=True))
        if any(mask is not None for mask in masks):  # a part without padding may have none
            pairs = zip(masks, values, strict=True)
            masks = [torch.ones_like(x, dtype=torch.bool) if mask is None else mask for mask, x in pairs]
        return Losses(cast(Tensor, _cat(values)), _cat(masks), _cat(outputs), _cat(rows), _cat(groups))


def _cat(parts: "Sequence[Any]") -> Tensor | None:
    """All parts as one, None where there are none."""
    missing = [part is None for part in parts]
    if any(missing) != all(missing):
        raise UserError("either every batch has outputs, rows and groups of its losses, or none: some are missing here")
    return None if any(missing) else torch.cat(list(parts))


class Stream(Protocol):
    """Training batches without end, in an order that depends on the seed alone, and that can be resumed.

    ``steering.training.loader.ShuffledLoader`` is one for any data that can be looked up by id.
    """

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...


class Task(Protocol):
    """A problem to steer on. Nothing has to be inherited; ``steering.testing.check_task`` states the contract.

    A task is usually a frozen dataclass whose fields are its options, so that ``steer run "digits(noise=0.2)"``
    and ``--set options.noise=0.2`` work. It must be cheap to construct: data are loaded when they are first needed.

    A task may have more members, which are used where it has them (``HeldOut`` is another):

    - ``with_teacher() -> Task``: the same problem whose reference is the model to distil from; itself where that is
      the reference already.
    - ``exhibits(models) -> list[Exhibit]``: pictures for the report, of trained models by the name of their arm,
      ``reference`` among them.
    - ``export(model, folder) -> None``: writes a trained model in the form that other software loads.
    - ``skipped() -> dict[str, int]``: how many samples could not be read and were left out, by reason.
    - ``population: int``: the n of a radius rho / n where it is not ``size``, such as the tokens of all samples for
      arms whose weights are over the tokens of a batch.
    - ``stored(ids) -> Tensor``: of ``[n]`` ids, ``[n]`` bool, for which samples files have the reference's answers.
    """

    @property
    def size(self) -> int:
        """Number of training samples, or a bound on it; ids run from 0 to size - 1."""
        ...

    @property
    def rows(self) -> int:
        """Rows whose duals are worth remembering: 1 for a loss per sample, 2 * size for Pairs."""
        ...

    @property
    def recipe(self) -> Recipe:
        """The settings and arms of a run that gives no others."""
        ...

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """How to read what ``evaluate`` returns; the first one is the headline."""
        ...

    def seeded(self, seed: int) -> Self:
        """The same problem for repetition ``seed``: another split and noise, or itself where data are fixed."""
        ...

    def target(self) -> nn.Module:
        """A fresh target; torch's global generator is seeded by the caller."""
        ...

    def reference(self) -> Any:
        """The reference, the same at every call: a module in evaluation mode, or what else ``as_reference`` takes.

        One that is no module, such as losses by id or a fitted estimator, is not evaluated.
        """
        ...

    def stream(self, batch: int, *, seed: int) -> Stream:
        """Training batches of ``batch`` samples over all ranks, this rank's share of them."""
        ...

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        """Losses of the batch, for target and reference alike, with gradient if the model has any."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a target or the reference on data that is never trained on."""
        ...


@runtime_checkable
class HeldOut(Protocol):
    """A task with samples to check a theory on: as the training data are, noise included, but never trained on."""

    def held_out(self, batch: int) -> Iterator[Batch]:
        """All of them once, in batches of at most ``batch``; ids are places among them, from 0."""
        ...


@dataclass(frozen=True)
class Exhibit:
    """A picture for the report, with words: what a task wants seen of its models.

    Attributes:
        title, text: plain text.
        png: the picture.
    """

    title: str
    text: str
    png: bytes


def exchange(task: Task, **parts: Any) -> Task:
    """A task some of whose parts are exchanged for others; all else, optional parts included, is the task's own.

    Args:
        task: what all other parts are of.
        parts: members of Task, optional ones included, by name: values for ``size``, ``rows``, ``recipe`` and
            ``metrics``, functions without ``self`` for methods; None takes an optional method away. Another repetition
            (``seeded``) has the same parts, unless ``seeded`` is among them.

    Example:
        >>> from steering.tasks.blobs import Blobs
        >>> exchange(Blobs(), evaluate=lambda model: {"error": 0.5}).evaluate(None)
        {'error': 0.5}
    """
    return cast(Task, _ExchangedTask(task, **parts))


_VALUES = "size", "rows", "recipe", "metrics"  # read late, because they may need data


class _ExchangedTask:
    size, rows, recipe, metrics = (property(lambda self, name=name: self.__getattr__(name)) for name in _VALUES)

    def __init__(self, task: Task, **parts: Any):
        self.task, self.parts = task, parts
        methods = [name for name in dir(task) if not name.startswith("_") and callable(getattr_static(task, name))]
        for name in {*methods, *parts} - {*_VALUES} - ({"seeded"} - parts.keys()):
            setattr(self, name, parts[name] if name in parts else getattr(task, name))

    def seeded(self, seed: int) -> "_ExchangedTask":
        return _ExchangedTask(self.task.seeded(seed), **self.parts)

    def __repr__(self) -> str:
        return f"{self.task!r} with another {', '.join(self.parts)}"

    def __getattr__(self, name: str) -> Any:  # also for options of the task
        if name.startswith("__") or "task" not in self.__dict__:
            raise AttributeError(name)
        return self.parts[name] if name in self.parts else getattr(self.task, name)
