"""Steering in the Trainer of Hugging Face's transformers, and in those that build on it."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steering.adapters.entries import first_pass, reference_losses, reference_of, weigh
from steering.adapters.tokens import COLUMNS, Collator, entry_losses, label_mask, reference_entries, row_numbers
from steering.distributed import fail_on_all_ranks
from steering.engine import Steerer
from steering.errors import UserError
from steering.task import Losses
from steering.training.checkpoint import load, save

Base: Any = object  # the Trainer stands behind the mixin
STATE = "steerer.pt"  # in every checkpoint of the Trainer
SHARE = "steering_share"  # under which a micro-batch carries what makes its losses a part of its window's loss


class SteeredTrainerMixin(Base):
    """Steers a ``Trainer``: weights over all micro-batches of an optimizer step, on all processes.

    Losses are those of samples, or of the tokens of all samples, and are divided by their number
    (``num_items_in_batch``): with ``Uniform()`` it trains as without steering. ``Steerer(over="rows")`` weighs the
    tokens of a document among themselves. With gradient accumulation every micro-batch goes through the model once
    more, without gradient. Evaluation is the Trainer's own. What is logged is the weighted loss, without the
    reference's part; the steerer is in every checkpoint.

    Args:
        steerer: what weighs.
        reference: a model with the same vocabulary or classes; or any kind that ``as_reference`` takes, which is asked
            by a column ``index`` and answers one loss a sample, a token, or a token with a label. None takes the column
            ``reference_loss`` of the data set: a number, or a list as long as ``input_ids`` with the loss of every
            token.

    Example:
        >>> from transformers import Trainer
        >>> class SteeredTrainer(SteeredTrainerMixin, Trainer): ...
        >>> trainer = SteeredTrainer(model, steerer=Steerer("cvar(alpha=0.6)"), reference=small)  # doctest: +SKIP
    """

    def __init__(self, *args: Any, steerer: Steerer, reference: Any = None, **kwargs: Any):
        hook = getattr(super(), "get_batch_samples", None)
        if hook is None or "device" not in inspect.signature(hook).parameters:
            raise UserError(
                "SteeredTrainerMixin needs a Trainer of transformers 5 or newer, with get_batch_samples, behind it: "
                f"class SteeredTrainer(SteeredTrainerMixin, Trainer), got {type(self).__mro__[2].__name__}"
            )
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise UserError("compute_loss_func and label_smoothing_factor give one loss a batch: override entry_losses")
        size = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        self.steerer, self.reference = steerer, reference_of(reference, self.model, size)

    def entry_losses(self, model: nn.Module, inputs: Any) -> Tensor:
        """Losses ``[entries]`` of a micro-batch: of its samples, or of its tokens that have a label, in their order."""
        return entry_losses(self.model, model, inputs)

    def _reference_rows_ids(self, inputs: Any) -> tuple[Losses | None, Tensor | None, Tensor | None]:
        """The reference's losses of a micro-batch's entries, the row of every entry, and the ids of its samples."""
        mask = label_mask(self.model, inputs)
        rows = row_numbers(inputs, mask) if self.steerer.over == "rows" and mask.dim() == 2 else None
        with self.accelerator.autocast():
            answer = reference_losses(self.reference, self.entry_losses, inputs)
        if answer is not None and not isinstance(self.reference, nn.Module):
            answer = reference_entries(answer, mask, inputs)
        return None if answer is None else answer._replace(rows=rows), rows, inputs.get("index")

    def _window(self, losses: list[Tensor], details: list) -> list[Callable[[Tensor], Tensor]]:
        """What makes the losses of each micro-batch, with gradient, its part of the loss of all of them."""
        references, rows, ids = zip(*details, strict=True)
        entries = [Losses(values, rows=index) for values, index in zip(losses, rows, strict=True)]
        window, indices = weigh(self.steerer, entries, references, ids)
        return [partial(window.loss, index=index) for index in indices]

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The micro-batches of an optimizer step, each with its share, and the number of their labels."""
        with self._counting():
            batches, number = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, number
        self.model.train()
        inputs = [self._prepare_inputs(batch) for batch in batches]
        details = fail_on_all_ranks(lambda: [self._reference_rows_ids(part) for part in inputs])
        if self.args.gradient_accumulation_steps == 1:
            batches[0][SHARE] = lambda losses: self._window([losses.detach()], details)[0](losses)
            return batches, number
        with first_pass(self.model), self.accelerator.autocast():
            losses = fail_on_all_ranks(lambda: [self.entry_losses(self.model, part) for part in inputs])
        for batch, share in zip(batches, self._window(losses, details), strict=True):
            batch[SHARE] = share
        return batches, number

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None):
        """A micro-batch's part of the steered loss; the Trainer's own loss in evaluation."""
        share = inputs.pop(SHARE, None)
        if share is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return share(fail_on_all_ranks(lambda: self.entry_losses(model, inputs)))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's own, which must not divide a loss once more by the number of micro-batches."""
        with self._counting():
            return super().training_step(*args, **kwargs)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Lets the Trainer count labels (num_items_in_batch), as it does where the model is to divide by them."""
        accepts, self.model_accepts_loss_kwargs = self.model_accepts_loss_kwargs, True
        try:
            yield
        finally:
            self.model_accepts_loss_kwargs = accepts

    def get_train_dataloader(self):
        """The Trainer's own, with the columns of steering in every batch."""
        self._set_signature_columns_if_needed()
        collate, columns = self.data_collator, self._signature_columns
        self.data_collator, self._signature_columns = Collator(collate), [*(columns or ()), *COLUMNS]
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator, self._signature_columns = collate, columns

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any):
        """The Trainer's own; a checkpoint brings its steerer."""
        folder = resume_from_checkpoint
        if folder is True:
            from transformers.trainer_utils import get_last_checkpoint

            folder = get_last_checkpoint(self.args.output_dir)  # without any the Trainer says so
        if folder:
            if not (path := Path(folder) / STATE).exists():
                raise UserError(f"{path} is missing: resume from a checkpoint that was saved with steering")
            self.steerer.load_state_dict(load(path, number=""))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            save(folder / STATE, self.steerer.state_dict())
