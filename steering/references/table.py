"""Losses by sample id, in memory and in files of common formats."""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from steering import atomic_files
from steering.errors import UserError
from steering.references.answers import Answers, spread
from steering.task import Batch, Losses, Task


class LossTable:
    """Losses that were computed before, looked up by sample id.

    Args:
        values: ``[size]``, a loss for each sample; ``[size, columns]``, NaN where there is none (padding); or with
            ``offsets`` ``[entries]``, the losses of one sample's tokens behind those of the other.
        ids: ``[size]`` of the samples, each once; 0 to size - 1 if left out.
        offsets: ``[size + 1]``, where the entries of every sample begin, and where the last ones end.
        provenance: what these losses are of, ready for JSON. ``task`` is compared with that of a run.

    Raises:
        UserError: values, ids and offsets do not fit together, or an id is there twice.

    Example:
        >>> table = LossTable([0.5, 2.0, 1.0], ids=[10, 11, 12])
        >>> table.losses([12, 10])
        tensor([1.0000, 0.5000])
    """

    keep = False  # a look-up is no work that should be stored

    def __init__(self, values: Any, ids: Any = None, offsets: Any = None, provenance: Mapping[str, Any] | None = None):
        values = _numbers("losses", values)
        self.values = values.float().cpu()
        if self.values.isinf().sum() > values.isinf().sum():
            raise UserError("losses are numbers of float32, which ends at 3.4e38, got larger ones")
        self.ids = None if ids is None else _numbers("ids", ids).cpu()
        self.offsets = None if offsets is None else _numbers("offsets", offsets).cpu()
        self.provenance = dict(provenance or {})
        if self.values.shape[1:] == (1,):
            self.values = self.values[:, 0]
        if self.offsets is not None:
            ends, flat = self.offsets[:1].tolist() + self.offsets[-1:].tolist(), self.values.dim() == 1
            if not flat or ends != [0, len(self.values)] or (self.offsets.diff() < 0).any():
                raise UserError(f"offsets rise from 0 to {len(self.values)}, the number of flat losses, got {ends}")
        self.size = len(self.values) if self.offsets is None else len(self.offsets) - 1
        self._padded = bool(self.values.dim() == 2 and self.values.isnan().any())
        self._sorted, self._order = (torch.arange(self.size) if self.ids is None else self.ids).sort()
        if len(self._sorted) != self.size or not self.size:
            raise UserError(f"each of {self.size} samples has an id and a loss, got {len(self._sorted)} ids")
        _refuse(self._sorted[1:][self._sorted.diff() == 0], "are there twice")

    def __call__(self, batch: Batch) -> Losses:
        return self.look_up(batch.ids)

    def losses(self, ids: Any) -> Tensor:
        """The values of the losses of ``[n]`` ids, on their device; flat where samples have any number of tokens.

        NaN where a padded line has no loss.
        """
        losses = self.look_up(ids)
        assert isinstance(losses.values, Tensor)
        return losses.values if losses.mask is None else losses.values.masked_fill(~losses.mask, torch.nan)

    def look_up(self, ids: Any) -> Losses:
        """The losses of ``[n]`` ids: of tokens with the rows that they belong to, of padded lines with their mask.

        Raises:
            UserError: an id has no loss.
        """
        ids = _numbers("ids", ids)
        numbers, rows, mask = ids.cpu(), None, None
        position = torch.searchsorted(self._sorted, numbers).clamp(max=self.size - 1)
        _refuse(numbers[self._sorted[position] != numbers], "are not there")
        index = self._order[position]
        if self.offsets is not None:
            index, rows = spread(self.offsets[index], self.offsets.diff()[index])
        values = self.values[index]
        missing = values.isnan()
        if values.dim() == 2:
            mask = ~missing if self._padded else None  # of every batch, or of none
            missing, values = missing.all(1), values.masked_fill(missing, 0)
        _refuse(numbers[missing if rows is None else rows[missing].unique()], "are NaN")
        return Answers.of(Losses(values, mask, rows=rows), len(numbers)).losses(ids.device)

    def check(self, task: Task) -> "LossTable":
        """This table, if it is of a task's samples.

        Raises:
            UserError: it is of another task, or of more or fewer samples.
        """
        name = repr(task).partition(" with another ")[0]  # what exchange says of a task with another reference
        if self.provenance.get("task", name) != name:
            raise UserError(f"these losses are of {self.provenance['task']}, got the task {task!r}: score it anew")
        if self.ids is None and self.size != task.size:
            raise UserError(f"got {self.size} losses for {task.size} samples: give the ids that they are of")
        outside = (self._sorted < 0) | (self._sorted >= task.size)
        _refuse(self._sorted[outside], f"are of other data, whose ids go beyond {task.size - 1}")
        return self

    @classmethod
    def scored(cls, reference: Callable[[Batch], Losses], batches: Iterable[Batch], **provenance: Any) -> "LossTable":
        """The losses of all samples of some batches, scored by a reference now."""
        batches = list(batches)
        scored = [Answers.of(reference(batch), len(batch)).only(["values", "mask"]) for batch in batches]
        answers = Answers.join(scored)
        offsets = torch.cat([torch.tensor([0]), answers.counts.cumsum(0)]) if answers.ragged else None
        values, mask = answers.parts["values"], answers.parts.get("mask")
        values = values if mask is None else values.masked_fill(~mask.bool(), torch.nan)
        return cls(values, torch.cat([batch.ids for batch in batches]), offsets, provenance)

    def save(self, path: str | Path, **columns: Tensor) -> Path:
        """Writes a safetensors or Parquet file, with provenance and a checksum, that is whole or not there.

        Args:
            path: where it shall stand; what ends in ``.parquet`` is Parquet, which needs pyarrow.
            columns: what else there is to say of every sample, ``[size]``, or of every entry, like the losses.
        """
        parts = {"losses": self.values, "ids": self.ids, "offsets": self.offsets, **columns}
        tensors = {name: x.contiguous() for name, x in parts.items() if x is not None}
        if Path(path).suffix == ".parquet":
            return self._save_parquet(Path(path), tensors)
        about = {"provenance": json.dumps(self.provenance), "checksum": _checksum(tensors)}
        return atomic_files.write(Path(path), lambda temporary: save_file(tensors, temporary, about))

    def _save_parquet(self, path: Path, tensors: dict[str, Tensor]) -> Path:
        """Samples in rows; the entries of a sample are a list."""
        import pyarrow  # optional
        from pyarrow import parquet

        columns, offsets = {}, tensors.pop("offsets", None)
        for name, x in tensors.items():
            column = pyarrow.array(x.flatten().numpy())
            if offsets is not None and len(x) == int(offsets[-1]):
                column = pyarrow.LargeListArray.from_arrays(pyarrow.array(offsets.numpy()), column)
            elif x.dim() == 2:
                column = pyarrow.FixedSizeListArray.from_arrays(column, x.shape[1])
            columns[name] = column
        table = pyarrow.table(columns).replace_schema_metadata({"provenance": json.dumps(self.provenance)})
        return atomic_files.write(path, lambda temporary: parquet.write_table(table, temporary))

    @classmethod
    def load(cls, path: str | Path) -> "LossTable":
        """Reads ``losses`` and, where there are any, ``ids`` and ``offsets`` from a file.

        They are the names of tensors (``.safetensors``), of arrays (``.npz``), or of columns (``.parquet``, where
        ``losses`` may be lists of any lengths); a ``.npy`` file is the losses alone. Nothing that is read runs code.

        Raises:
            UserError: the file is missing, damaged, of another format, or without ``losses``.
        """
        path = Path(path)
        try:
            parts, provenance = _read(path)
            if "losses" not in parts:
                raise UserError(f"has no losses, but {', '.join(parts) or 'nothing'}")
            return cls(*(parts.get(name) for name in ("losses", "ids", "offsets")), provenance=provenance)
        except ImportError:
            raise UserError(f"{path} needs pyarrow: pip install pyarrow, or save the losses as .npz") from None
        except Exception as error:  # what reading a damaged file raises has no common type
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200] or type(error).__name__
            raise UserError(f"{path} cannot be read as losses: {reason}") from None


def _refuse(ids: Tensor, why: str) -> None:
    """Raises a UserError that names up to three ids, if there are any."""
    if len(ids):
        shown = ", ".join(map(str, ids[:3].tolist())) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
        raise UserError(f"reference losses of ids {shown} {why}: every sample needs one loss of its own")


_INTEGERS = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64


def _numbers(name: str, values: Any) -> Tensor:
    """A tensor of losses ``[size]`` or ``[size, columns]``, or of ``[size]`` integers."""
    try:
        tensor = values.detach() if isinstance(values, Tensor) else torch.tensor(np.asarray(values))
        if name == "losses" and tensor.dim() in (1, 2) and not tensor.is_complex() and tensor.dtype != torch.bool:
            return tensor
        if tensor.dim() == 1 and tensor.dtype in _INTEGERS:
            return tensor.long()
        got = f"{list(tensor.shape)} {tensor.dtype}"
    except (TypeError, ValueError):  # of text, or of lists of unlike lengths
        got = f"a {type(values).__name__} that is no array of numbers"
    shape = "[size] or [size, columns], or flat with offsets" if name == "losses" else "[size] integers"
    raise UserError(f"{name} are {shape}, got {got}")


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    parts = [name.encode() + tensors[name].flatten().view(torch.uint8).numpy().tobytes() for name in sorted(tensors)]
    return f"{zlib.crc32(b''.join(parts)):08x}"


def _read(path: Path) -> tuple[dict[str, Any], dict]:
    """What a file has by name, and its provenance."""
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device read for ever
        raise UserError("it is no ordinary file")
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if about.get("checksum", _checksum(tensors)) != _checksum(tensors):
            raise UserError("its checksum is wrong")
        provenance = json.loads(about.get("provenance", "{}"))
        if not isinstance(provenance, dict):
            raise UserError(f"its provenance is a {type(provenance).__name__}, not a mapping")
        return tensors, provenance
    if path.suffix in (".npz", ".npy"):
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return ({"losses": content} if isinstance(content, np.ndarray) else dict(content)), {}
    if path.suffix != ".parquet":
        raise UserError("losses are read from .safetensors, .npz, .npy, .parquet")
    from pyarrow import parquet  # optional

    table = parquet.read_table(path)
    parts: dict[str, Any] = {name: table[name].combine_chunks() for name in table.column_names}
    losses = parts.get("losses", np.empty(0))
    if columns := getattr(getattr(losses, "type", None), "list_size", 0):  # of lists of one length
        parts["losses"] = losses.flatten().to_numpy(zero_copy_only=False).reshape(-1, columns)
    elif hasattr(losses, "value_lengths"):  # of lists of any lengths
        parts["offsets"] = np.concatenate([[0], losses.value_lengths().to_numpy(zero_copy_only=False).cumsum()])
        parts["losses"] = losses.flatten()
    provenance = json.loads((table.schema.metadata or {}).get(b"provenance", b"{}"))
    arrays = {n: x if isinstance(x, np.ndarray) else x.to_numpy(zero_copy_only=False) for n, x in parts.items()}
    return arrays, provenance
