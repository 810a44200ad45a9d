"""What a reference says of all samples of a task, in one file: losses, weights, and who is chosen."""

import hashlib
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cosine_similarity

from steering import atomic_files
from steering.contrastive.pairs import Pairs
from steering.engine import Steerer
from steering.errors import UserError
from steering.references.answers import Answers
from steering.references.kinds import Checkpoint, as_reference
from steering.references.store import ReferenceLosses
from steering.references.table import LossTable
from steering.runs.folder import RunFolder
from steering.runs.processes import device_named
from steering.task import Batch, Losses, Task
from steering.training.seeds import generator
from steering.training.training_sets import every_sample

FORMATS = (".parquet", ".safetensors")


@dataclass(frozen=True)
class Choice:
    """What a list of samples is made by.

    Attributes:
        target: file of the target: a checkpoint of a run of the same task, or a table of its losses.
        rule: that weighs the samples, all of them one row, by their excess.
        scale: of the reference loss in the excess, a number or ``auto``.
        keep: share of the samples that is chosen: of largest excess, or without a target of least reference loss.
    """

    target: str | None = None
    rule: str | None = None
    scale: str = "1"
    keep: float | None = None

    def check(self) -> None:
        """Raises a UserError where these cannot be."""
        if self.rule is not None and self.target is None:
            raise UserError(
                f"weights by {self.rule} are of the excess over the reference: give the target's losses, --target "
                "runs/.../checkpoint.pt or a file of losses"
            )
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UserError(f"--keep is a share above 0 and up to 1, got {self.keep:g}")
        if self.scale != "auto":
            try:
                float(self.scale)
            except ValueError:
                raise UserError(f"--reference-scale is auto or a number, got {self.scale!r}") from None


class Settings(BaseModel):
    """What a folder of parts was begun with."""

    task: str
    reference: str


def run(task: Task, out: Path, choice: Choice, *, batch: int = 256, device: str = "auto") -> LossTable:
    """Scores a task and writes the file; what was scored before an interrupt is not scored again.

    Args:
        task: whose reference scores its samples.
        out: ``.parquet`` or ``.safetensors``. Until it is written, ``out.parts`` holds what there is.
        choice: what else to write of the samples.
        batch: samples scored at a time.
        device: of the models.

    Raises:
        UserError: the file is of no such format, the parts there are of another task or reference, or the choice
            cannot be made.
    """
    choice.check()
    if out.suffix not in FORMATS:
        raise UserError(f"--out is a file {' or '.join(FORMATS)}, got {out}")
    if out.suffix == ".parquet":
        _pyarrow(out)
    here, console = device_named(device), Console(soft_wrap=True)
    store = ReferenceLosses(task, here, micro_batch=batch)
    about = Settings(task=repr(task), reference=_fingerprint(store.reference))
    target = None if choice.target is None else _target(choice.target, task, here)
    parts = out.with_name(f"{out.name}.parts")
    with RunFolder.open(parts, settings="score.json", compare=lambda path: _same(path, about, out)) as folder:
        store = ReferenceLosses(task, here, folder.path / "losses", micro_batch=batch)
        scored = _Scored.of(task, store, target, batch)
        table, columns = scored.table(about, task), scored.columns(choice)
        try:
            table.save(out, **columns)
        except ValueError as error:
            raise UserError(f"{out}: {error}") from None
        if "chosen" in columns:
            ids = scored.ids[columns["chosen"]].tolist()
            listed = atomic_files.write(out.with_suffix(".chosen.txt"), "".join(f"{i}\n" for i in ids))
            console.print(f"chosen: {len(ids)} ids in {listed}", markup=False, highlight=False)
    shutil.rmtree(parts, ignore_errors=True)
    mean = float(scored.reference.nanmean())
    console.print(f"losses: {table.size} samples in {out}, mean {mean:.4g}", markup=False, highlight=False)
    return table


def _same(path: Path, about: Settings, out: Path) -> str:
    """The text of the settings, unless the parts that are there are of others."""
    text = about.model_dump_json(indent=1)
    if path.exists() and atomic_files.read_text(path) != text:
        raise UserError(f"{path.parent} holds parts of another task or reference: delete it, or choose another --out")
    return text


@dataclass(frozen=True)
class _Scored:
    """What is known of all samples, in the order of their ids."""

    ids: Tensor
    answers: Answers
    target: Answers | None
    data: str

    @classmethod
    def of(cls, task: Task, store: Any, target: Any, batch: int) -> "_Scored":
        ids, answers, targets, digest = [], [], [], hashlib.sha256()
        for part in _samples(task, batch):
            for name, x in sorted({"ids": part.ids, **part.fields}.items()):
                digest.update(name.encode() + np.ascontiguousarray(x.cpu().numpy()).tobytes())
            losses = store(part)
            ids.append(part.ids.cpu())
            answers.append(_on_cpu(losses, len(part)))
            if target is not None:
                targets.append(_on_cpu(target(part.to(store.device)), len(part)))
        every = torch.cat(ids)
        order = every.argsort()
        joined = Answers.join(answers).take(order)
        return cls(every[order], joined, Answers.join(targets).take(order) if targets else None, digest.hexdigest())

    @property
    def reference(self) -> Tensor:
        """``[entries]`` or ``[n, columns]``, NaN where there is no loss."""
        return _values(self.answers)

    def table(self, about: Settings, task: Task) -> LossTable:
        offsets = None
        if self.answers.ragged:
            offsets = torch.cat([torch.tensor([0]), self.answers.counts.cumsum(0)])
        provenance = {
            "scored": about.task,
            "reference": about.reference,
            "data_sha256": self.data,
            "command": shlex.join(["steer", *sys.argv[1:]]),
            "version": version("model-steering"),
        }
        if (fingerprint := getattr(task, "fingerprint", None)) is not None:
            provenance["data"] = fingerprint
        if not hasattr(task, "ref"):  # else a run that takes the file as its --ref is another task by its name
            provenance["task"] = about.task.partition(" with another ")[0]
        return LossTable(self.reference, self.ids, offsets, provenance)

    def columns(self, choice: Choice) -> dict[str, Tensor]:
        """The target's losses, weights, and who is chosen."""
        columns = {} if self.target is None else {"target_losses": _values(self.target)}
        reference, excess = self.reference, -self.reference
        scale: Any = choice.scale if choice.scale == "auto" else float(choice.scale)
        if self.target is not None:
            target = columns["target_losses"]
            if target.shape != reference.shape or not torch.equal(self.target.counts, self.answers.counts):
                raise UserError(
                    f"target and reference have losses of the same entries, got {list(target.shape)} and "
                    f"{list(reference.shape)}"
                )
            excess = target - (1.0 if scale == "auto" else scale) * reference
            if choice.rule is not None:
                here = ~excess.isnan()
                steerer = Steerer(choice.rule, reference_scale=scale, population=int(here.sum()), over="batch")
                weights = steerer(target[here], reference[here]).weights.to(excess)
                columns["weights"] = torch.full_like(excess, torch.nan).masked_scatter(here, weights)
        if choice.keep is not None:
            number = max(1, round(choice.keep * len(self.ids)))
            best = self._means(excess).nan_to_num(-torch.inf).argsort(descending=True, stable=True)[:number]
            columns["chosen"] = torch.zeros(len(self.ids), dtype=torch.bool).index_fill(0, best, True)
        return columns

    def _means(self, values: Tensor) -> Tensor:
        """The mean of every sample's entries, ``[n]``."""
        if not self.answers.ragged:
            return values if values.dim() == 1 else values.nanmean(1)
        owner = torch.arange(len(self.ids)).repeat_interleave(self.answers.counts)
        return torch.zeros(len(self.ids)).index_add(0, owner, values) / self.answers.counts


def _samples(task: Task, batch: int) -> Iterator[Batch]:
    """All samples that have an id, those that are never trained on too where the task has ``load``."""
    load: Any = getattr(task, "load", None)
    if load is None:
        return every_sample(task, batch)
    return (load(ids, generator(0, "score")) for ids in torch.arange(task.size).split(batch))


def _on_cpu(losses: Losses, n: int) -> Answers:
    """Answers to a batch; of Pairs a loss for each, 1 - cosine similarity of its two features."""
    values = losses.values
    if isinstance(values, Pairs):
        losses = Losses(1 - cosine_similarity(values.left.float(), values.right.float()))
    parts: Any = losses.values, losses.mask, losses.rows
    moved: Any = [x if x is None else x.detach().cpu() for x in parts]
    return Answers.of(Losses(moved[0], moved[1], rows=moved[2]), n)


def _values(answers: Answers) -> Tensor:
    values, mask = answers.parts["values"].float(), answers.parts.get("mask")
    return values if mask is None else values.masked_fill(~mask.bool(), torch.nan)


def _target(name: str, task: Task, device: torch.device) -> Any:
    """What answers with the target's losses: a model of a checkpoint, or a table."""
    kind = Checkpoint(name) if Path(name).suffix == ".pt" else name
    answers = as_reference(kind, task, device)
    return lambda batch: answers(batch)


def _fingerprint(reference: Any) -> str:
    """Which reference it is: its type, and the SHA-256 of its weights, or of the losses it looks up."""
    model, digest = getattr(reference, "model", None), hashlib.sha256()
    if model is not None:
        for name, x in sorted(model.state_dict().items()):
            digest.update(name.encode() + x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return f"{type(model).__name__} {digest.hexdigest()[:16]}"
    if isinstance(reference, LossTable):
        digest.update(reference.values.numpy().tobytes())
        return f"LossTable {digest.hexdigest()[:16]}"
    return f"{reference!r:.200}"


def _pyarrow(out: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UserError(f"{out} needs pyarrow: pip install 'model-steering[parquet]', or take .safetensors") from None
