"""Steering in a LightningModule."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import default_collate

from steering.adapters.entries import as_losses, ids_of, reference_losses, reference_of, unchanged, weigh
from steering.distributed import fail_on_all_ranks
from steering.engine import Steerer
from steering.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule

KEY = "Steerer"  # in the callbacks of a checkpoint


@dataclass(frozen=True)
class MicroBatches:
    """Collates the samples of an optimizer step into micro-batches: ``DataLoader(..., collate_fn=MicroBatches(8))``.

    Attributes:
        size: samples of a micro-batch.
        collate: makes one of them.
    """

    size: int
    collate: Callable[[list], Any] = default_collate

    def __call__(self, samples: list) -> list:
        return [self.collate(samples[start : start + self.size]) for start in range(0, len(samples), self.size)]


class Steering:
    """The loss of a ``training_step``, with weights over all micro-batches that it is given, on all processes.

    ``accumulate_grad_batches`` would weigh every micro-batch alone, which is another method, and is refused: a batch of
    the loader is a list of micro-batches instead (``MicroBatches``). Each goes through the model twice, so that the
    activations of one at a time are held.

    Args:
        steerer: what weighs.
        losses: ``losses(model, batch)``, one a sample, ``[n]``; or ``steering.Losses`` of tokens, or of Pairs.
        reference: a model that ``losses`` takes as well; or any kind that ``as_reference`` takes, asked by
            ``batch["index"]``. None takes ``batch["reference_loss"]``.

    Example:
        >>> def losses(model, batch): return (model(batch["x"])[:, 0] - batch["y"]).square()
        >>> steering = Steering(Steerer("cvar(alpha=0.6)"), losses, reference=nn.Linear(3, 1))
        >>> class Model(LightningModule):  # doctest: +SKIP
        ...     def training_step(self, batches, index):
        ...         return steering.loss(self, batches)
        >>> Trainer(callbacks=[steering.callback()]).fit(Model(), loader)  # doctest: +SKIP
    """

    def __init__(self, steerer: Steerer, losses: Callable[[Any, Any], Any], reference: Any = None):
        self.steerer, self.losses, self.reference = steerer, losses, reference

    def loss(self, model: "LightningModule", batches: Sequence[Any]) -> Tensor:
        """The steered loss of a list of micro-batches; its value is the weighted loss, which is what to log.

        Raises:
            UserError: this is no list of them, or the Trainer accumulates on its own or lacks this callback.
        """
        if not isinstance(batches, list) or not batches:
            raise UserError(f"micro-batches are a list, as MicroBatches(8) collates it, got {type(batches).__name__}")
        trainer: Any = model.trainer
        if trainer.accumulate_grad_batches != 1 or KEY not in [x.state_key for x in trainer.callbacks]:
            raise UserError(
                "steering weighs all micro-batches of a step together: Trainer(callbacks=[steering.callback()]) with "
                "accumulate_grad_batches=1, and DataLoader(batch_size=32, collate_fn=MicroBatches(8)) to accumulate"
            )
        self.reference = reference_of(self.reference, model)
        references = fail_on_all_ranks(lambda: [reference_losses(self.reference, self.losses, x) for x in batches])
        run: Callable[..., Any] = self.losses if len(batches) == 1 else partial(_run_again, self.losses)
        answers = fail_on_all_ranks(lambda: [as_losses(run(model, batch)) for batch in batches])
        window, indices = weigh(self.steerer, answers, references, [ids_of(batch) for batch in batches])
        parts = [window.loss(answer.values, index) for answer, index in zip(answers, indices, strict=True)]
        return torch.stack(parts).sum()

    def callback(self) -> "Callback":
        """What keeps the steerer in the checkpoints of a Trainer."""
        package = "pytorch_lightning" if "lightning.pytorch" not in sys.modules else "lightning.pytorch"  # as was used
        try:
            base: Any = import_module(package).Callback
        except ImportError:
            raise UserError("steering needs Lightning 2.6 or newer: pip install 'model-steering[lightning]'") from None
        steerer = self.steerer

        class KeepSteerer(base):
            state_key = KEY

            def state_dict(self) -> dict[str, Any]:
                return steerer.state_dict()

            def load_state_dict(self, state_dict: dict[str, Any]) -> None:
                steerer.load_state_dict(state_dict)

        return KeepSteerer()


def _run_again(losses: Callable[[Any, Any], Any], model: nn.Module, batch: Any) -> Any:
    """The losses of a micro-batch, which goes through the model once more when the gradient comes."""
    contexts = lambda: (nullcontext(), unchanged(model))  # noqa: E731
    return checkpoint(losses, model, batch, use_reentrant=False, context_fn=contexts)
