"""The contract of a task as runnable checks, for our tasks and yours."""

import io
import math
from collections.abc import Callable, Mapping
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from steering import registry
from steering.contrastive.pairs import is_pairs
from steering.errors import RunError, UserError
from steering.references.kinds import Model, OwnPast, Reference, as_reference
from steering.references.store import ReferenceLosses
from steering.task import Batch, Losses, Task
from steering.testing._generators import disturb, states
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
        for check in _CHECKS:
            check(_Case(task, batch, batches))


class _Case:
    """One task, and what the checks share."""

    def __init__(self, task: Task, batch: int, batches: int):
        self.task, self.batch, self.batches = task, batch, batches

    def require(self, condition: object, promise: str, got: object = "") -> None:
        """Asserts that a promise is kept."""
        assert condition, f"{self.task!r}: {promise}" + (f", got {got}" if str(got) else "")

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

    def quietly(self, name: str, action: Callable[[], Any]) -> Any:
        """Calls something that must leave the global generators as they are."""
        before = states()
        result = action()
        changed = [generator for generator, state in states().items() if state != before[generator]]
        self.require(not changed, f"{name} leaves the global generators alone", f"another state of {changed}")
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
        well_formed = ids.dtype == torch.int64 and ids.shape == (case.batch,)
        case.require(well_formed, f"ids are [{case.batch}] int64", f"{list(ids.shape)} {ids.dtype}")
        inside = 0 <= int(ids.min()) and int(ids.max()) < size
        case.require(inside, f"ids run from 0 to {size - 1}", ids.tolist())
        case.require(len(ids.unique()) == len(ids), "no id is twice in a batch", ids.tolist())
        length, unit = (case.batch, "samples") if batch.rows is None else (len(batch.rows), "entries")
        for name, value in {**batch.fields, **batch.facts}.items():
            promise = f"{name} has a row for each of {length} {unit}"
            case.require(value.shape[:1] == (length,), promise, list(value.shape))
        if batch.rows is not None:
            _check_rows(case, batch.rows, "of a batch")


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
    expected = case.take(stream)
    resumed = case.task.stream(case.batch, seed=0)
    resumed.load_state_dict(state)
    case.require(_same(case.take(resumed), expected), "a resumed stream goes on where it was", "other batches")


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
    fields = {name: value.clone() for name, value in batch.fields.items()}
    losses = {"target": case.task.losses(target, batch), "reference": reference(batch)}
    unchanged = all(torch.equal(value, batch.fields[name]) for name, value in fields.items())
    case.require(unchanged, "losses do not write into the batch", "changed fields")
    for owner, one in losses.items():
        _check_shapes(case, one, owner)
    shapes = [list(one.values.shape) for one in losses.values() if isinstance(one.values, Tensor)]
    case.require(shapes[:1] == shapes[1:], "target and reference have losses of the same shape", shapes)
    _tensors(losses["target"])[0].sum().backward()
    reached = any(p.grad is not None and p.grad.any() for p in target.parameters())
    case.require(reached, "losses of the target reach its weights with a gradient", "none")
    carries = any(part.requires_grad for part in _tensors(losses["reference"]))
    case.require(not carries, "a frozen reference's losses carry no gradient")


def _check_shapes(case: _Case, losses: Losses, owner: str) -> None:
    length, unit = (case.batch, "samples") if losses.rows is None else (len(losses.rows), "entries")
    for part in _tensors(losses):
        promise = f"losses of the {owner} have a row for each of {length} {unit}"
        case.require(part.shape[:1] == (length,), promise, list(part.shape))
    if losses.mask is not None:
        well_formed = losses.mask.dtype == torch.bool and losses.mask.shape == _tensors(losses)[0].shape
        promise = "the mask is True and False, shaped like the losses"
        case.require(well_formed, promise, f"{losses.mask.dtype} {list(losses.mask.shape)}")
    for part in _tensors(losses):
        counted = part if losses.mask is None else part[losses.mask]
        case.require(counted.isfinite().all(), f"losses of the {owner} are finite", part)
    if losses.rows is not None:
        _check_rows(case, losses.rows, f"of the {owner}")
    if losses.groups is not None:
        well_formed = losses.groups.dtype == torch.int64 and losses.groups.shape == (case.batch,)
        promise = f"groups of the {owner} are [{case.batch}] int64"
        case.require(well_formed, promise, f"{list(losses.groups.shape)} {losses.groups.dtype}")


def _check_rows(case: _Case, rows: Tensor, owner: str) -> None:
    well_formed = rows.dtype == torch.int64 and rows.dim() == 1 and bool(((rows >= 0) & (rows < case.batch)).all())
    promise = f"rows {owner} are indices of samples, [entries] int64 from 0 to {case.batch - 1}"
    case.require(well_formed, promise, f"{rows.dtype} {rows.tolist()}")


def _check_losses_alone(case: _Case) -> None:
    """Losses of the reference are looked up by id, so they must not depend on the rest of the batch."""
    batch, reference = case.first(), case.reference()
    full = case.quietly("losses in evaluation mode", lambda: reference(batch))
    alone = reference(batch.take(torch.tensor([case.batch - 1, 0])))
    for index, index_alone in ((case.batch - 1, 0), (0, 1)):
        for one, other in zip(_of_sample(full, index), _of_sample(alone, index_alone), strict=True):
            same = one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5)
            promise = "a sample has the same loss (Pairs: features) whatever else is in the batch"
            case.require(same, promise, f"{one} and {other}")


@torch.no_grad()
def _check_metrics(case: _Case) -> None:
    declared = case.task.metrics
    case.require(declared, "at least one metric is declared")
    for owner, model in (("target", case.target().eval()), ("reference", getattr(case.reference(), "model", None))):
        if model is None:
            continue
        metrics = case.quietly("evaluate", lambda model=model: case.task.evaluate(model))
        promise = f"evaluate returns the metrics declared, {sorted(declared)}"
        case.require(sorted(metrics) == sorted(declared), promise, sorted(metrics))
        for name, value in metrics.items():
            finite = isinstance(value, float) and math.isfinite(value)
            case.require(finite, f"{name} of the {owner} is a finite float", repr(value))
            if declared[name].percent:
                case.require(0 <= value <= 1, f"{name} of the {owner} is a share from 0 to 1", value)
        case.require(case.task.evaluate(model) == metrics, f"the {owner} is evaluated alike twice", "other figures")


def _check_repetitions(case: _Case) -> None:
    repeated = case.quietly("seeded", lambda: case.task.seeded(3))
    same_kind = type(repeated) is type(case.task) and repeated.size == case.task.size
    case.require(same_kind, "another repetition is the same problem", f"{repeated!r}")
    draws = [case.take(task.stream(case.batch, seed=0)) for task in (repeated, case.task.seeded(3))]
    case.require(_same(*draws), "the same repetition has the same data", "others")


def _check_training(case: _Case) -> None:
    """What losses and facts the loop can work with is the loop's to say."""
    task, reference = case.task, ReferenceLosses(case.task)
    settings = {"steps": 1, "batch": min(case.batch, task.recipe.batch), "warmup": 0, "compile": False}
    recipe = task.recipe.model_copy(update=settings)
    for name, arm in {**recipe.arms, **recipe.more}.items():
        try:
            training = Training(task, arm, recipe, reference=reference, seed=0)
            record = training.step()
        except (UserError, RunError) as error:
            raise AssertionError(f"{task!r}: arm {name} can be trained, got: {error}") from error
        figures = {k: x for k, x in {**record, **record["facts"]}.items() if isinstance(x, float)}
        finite = all(map(math.isfinite, figures.values()))
        case.require(finite, f"a step of arm {name} has finite figures", figures)
        finite = all(parameter.isfinite().all() for parameter in training.model.parameters())
        case.require(finite, f"a step of arm {name} leaves finite weights")


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
    _check_training,
)


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
    pairs = zip(batches, others, strict=True)
    return all(_equal(*({"ids": x.ids, **x.fields, **x.facts} for x in pair)) for pair in pairs)


def _same_weights(model: nn.Module, other: nn.Module) -> bool:
    return _equal(model.state_dict(), other.state_dict())


def _equal(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
