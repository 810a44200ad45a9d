"""Reference losses by sample id: every sample is scored once, then looked up."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from steering.errors import UserError
from steering.references.answers import Answers
from steering.references.kinds import OwnPast, Reference, as_reference, of_model
from steering.references.records import Records
from steering.task import Batch, Losses, Task
from steering.training.seeds import untouched

LOSSES, OUTPUTS = ("values", "mask", "left", "right"), ("outputs",)


class ReferenceLosses:
    """The reference's losses, stored by id for all arms and seeds that share the data.

    The reference sees every sample once, as the task shows it to a reference, and is not even loaded before a sample is
    missing. Stored are losses, or features of Pairs, and apart from them the outputs of samples that a target distils
    from; not what the task has in files of its own (``stored``), nor the losses of a reference that changes or is a
    table (``keep`` is False). Where the losses of all samples would exceed 2 GiB every batch is scored anew, and a run
    that resumes finds the same bits because its batches are the same. In another batch the last bit can differ.

    Args:
        task: whose reference and losses these are.
        device: where the reference runs and the losses are wanted.
        folder: where the losses are stored, shared by all processes that use it; a run that resumes then finds
            the very same bits. Stored in main memory without a folder.
        micro_batch: samples that the reference scores at a time.
    """

    def __init__(
        self,
        task: Task,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
        *,
        micro_batch: int | None = None,
    ):
        self.task, self.device, self.micro_batch = task, device, micro_batch
        # What is loaded late is shared by all copies that ``following`` makes.
        self._records = cache(
            lambda: (Records(LOSSES, task.size, folder), Records(OUTPUTS, task.size, folder and folder / "outputs"))
        )
        self._load = cache(untouched()(lambda: as_reference(task.reference(), task, device)))
        options = {"folder": folder and folder / "teacher", "micro_batch": micro_batch}
        other = getattr(task, "with_teacher", None) or (lambda: task)  # an exchanged task may have None
        self._teacher = cache(lambda: None if other() is task else ReferenceLosses(other(), device, **options))
        self._target: nn.Module | None = None
        self._past: AveragedModel | None = None
        self._past_state: dict[str, Any] = {}

    @property
    def teacher(self) -> "ReferenceLosses":
        """The same of the model that arms distil from: of this one, unless the task names another."""
        return self._teacher() or self

    @property
    def reference(self) -> Reference:
        """What answers, loaded when first asked for."""
        reference = self._load()
        if not isinstance(reference, OwnPast) or self._target is None:
            return reference
        if self._past is None:
            self._past = reference.following(self._target)
            if self._past_state:
                self._past.load_state_dict(self._past_state)
        return of_model(self._past.module, self.task, keep=False)

    @property
    def model(self) -> nn.Module | None:
        """The reference as a model that the task can evaluate; None where it is none."""
        model = getattr(self.reference, "model", None)
        return None if model is None else model.to(self.device)

    def as_model(self) -> nn.Module:
        """The reference as a model.

        Raises:
            UserError: it is none.
        """
        if self.model is None:
            raise UserError(f"this needs a reference that is a model, got {type(self.reference).__name__}")
        return self.model

    @torch.no_grad()
    def __call__(self, batch: Batch, *, outputs: bool = False) -> Losses:
        """The reference's losses of a batch, without gradient and without side effects.

        Args:
            batch: of any samples; one that is there several times has one loss.
            outputs: whether the outputs are needed as well.
        """
        ids, (loss_records, output_records) = batch.ids.cpu(), self._records()
        stored = bool(loss_records.present(ids).all())
        records = [loss_records]
        if outputs and not loss_records.of_pairs:  # Pairs have no outputs of their own
            stored = stored and bool(output_records.present(ids).all())
            records = [loss_records, output_records]
        answers = [record.read(ids) for record in records] if stored else self._score_missing(batch, records)
        parts = {name: x for answer in answers for name, x in answer.parts.items()}
        return replace(answers[0], parts=parts).losses(self.device)

    def following(self, target: nn.Module) -> Self:
        """This store for one training, whose target's own past the reference may be."""
        one = copy.copy(self)
        one._target, one._past, one._past_state = target, None, {}
        return one

    def update(self) -> None:
        """Moves the target's own past, if that is the reference; to be called after every step."""
        if self._past is not None and self._target is not None:
            self._past.update_parameters(self._target)

    def state_dict(self) -> dict[str, Any]:
        """The target's own past, if that is the reference."""
        return self._past_state if self._past is None else self._past.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._past_state, self._past = state, None

    def _score_missing(self, batch: Batch, records: Sequence[Records]) -> list[Answers]:
        """Answers to a batch from each of the records: what they lack is scored and stored."""
        ids, back = batch.ids.cpu().unique(return_inverse=True)
        index = torch.empty_like(ids).scatter_(0, back, torch.arange(len(back)))  # one of each id
        present = [record.present(ids) for record in records]
        missing = ~torch.stack(present).all(0)
        fresh = self._score(batch.take(index[missing]), [name for record in records for name in record.names])
        answers = []
        for record, stored in zip(records, present, strict=True):
            lacking = fresh.only(record.names).take((~stored)[missing].nonzero()[:, 0])
            new = self._worth_storing(ids[~stored])
            if lacking.parts and new.any():
                record.write(ids[~stored][new], lacking.take(new.nonzero()[:, 0]))
            joined = Answers.join([record.read(ids[stored]), lacking]) if stored.any() else lacking
            order = torch.cat([stored.nonzero(), (~stored).nonzero()])[:, 0].argsort()
            answers.append(joined.take(order[back]))
        return answers

    def _score(self, batch: Batch, names: Sequence[str]) -> Answers:
        """What the reference answers now, in parts of at most ``micro_batch`` samples."""
        size = self.micro_batch or len(batch)
        parts = [batch] if size >= len(batch) else [batch.take(x) for x in torch.arange(len(batch)).split(size)]
        reference = self.reference
        with untouched():
            return Answers.join([Answers.of(reference(part), len(part)).only(names) for part in parts])

    def _worth_storing(self, ids: Tensor) -> Tensor:
        """``[n]`` bool of ``[n]`` ids: not those of a reference that changes, nor what the task has in files."""
        keep = torch.full(ids.shape, getattr(self.reference, "keep", True), dtype=torch.bool)
        stored = getattr(self.task, "stored", None)
        return keep if stored is None else keep & ~stored(ids)
