"""The contract of a task as runnable checks, for our tasks and yours."""

import io
import math
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from steering import registry
from steering.contrastive.pairs import Pairs
from steering.errors import UserError
from steering.references.kinds import Model, OwnPast, Reference, as_reference
from steering.task import Batch, Losses, Task
from steering.testing._generators import disturb, states
from steering.training.seeds import untouched

_PARTS = ("size", "rows", "recipe", "metrics", "seeded", "target", "reference", "stream", "losses", "evaluate")


def check_task(task: Task, *, batch: int = 8, batches: int = 3) -> None:
    """Checks that a task keeps the contract that the training loop and the reports build on.

    Data are loaded, models are built and evaluated a few times; nothing is trained.

    Args:
        task: an instance, as small as its options allow.
        batch: samples in a batch, at most ``task.size``.
        batches: how many of them are looked at.

    Raises:
        AssertionError: names the task, the promise that it breaks, and what was seen.

    Example:
        >>> from steering.tasks.blobs import Blobs
        >>> check_task(Blobs())
    """
    missing = [part for part in _PARTS if not hasattr(task, part)]
    assert not missing, f"{task!r}: a task needs {', '.join(missing)}; see steering.task.Task"
    with untouched():
        for check in _CHECKS:
            check(_Case(task, batch, batches))


class _Case:
    """One task, and what the checks share."""

    def __init__(self, task: Task, batch: int, batches: int):
        self.task, self.batch, self.batches = task, batch, batches

    def require(self, kept: object, promise: str, got: object = "") -> None:
        """Asserts that a promise is kept."""
        assert kept, f"{self.task!r}: {promise}" + (f", got {got}" if str(got) else "")

    def take(self, stream: Any, batches: int | None = None) -> list[Batch]:
        return [next(stream) for _ in range(batches or self.batches)]

    def first(self) -> Batch:
        return next(self.task.stream(self.batch, seed=0))

    def target(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.task.target()

    def reference(self) -> Reference:
        reference = as_reference(self.task.reference(), self.task)
        if isinstance(reference, OwnPast):
            return Model(reference.following(self.target()).module, self.task)
        return reference

    def quietly(self, what: str, action: Callable[[], Any]) -> Any:
        """Does something that must leave the global generators as they are."""
        before = states()
        result = action()
        touched = [name for name, state in states().items() if state != before[name]]
        self.require(not touched, f"{what} leaves the global generators alone", f"another state of {touched}")
        return result


def _check_settings(case: _Case) -> None:
    task, recipe = case.task, case.task.recipe
    case.require(isinstance(task.size, int) and task.size >= 1, "size is a count of samples", task.size)
    case.require(isinstance(task.rows, int) and task.rows >= 1, "rows is a count", task.rows)
    case.require(recipe.arms, "the recipe has arms")
    promise = f"the recipe's baseline is one of its arms {list(recipe.arms)}"
    case.require(recipe.baseline in recipe.arms, promise, recipe.baseline)
    for name, arm in recipe.arms.items():
        try:
            registry.build("rules", arm.rule)
            keep = registry.build("selectors", arm.selector).keep if arm.selector else 1.0
        except UserError as error:
            raise AssertionError(f"{task!r}: arm {name} can be built, got: {error}") from error
        promise = f"arm {name} finds its candidates among {task.size} samples"
        case.require(round(recipe.batch / keep) <= task.size, promise, round(recipe.batch / keep))


def _check_batches(case: _Case) -> None:
    size = case.task.size
    for batch in case.take(case.quietly("stream", lambda: case.task.stream(case.batch, seed=0))):
        ids = batch.ids
        right = ids.dtype == torch.int64 and ids.shape == (case.batch,)
        case.require(right, f"ids are [{case.batch}] int64", f"{list(ids.shape)} {ids.dtype}")
        inside = 0 <= int(ids.min()) and int(ids.max()) < size
        case.require(inside, f"ids run from 0 to {size - 1}", ids.tolist())
        case.require(len(ids.unique()) == len(ids), "no id is twice in a batch", ids.tolist())
        for name, value in {**batch.fields, **batch.facts}.items():
            promise = f"{name} has a row for each of {case.batch} samples"
            case.require(len(value) == case.batch, promise, list(value.shape))


def _check_order(case: _Case) -> None:
    def draw(seed: int) -> list[Batch]:
        return case.quietly("a stream", lambda: case.take(case.task.stream(case.batch, seed=seed)))

    first, again, other = draw(0), draw(0), draw(1)
    case.require(_same(first, again), "the same seed gives the same batches", "others")
    ids, others = ([batch.ids.tolist() for batch in batches] for batches in (first, other))
    case.require(ids != others, "another seed gives another order of the data", "the same")


def _check_resuming(case: _Case) -> None:
    stream = case.task.stream(case.batch, seed=0)
    case.take(stream)
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    file.seek(0)
    try:
        state = torch.load(file, weights_only=True)
    except UnpicklingError as error:
        raise AssertionError(f"{case.task!r}: a stream's state is of plain types, got: {error}") from error
    wanted = case.take(stream)
    resumed = case.task.stream(case.batch, seed=0)
    resumed.load_state_dict(state)
    case.require(_same(case.take(resumed), wanted), "a resumed stream goes on where it was", "other batches")


def _check_target(case: _Case) -> None:
    first = case.target()
    disturb()  # and then torch's is seeded again
    promise = "the target's first weights depend on torch's global generator alone"
    case.require(_same_weights(first, case.target()), promise, "others with the same seed")
    promise = "the target's first weights depend on torch's global generator"
    case.require(not _same_weights(first, case.target(seed=1)), promise, "the same with another seed")


def _check_reference(case: _Case) -> None:
    first = case.quietly("reference", case.task.reference)
    if not isinstance(first, nn.Module):
        return
    case.require(_same_weights(first, case.task.reference()), "the reference is the same at every call", "others")
    training = [name or "itself" for name, part in first.named_modules() if part.training]
    case.require(not training, "the reference is in evaluation mode", f"training mode of {training}")


def _check_losses(case: _Case) -> None:
    batch, target, reference = case.first(), case.target(), case.reference()
    kept = {name: value.clone() for name, value in batch.fields.items()}
    mine, known = case.task.losses(target, batch), reference(batch)
    unchanged = all(torch.equal(value, batch.fields[name]) for name, value in kept.items())
    case.require(unchanged, "losses do not write into the batch", "changed fields")
    shapes = [[list(part.shape) for part in _parts(losses)] for losses in (mine, known)]
    if isinstance(mine.values, Tensor):
        case.require(shapes[0] == shapes[1], "target and reference have losses of the same shape", shapes)
    for losses, owner in ((mine, "target"), (known, "reference")):
        for part in _parts(losses):
            case.require(part.isfinite().all(), f"losses of the {owner} are finite", part)
            promise = f"losses of the {owner} have a row for each of {case.batch} samples"
            case.require(part.dim() > 0 and len(part) == case.batch, promise, list(part.shape))
        if losses.mask is not None:
            promise = "the mask is True and False, shaped like the losses"
            right = losses.mask.dtype == torch.bool and list(losses.mask.shape) == shapes[0][0]
            case.require(right, promise, f"{losses.mask.dtype} {list(losses.mask.shape)}")
    _parts(mine)[0].sum().backward()
    found = any(p.grad is not None and p.grad.any() for p in target.parameters())
    case.require(found, "losses of the target reach its weights with a gradient", "none")
    case.require(not any(p.requires_grad for p in _parts(known)), "a frozen reference's losses carry no gradient")


def _check_losses_alone(case: _Case) -> None:
    """Losses of the reference are looked up by id, so they must not depend on the rest of the batch."""
    batch, reference = case.first(), case.reference()
    places = torch.tensor([case.batch - 1, 0])
    whole = _parts(case.quietly("losses in evaluation mode", lambda: reference(batch)))
    for part, alone in zip(whole, _parts(reference(batch.take(places))), strict=True):
        same = torch.allclose(part[places], alone, rtol=1e-4, atol=1e-5)
        promise = "a sample has the same loss (Pairs: features) whatever else is in the batch"
        case.require(same, promise, f"{part[places]} and {alone}")


@torch.no_grad()
def _check_metrics(case: _Case) -> None:
    declared = case.task.metrics
    case.require(declared, "at least one metric is declared")
    for owner, model in (("target", case.target().eval()), ("reference", getattr(case.reference(), "model", None))):
        if model is None:
            continue
        seen = case.quietly("evaluate", lambda model=model: case.task.evaluate(model))
        promise = f"evaluate returns the metrics declared, {sorted(declared)}"
        case.require(sorted(seen) == sorted(declared), promise, sorted(seen))
        for name, value in seen.items():
            right = isinstance(value, float) and math.isfinite(value)
            case.require(right, f"{name} of the {owner} is a finite float", repr(value))
            if declared[name].percent:
                case.require(0 <= value <= 1, f"{name} of the {owner} is a share from 0 to 1", value)
        case.require(case.task.evaluate(model) == seen, f"the {owner} is evaluated alike twice", "other figures")


def _check_repetitions(case: _Case) -> None:
    repeated = case.quietly("seeded", lambda: case.task.seeded(3))
    same_kind = type(repeated) is type(case.task) and repeated.size == case.task.size
    case.require(same_kind, "another repetition is the same problem", f"{repeated!r}")
    draws = [case.take(task.stream(case.batch, seed=0)) for task in (repeated, case.task.seeded(3))]
    case.require(_same(*draws), "the same repetition has the same data", "others")


_CHECKS: tuple[Callable[[_Case], None], ...] = (
    _check_settings,
    _check_batches,
    _check_order,
    _check_resuming,
    _check_target,
    _check_reference,
    _check_losses,
    _check_losses_alone,
    _check_metrics,
    _check_repetitions,
)


def _parts(losses: Losses) -> list[Tensor]:
    """Losses ``[n, ...]``, or the features of Pairs."""
    values = losses.values
    return [values.left, values.right] if isinstance(values, Pairs) else [values]


def _same(some: list[Batch], others: list[Batch]) -> bool:
    """Whether everything in two lists of batches is equal."""
    for one, other in zip(some, others, strict=True):
        mine, its = ({"ids": batch.ids, **batch.fields, **batch.facts} for batch in (one, other))
        if mine.keys() != its.keys() or not all(torch.equal(mine[name], its[name]) for name in mine):
            return False
    return True


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
