"""Reference losses by sample id: every sample is scored once, then looked up."""

import json
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from steering import atomic_files
from steering.contrastive.pairs import Pairs
from steering.task import Batch, Losses, Task
from steering.training.seeds import untouched

MOST_KEPT = 2 << 30  # bytes of the rows of all samples; where they are more, every batch is scored anew


class ReferenceLosses:
    """The frozen reference's losses, remembered by id for all arms and seeds that share the data.

    The reference sees every sample once, as the task shows it to a reference, and is not even loaded before a
    sample is missing. What is remembered is one row a sample: its loss and answer, or for Pairs its features. What a
    task has in files of its own is asked for every time and not kept twice.

    Nothing is remembered where the rows of all samples would exceed 2 GiB (for Pairs of width 512, 524,288 samples):
    then every batch is scored anew, and a run that resumes finds the same bits because its batches are the same.
    Scoring a sample in another batch can differ in the last bit.

    Args:
        task: whose reference and losses these are.
        device: where the reference runs and the losses are wanted.
        folder: where the rows are kept, mapped into memory and shared by all processes that map them; a run
            that resumes then finds the very same bits. Kept in main memory without a folder.
    """

    def __init__(self, task: Task, device: torch.device | str = "cpu", folder: Path | None = None):
        self.task, self.device, self.folder = task, device, folder
        self._model: nn.Module | None = None
        self._rows: dict[str, Tensor] = {}  # [size, ...] each
        self._scale: float | None = None  # of Pairs

    @cached_property
    def _known(self) -> Tensor:
        """1 where the row of an id is there, ``[size]``; nothing is written before a sample is asked for."""
        return self._table("known", [], torch.uint8)

    @cached_property
    def teacher(self) -> "ReferenceLosses":
        """The same of the model that arms distil from: of this one, unless the task names another."""
        task = (getattr(self.task, "with_teacher", None) or (lambda: self.task))()
        folder = None if self.folder is None else self.folder / "teacher"
        return self if task is self.task else ReferenceLosses(task, self.device, folder)

    @property
    def model(self) -> nn.Module:
        if self._model is None:
            with untouched():
                self._model = self.task.reference().to(self.device).eval().requires_grad_(False)
        return self._model

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Losses:
        """The reference's losses of a batch, without gradient and without side effects."""
        ids = batch.ids.cpu()
        if not self._rows and self.folder is not None and (self.folder / "rows.json").exists():
            self._lay_out(json.loads((self.folder / "rows.json").read_text()))
        # Without rows nothing is known, whatever the flags say: a kill may have come between the two.
        missing = (self._known[ids] == 0) if self._rows else torch.ones(len(ids), dtype=torch.bool)
        if "left" in self._rows:  # features have length one; zeros were lost on the way to a file, in a crash say
            missing |= (self._rows["left"][ids] == 0).all(-1) | (self._rows["right"][ids] == 0).all(-1)
        missing = missing.nonzero()[:, 0]
        fresh = self._score(batch.take(missing)) if len(missing) else {}
        if len(missing):
            self._remember(ids[missing], fresh)
        if len(missing) == len(ids):
            return self._losses(fresh)
        rows = {name: table[ids].to(self.device) for name, table in self._rows.items()}
        for name, value in fresh.items():
            rows[name][missing.to(rows[name].device)] = value.to(rows[name])
        return self._losses(rows)

    def _losses(self, rows: dict[str, Tensor]) -> Losses:
        return Losses(Pairs(**rows, scale=self._scale)) if self._scale is not None else Losses(**rows)

    def _score(self, batch: Batch) -> dict[str, Tensor]:
        """What the reference says of samples, by name: losses, mask and answers, or two features."""
        with untouched():
            losses = self.task.losses(self.model, batch)
        if isinstance(losses.values, Pairs):
            self._scale = float(losses.values.scale)
            return {"left": losses.values.left, "right": losses.values.right}
        return {name: value for name, value in losses._asdict().items() if isinstance(value, Tensor)}

    def _remember(self, ids: Tensor, rows: dict[str, Tensor]) -> None:
        """Keeps what is worth keeping."""
        stored = getattr(self.task, "stored", None)
        new = torch.ones(len(ids), dtype=torch.bool) if stored is None else ~stored(ids)
        if not new.any() or self.task.size * sum(row[0].nbytes for row in rows.values()) > MOST_KEPT:
            return
        if not self._rows:
            layout = {
                "scale": self._scale,
                "rows": {n: {"shape": list(row.shape[1:]), "dtype": str(row.dtype)} for n, row in rows.items()},
            }
            self._lay_out(layout)
            if self.folder is not None:
                atomic_files.write_json(self.folder / "rows.json", layout)
        for name, row in rows.items():
            self._rows[name][ids[new]] = row[new.to(row.device)].to(self._rows[name])
        self._known[ids[new]] = 1

    def _lay_out(self, layout: dict) -> None:
        self._scale = layout["scale"]
        self._rows = {
            name: self._table(name, row["shape"], getattr(torch, row["dtype"].removeprefix("torch.")))
            for name, row in layout["rows"].items()
        }

    def _table(self, name: str, shape: list[int], dtype: torch.dtype) -> Tensor:
        """``[size, *shape]`` zeros, or what a file of an earlier process holds."""
        whole = torch.Size([self.task.size, *shape])
        if self.folder is None:
            return torch.zeros(whole, dtype=dtype)
        path = atomic_files.allocate(self.folder / f"{name}.bin", whole.numel() * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=whole.numel(), dtype=dtype).view(whole)
