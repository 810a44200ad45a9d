"""Reference losses by sample id: every sample is scored once, then looked up."""

import json
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from steering import files
from steering.pairs import Pairs
from steering.task import Batch, Losses, Stores, Task
from steering.training.seeds import untouched

MOST_KEPT = 2 << 30  # bytes of the rows of all samples; where they are more, every batch is scored anew


class ReferenceLosses:
    """The frozen reference's losses, remembered by id for all arms and seeds that share the data.

    The reference sees every sample once, as the task shows it to a reference, and is not even loaded before a
    sample is missing. What is remembered is one row a sample: its loss, or for Pairs its features. What a task has
    in files of its own is asked for every time and not kept twice.

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
        self._rows: list[Tensor] = []  # [size, ...] each
        self._scale: float | None = None  # of Pairs

    @cached_property
    def _known(self) -> Tensor:
        """1 where the row of an id is there, ``[size]``; nothing is written before a sample is asked for."""
        return self._table("known", [], torch.uint8)

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
        missing = (self._known[ids] == 0).nonzero()[:, 0] if self._rows else torch.arange(len(ids))
        fresh = self._score(batch.take(missing)) if len(missing) else []
        if len(missing):
            self._remember(ids[missing], fresh)
        if len(missing) == len(ids):
            return self._losses(fresh)
        rows = [table[ids].to(self.device) for table in self._rows]
        for row, value in zip(rows, fresh, strict=False):
            row[missing.to(row.device)] = value.to(row)
        return self._losses(rows)

    def _losses(self, rows: list[Tensor]) -> Losses:
        return Losses(Pairs(rows[0], rows[1], self._scale)) if self._scale is not None else Losses(*rows)

    def _score(self, batch: Batch) -> list[Tensor]:
        """What the reference says of samples: their losses, their losses and mask, or their two features."""
        with untouched():
            values, mask = self.task.losses(self.model, batch)
        if isinstance(values, Pairs):
            self._scale = float(values.scale)
            return [values.left, values.right]
        return [values] if mask is None else [values, mask]

    def _remember(self, ids: Tensor, rows: list[Tensor]) -> None:
        """Keeps what is worth keeping."""
        new = ~self.task.stored(ids) if isinstance(self.task, Stores) else torch.ones(len(ids), dtype=torch.bool)
        if not new.any() or self.task.size * sum(row[0].nbytes for row in rows) > MOST_KEPT:
            return
        if not self._rows:
            layout = {
                "scale": self._scale,
                "rows": [{"shape": list(row.shape[1:]), "dtype": str(row.dtype)} for row in rows],
            }
            self._lay_out(layout)
            if self.folder is not None:
                files.write_json(self.folder / "rows.json", layout)
        for table, row in zip(self._rows, rows, strict=True):
            table[ids[new]] = row[new.to(row.device)].to(table)
        self._known[ids[new]] = 1

    def _lay_out(self, layout: dict) -> None:
        self._scale = layout["scale"]
        self._rows = [
            self._table(f"rows{place}", row["shape"], getattr(torch, row["dtype"].removeprefix("torch.")))
            for place, row in enumerate(layout["rows"])
        ]

    def _table(self, name: str, shape: list[int], dtype: torch.dtype) -> Tensor:
        """``[size, *shape]`` zeros, or what a file of an earlier process holds."""
        whole = torch.Size([self.task.size, *shape])
        if self.folder is None:
            return torch.zeros(whole, dtype=dtype)
        path = files.allocate(self.folder / f"{name}.bin", whole.numel() * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=whole.numel(), dtype=dtype).view(whole)
