"""The contract of a task as runnable checks, for our tasks and yours."""

import io
import math
from collections.abc import Mapping
from functools import partial
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from steering import registry
from steering.contrastive.pairs import is_pairs
from steering.errors import RunError, UserError
from steering.references.kinds import OwnPast, Reference, as_reference, of_model
from steering.references.store import ReferenceLosses
from steering.task import Batch, Losses, Task
from steering.testing._contract import Contract, disturb
from steering.training.seeds import untouched
from steering.training.step import Training

_MEMBERS = ("size", "rows", "recipe", "metrics", "seeded", "target", "reference", "stream", "losses", "evaluate")


def check_task(task: Task, *, batch: int = 8, batches: int = 3) -> None:
    """Checks that a task keeps the contract that the training loop and the reports build on.

    Data are loaded, models are built and evaluated a few times, and every arm of the recipe is trained for one step.

    Args:
        task: an instance, as small as its options allow.
        batch: samples in a batch, at most ``task.size``.
        batches: how many of them are drawn.

    Raises:
        AssertionError: names the task, the promise that it breaks, and what was seen.

    Example:
        >>> from steering.tasks.blobs import Blobs
        >>> check_task(Blobs())
    """
    missing = [name for name in _MEMBERS if not hasattr(task, name)]
    assert not missing, f"{task!r}: a task needs {', '.join(missing)}; see steering.task.Task"
    with untouched():
        _Case(task, batch, batches).check()


class _Case(Contract):
    """One task, and what the checks share."""

    def __init__(self, task: Task, batch: int, batches: int):
        self.task, self.batch, self.batches = task, batch, batches

    def __str__(self) -> str:
        return repr(self.task)

    def take(self, stream: Any) -> list[Batch]:
        return [next(stream) for _ in range(self.batches)]

    def first(self) -> Batch:
        return next(self.task.stream(self.batch, seed=0))

    def target(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.task.target()

    def reference(self) -> Reference:
        reference = as_reference(self.task.reference(), self.task)
        if isinstance(reference, OwnPast):
            return of_model(reference.following(self.target()).module, self.task)
        return reference

    def check_settings(self) -> None:
        task, recipe = self.task, self.task.recipe
        self.require(isinstance(task.size, int) and task.size >= 1, "size is a count of samples", task.size)
        self.require(isinstance(task.rows, int) and task.rows >= 1, "rows is a count", task.rows)
        self.require(recipe.arms, "the recipe has arms")
        promise = f"the recipe's baseline is one of its arms {list(recipe.arms)}"
        self.require(recipe.baseline in recipe.arms, promise, recipe.baseline)
        for name, arm in recipe.arms.items():
            try:
                registry.build("rules", arm.rule)
                keep = registry.build("selectors", arm.selector).keep if arm.selector else 1.0
            except UserError as error:
                raise AssertionError(f"{task!r}: arm {name} can be built, got: {error}") from error
            promise = f"arm {name} finds its candidates among {task.size} samples"
            self.require(round(recipe.batch / keep) <= task.size, promise, round(recipe.batch / keep))

    def check_batches(self) -> None:
        size = self.task.size
        for batch in self.take(self.quietly("stream", lambda: self.task.stream(self.batch, seed=0))):
            ids = batch.ids
            self.require_int64(ids, "ids are")
            inside = 0 <= int(ids.min()) and int(ids.max()) < size
            self.require(inside, f"ids run from 0 to {size - 1}", ids.tolist())
            self.require(len(ids.unique()) == len(ids), "no id is twice in a batch", ids.tolist())
            length, unit = (self.batch, "samples") if batch.rows is None else (len(batch.rows), "entries")
            for name, value in {**batch.fields, **batch.facts}.items():
                promise = f"{name} has a row for each of {length} {unit}"
                self.require(value.shape[:1] == (length,), promise, list(value.shape))
            if batch.rows is not None:
                self.require_rows(batch.rows, "of a batch")

    def check_order(self) -> None:
        def draw(seed: int) -> list[Batch]:
            return self.quietly("a stream", lambda: self.take(self.task.stream(self.batch, seed=seed)))

        first, again, other = draw(0), draw(0), draw(1)
        self.require(_same(first, again), "the same seed gives the same batches", "others")
        ids, others = ([batch.ids.tolist() for batch in batches] for batches in (first, other))
        self.require(ids != others, "another seed gives another order of the data", "the same")

    def check_resuming(self) -> None:
        stream = self.task.stream(self.batch, seed=0)
        self.take(stream)
        file = io.BytesIO()
        torch.save(stream.state_dict(), file)
        file.seek(0)
        try:
            state = torch.load(file, weights_only=True)
        except UnpicklingError as error:
            raise AssertionError(f"{self.task!r}: a stream's state is of plain types, got: {error}") from error
        expected = self.take(stream)
        resumed = self.task.stream(self.batch, seed=0)
        resumed.load_state_dict(state)
        self.require(_same(self.take(resumed), expected), "a resumed stream goes on where it was", "other batches")

    def check_target(self) -> None:
        first = self.target().state_dict()
        disturb()  # and then torch's is seeded again
        promise = "the target's first weights depend on torch's global generator alone"
        self.require(_equal(first, self.target().state_dict()), promise, "others with the same seed")
        promise = "the target's first weights depend on torch's global generator"
        self.require(not _equal(first, self.target(seed=1).state_dict()), promise, "the same with another seed")

    def check_reference(self) -> None:
        first = self.quietly("reference", self.task.reference)
        if not isinstance(first, nn.Module):
            return
        self.require(
            _equal(first.state_dict(), self.task.reference().state_dict()),
            "the reference is the same at every call",
            "others",
        )
        training = [name or "itself" for name, part in first.named_modules() if part.training]
        self.require(not training, "the reference is in evaluation mode", f"training mode of {training}")

    def check_losses(self) -> None:
        batch, target, reference = self.first(), self.target(), self.reference()
        fields = {name: value.clone() for name, value in batch.fields.items()}
        losses = {}
        for owner, answer in (("target", partial(self.task.losses, target)), ("reference", reference)):
            losses[owner] = answer(batch)
            self.require_shapes(losses[owner], owner)
        unchanged = all(torch.equal(value, batch.fields[name]) for name, value in fields.items())
        self.require(unchanged, "losses do not write into the batch", "changed fields")
        shapes = [list(one.values.shape) for one in losses.values() if isinstance(one.values, Tensor)]
        self.require(shapes[:1] == shapes[1:], "target and reference have losses of the same shape", shapes)
        _tensors(losses["target"])[0].sum().backward()
        reached = any(p.grad is not None and p.grad.any() for p in target.parameters())
        self.require(reached, "losses of the target reach its weights with a gradient", "none")
        carries = any(part.requires_grad for part in _tensors(losses["reference"]))
        self.require(not carries, "a frozen reference's losses carry no gradient")

    def require_shapes(self, losses: Losses, owner: str) -> None:
        length, unit = (self.batch, "samples") if losses.rows is None else (len(losses.rows), "entries")
        for part in _tensors(losses):
            promise = f"losses of the {owner} have a row for each of {length} {unit}"
            self.require(part.shape[:1] == (length,), promise, list(part.shape))
        if losses.mask is not None:
            well_formed = losses.mask.dtype == torch.bool and losses.mask.shape == _tensors(losses)[0].shape
            promise = "the mask is True and False, shaped like the losses"
            self.require(well_formed, promise, f"{losses.mask.dtype} {list(losses.mask.shape)}")
        for part in _tensors(losses):
            counted = part if losses.mask is None else part[losses.mask]
            self.require(counted.isfinite().all(), f"losses of the {owner} are finite", part)
        if losses.rows is not None:
            self.require_rows(losses.rows, f"of the {owner}")
        if losses.groups is not None:
            self.require_int64(losses.groups, f"groups of the {owner} are")

    def require_int64(self, numbers: Tensor, subject: str) -> None:
        well_formed = numbers.dtype == torch.int64 and numbers.shape == (self.batch,)
        self.require(well_formed, f"{subject} [{self.batch}] int64", f"{list(numbers.shape)} {numbers.dtype}")

    def require_rows(self, rows: Tensor, owner: str) -> None:
        well_formed = rows.dtype == torch.int64 and rows.dim() == 1 and bool(((rows >= 0) & (rows < self.batch)).all())
        promise = f"rows {owner} are indices of samples, [entries] int64 from 0 to {self.batch - 1}"
        self.require(well_formed, promise, f"{rows.dtype} {rows.tolist()}")

    def check_losses_alone(self) -> None:
        """Losses of the reference are looked up by id, so they must not depend on the rest of the batch."""
        batch, reference = self.first(), self.reference()
        full = self.quietly("losses in evaluation mode", lambda: reference(batch))
        alone = reference(batch.take(torch.tensor([self.batch - 1, 0])))
        for index, index_alone in ((self.batch - 1, 0), (0, 1)):
            for one, other in zip(_of_sample(full, index), _of_sample(alone, index_alone), strict=True):
                same = one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5)
                promise = "a sample has the same loss (Pairs: features) whatever else is in the batch"
                self.require(same, promise, f"{one} and {other}")

    @torch.no_grad()
    def check_metrics(self) -> None:
        declared = self.task.metrics
        self.require(declared, "at least one metric is declared")
        for owner, model in (("target", self.target().eval()), ("reference", getattr(self.reference(), "model", None))):
            if model is None:
                continue
            metrics = self.quietly("evaluate", lambda model=model: self.task.evaluate(model))
            promise = f"evaluate returns the metrics declared, {sorted(declared)}"
            self.require(sorted(metrics) == sorted(declared), promise, sorted(metrics))
            for name, value in metrics.items():
                finite = isinstance(value, float) and math.isfinite(value)
                self.require(finite, f"{name} of the {owner} is a finite float", repr(value))
                if declared[name].percent:
                    self.require(0 <= value <= 1, f"{name} of the {owner} is a share from 0 to 1", value)
            self.require(self.task.evaluate(model) == metrics, f"the {owner} is evaluated alike twice", "other figures")

    def check_repetitions(self) -> None:
        repeated = self.quietly("seeded", lambda: self.task.seeded(3))
        same_kind = type(repeated) is type(self.task) and repeated.size == self.task.size
        self.require(same_kind, "another repetition is the same problem", f"{repeated!r}")
        draws = [self.take(task.stream(self.batch, seed=0)) for task in (repeated, self.task.seeded(3))]
        self.require(_same(*draws), "the same repetition has the same data", "others")

    def check_training(self) -> None:
        """What losses and facts the loop can work with is the loop's to say."""
        task, reference = self.task, ReferenceLosses(self.task)
        settings = {"steps": 1, "batch": min(self.batch, task.recipe.batch), "warmup": 0, "compile": False}
        recipe = task.recipe.model_copy(update=settings)
        for name, arm in {**recipe.arms, **recipe.more}.items():
            try:
                training = Training(task, arm, recipe, reference=reference, seed=0)
                record = training.step()
            except (UserError, RunError) as error:
                raise AssertionError(f"{task!r}: arm {name} can be trained, got: {error}") from error
            figures = {k: x for k, x in {**record, **record["facts"]}.items() if isinstance(x, float)}
            finite = all(map(math.isfinite, figures.values()))
            self.require(finite, f"a step of arm {name} has finite figures", figures)
            finite = all(parameter.isfinite().all() for parameter in training.model.parameters())
            self.require(finite, f"a step of arm {name} leaves finite weights")


def _tensors(losses: Losses) -> list[Tensor]:
    """Losses ``[n, ...]`` or ``[entries]``, or the features of Pairs."""
    values = losses.values
    return [values.left, values.right] if is_pairs(values) else [values]


def _of_sample(losses: Losses, index: int) -> list[Tensor]:
    """What belongs to one sample, padding left out."""
    if losses.mask is not None and losses.rows is None:
        return [part[index][losses.mask[index]] for part in _tensors(losses)]
    return [part[index if losses.rows is None else losses.rows == index] for part in _tensors(losses)]


def _same(batches: list[Batch], others: list[Batch]) -> bool:
    """Whether everything in two lists of batches is equal."""
    one, other = ([{"ids": x.ids, **x.fields, **x.facts} for x in part] for part in (batches, others))
    return all(map(_equal, one, other))


def _equal(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
