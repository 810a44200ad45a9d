"""The one training loop: every task, rule, selector and baseline goes through it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steering.distributed import all_reduce_sum, fail_on_all_ranks, rank, world_size
from steering.errors import RunError, UserError
from steering.task import Task
from steering.training import checkpoint, seeds
from steering.training.checkpoint import trained as trained
from steering.training.state_check import check_state
from steering.training.step import Record, Training
from steering.training.workers import explained


@torch.no_grad()
def evaluate(task: Task, model: nn.Module | None) -> dict[str, float]:
    """The task's metrics of a model, in evaluation mode and without touching any global generator.

    A reference that is no model (``None``) has no metrics.
    """
    if model is None:
        return {}
    was_training = model.training
    model.eval()
    with seeds.untouched():
        metrics = task.evaluate(model)
    model.train(was_training)
    return metrics


def run(
    training: Training, path: Path, *, record: Callable[[Record], None], stopped: Callable[[], bool] = lambda: False
) -> bool:
    """Trains to the end of the recipe, with checkpoints at ``path``; continues the one that is there.

    Any number of ranks may continue what another number began, as far as the batch can be shared evenly. With the
    same number a run that was stopped, or killed and repeated from its last checkpoint, ends with the same bits.

    Args:
        training: fresh; its state is replaced by the checkpoint's if there is one.
        path: of the checkpoint.
        record: takes every step's figures, and ``{"step", "samples", "evaluation"}`` after an evaluation.
        stopped: called after every step; True, on any rank, ends the run of all with a checkpoint.

    Returns:
        Whether the end of the recipe was reached.

    Raises:
        RunError: the loss or the weights are not finite; the last good checkpoint is kept.
    """
    recipe = training.recipe
    with explained(), checkpoint.Saver(path, keep=recipe.keep_checkpoints) as saver:
        if _any_rank(path.exists(), training.device):
            _restore(training, path)
        else:
            _save(saver, training)
        while training.done < recipe.steps:
            record(training.step())
            last = training.done == recipe.steps
            if last or (recipe.evaluate_every and training.done % recipe.evaluate_every == 0):
                evaluation = evaluate(training.task, training.result)
                record({"step": training.done, "samples": training.counters.samples, "evaluation": evaluation})
            halt = _any_rank(stopped(), training.device) and not last
            if last or halt or training.done % recipe.checkpoint_every == 0 or _is_late(saver, training):
                _check_weights(training)
                _save(saver, training)
            if halt:
                fail_on_all_ranks(saver.wait)  # a launcher ends all processes when the first of them has gone
                return False
    return True


def _is_late(saver: checkpoint.Saver, training: Training) -> bool:
    """Whether the last checkpoint is too old, by the clock of the first rank, which writes them."""
    minutes = training.recipe.checkpoint_minutes
    return bool(minutes) and _any_rank(rank() == 0 and saver.age() > 60 * minutes, training.device)


def _save(saver: checkpoint.Saver, training: Training) -> None:
    """Begins to write a checkpoint, on the first rank."""
    state = training.state_dict()
    fail_on_all_ranks(lambda: saver.save(state) if rank() == 0 else None)


def _restore(training: Training, path: Path) -> None:
    """Goes on from a checkpoint, of which nothing is used before all of it was seen to fit."""

    def read() -> dict[str, Any]:
        state = checkpoint.load(path)
        if (number := state.get("format", 1)) != checkpoint.FORMAT:
            raise UserError(
                f"the checkpoint {path} has format {number}, this version goes on from format {checkpoint.FORMAT}: "
                f"finish that run with the version that began it, or delete the checkpoint to start that arm anew"
            )
        with _fitting(path):
            check_state(state, training)
        return state

    checked = fail_on_all_ranks(lambda: read() if rank() == 0 else None)
    state = fail_on_all_ranks(lambda: checkpoint.load(path) if checked is None else checked)
    with _fitting(path):
        training.load_state_dict(state)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Says in one line what of a checkpoint does not fit; torch has many ways to say so."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint {path} does not fit this arm ({reason}): was the code changed, or the file exchanged? "
            f"Delete it to start that arm anew"
        ) from None


def _any_rank(flag: bool, device: torch.device | str) -> bool:
    """Whether a flag is set on any rank: all have to end after the same step, or those left would wait for ever."""
    return bool(all_reduce_sum(torch.tensor(float(flag), device=device))) if world_size() > 1 else flag


def _check_weights(training: Training) -> None:
    """A checkpoint that cannot be trained on must not replace one that can."""
    for name, weight in training.model.named_parameters():
        if not weight.isfinite().all():
            raise RunError(f"weights of {name} are not finite after step {training.done}: use a smaller learning rate")
