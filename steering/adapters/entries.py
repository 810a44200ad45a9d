"""What the adapters share: windows of micro-batches, and what a reference says of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from steering.contrastive.pairs import is_pairs
from steering.distributed import fail_on_all_ranks
from steering.engine import Steerer
from steering.errors import UserError
from steering.references import LossTable, as_reference
from steering.references.answers import same_entries
from steering.task import Batch, Losses
from steering.window import Window

ADD_INDEX = "dataset.add_column('index', range(len(dataset)))"


@contextmanager
def first_pass(model: nn.Module) -> Iterator[None]:
    """No gradient and no trace: the second pass draws the same random numbers and begins with the same buffers."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.no_grad(), torch.random.fork_rng(devices), unchanged(model):
        yield


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Buffers, such as running means, leave this block as they entered it."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)


def weigh(
    steerer: Steerer, losses: Sequence[Losses], reference: Sequence[Losses | None], ids: Sequence[Tensor | None]
) -> tuple[Window, list[slice]]:
    """Settles the weights of micro-batches together; gives their window, and the index of each in it.

    Raises:
        UserError: some of them lack a reference's losses, or all do and the steerer subtracts them; on all ranks.
    """

    def joined() -> tuple[Losses, Any, Tensor | None]:
        """The losses of all, the reference's, and the ids of the samples."""
        sizes = [_size(part) if index is None else len(index) for part, index in zip(losses, ids, strict=True)]
        target = Losses.concatenate([part._replace(outputs=None) for part in losses], sizes)
        present = [index for index in ids if index is not None]
        indices = torch.cat(present) if len(present) == len(ids) else None
        answers = [part._replace(outputs=None) for part in reference if part is not None]
        if len(answers) == len(losses):
            numbers = torch.arange(sum(sizes)) if indices is None else indices
            return target, same_entries(target, Losses.concatenate(answers, sizes), numbers), indices
        if steerer.reference_scale != 0:
            raise UserError(
                "steering needs a reference: reference=..., or a column reference_loss in every batch; with "
                "Steerer(reference_scale=0) it goes by the loss alone"
            )
        return target, None, indices

    target, values, indices = fail_on_all_ranks(joined)
    options = {"mask": target.mask, "rows": target.rows, "groups": target.groups}
    window = steerer.weigh(target.values, values, ids=indices, **options)
    lengths = [len(part.values.left) if is_pairs(part.values) else len(part.values) for part in losses]
    ends = list(accumulate(lengths, initial=0))
    return window, [slice(start, end) for start, end in pairwise(ends)]


def _size(losses: Losses) -> int:
    """Samples that losses without ids are of."""
    if is_pairs(losses.values):
        return len(losses.values.left)
    if losses.rows is None:
        return len(losses.values)
    return int(losses.rows.max()) + 1 if len(losses.rows) else 0


def reference_of(reference: Any, model: nn.Module, size: int | None = None) -> Any:
    """A frozen module, or what answers a batch; None without a reference.

    Args:
        reference: a module, or any other kind that ``as_reference`` takes.
        model: the target.
        size: samples of the training set, where that is known.

    Raises:
        UserError: it cannot be a reference, is the target itself, has another vocabulary, or is of other data.
    """
    if reference is model:
        raise UserError("the reference is another model than the target, got the target itself: copy.deepcopy it")
    if isinstance(reference, nn.Module):
        if (classes := _classes(model)) != (other := _classes(reference)):
            raise UserError(
                f"target and reference have one vocabulary (or classes), got {classes} and {other}: score the "
                f"target's tokens and give a column reference_loss"
            )
        return reference.to(next(model.parameters()).device).eval().requires_grad_(False)
    answers = None if reference is None else as_reference(reference)
    if isinstance(answers, LossTable) and answers.ids is None and size not in (None, answers.size):
        raise UserError(f"got {answers.size} reference losses for {size} samples: they are of other data, score anew")
    return answers


def _classes(model: nn.Module) -> int | None:
    """The vocabulary of a language model of transformers, or the classes of a classifier; None of other modules."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_output_embeddings"):
        return None
    head: Any = model.get_output_embeddings
    return config.num_labels if head() is None else config.get_text_config().vocab_size


def reference_losses(reference: Any, losses: Callable[[Any, Any], Any], batch: Any) -> Losses | None:
    """What a reference of ``reference_of`` says of a batch: its column reference_loss, by its column index, or a model.

    Raises:
        UserError: the reference is asked by id and the batch has none.
    """
    if isinstance(reference, nn.Module):
        with torch.no_grad():
            return as_losses(losses(reference, batch))
    if reference is None:
        column = batch.get("reference_loss") if isinstance(batch, Mapping) else None
        return None if column is None else as_losses(column)
    if not isinstance(batch, Batch):
        ids = ids_of(batch)
        if ids is None:
            raise UserError(f"a reference that is asked by id needs a column 'index' in every batch: {ADD_INDEX}")
        fields = {name: x for name, x in batch.items() if isinstance(x, Tensor) and x.shape[:1] == ids.shape}
        batch = Batch(ids, fields)
    return reference(batch)


def ids_of(batch: Any) -> Tensor | None:
    """The ids of the samples of a batch, ``[n]``, where it has any."""
    return batch.ids if isinstance(batch, Batch) else batch.get("index") if isinstance(batch, Mapping) else None


def as_losses(losses: Any) -> Losses:
    return losses if isinstance(losses, Losses) else Losses(losses)
