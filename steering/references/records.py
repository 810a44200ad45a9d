"""Answers by sample id: written once, shared by processes, verified before they count."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from steering import atomic_files
from steering.errors import RunError, UserError
from steering.heartbeat import VARIABLE, patience
from steering.references.answers import Answers, check_alike, check_kind, spread, widths

MOST_STORED = 2 << 30  # bytes of the answers to all samples; where they are more, none are stored
VERSION = 2  # of the files


class Records:
    """Parts of the answers to samples, in memory, or in files that several processes read and append to.

    ``index.bin`` has three numbers for each id: where its entries begin in ``entries.bin``, how many they are, and
    their checksum. A sample is there only if the checksum is right: what a crash tore or another program wrote is not.

    Args:
        names: of the parts.
        size: number of ids.
        folder: of the files; none for memory.
    """

    def __init__(self, names: Sequence[str], size: int, folder: Path | None):
        self.names, self.size, self.folder = names, size, folder
        self.kind: dict | None = None  # the form of the answers, once there are any
        self.stored = False  # not where they are too many
        self._memory = bytearray()

    @property
    def of_pairs(self) -> bool:
        return self.kind is not None and self.kind["scale"] is not None

    def present(self, ids: Tensor) -> Tensor:
        """Which of ``[n]`` ids are there, ``[n]`` bool."""
        if self.kind is None and self.folder is not None and (self.folder / "layout.json").exists():
            self._open(self._layout(self.folder / "layout.json"))
        if not self.stored:
            return torch.zeros(len(ids), dtype=torch.bool)
        if self.folder is not None:
            self._verify(ids[self._start[ids] < 0])
        return self._start[ids] >= 0

    def read(self, ids: Tensor) -> Answers:
        """The answers to ``[n]`` ids that are there."""
        assert self.kind is not None
        counts, indices = self._count[ids], self._start[ids]
        if self.kind["ragged"]:
            indices, _ = spread(indices, counts)
        entries = self._entries if self.folder else np.frombuffer(self._memory or b"", np.uint8)
        return Answers.decode(torch.from_numpy(entries.reshape(-1, self._width)[indices.numpy()]), counts, self.kind)

    def write(self, ids: Tensor, answers: Answers) -> None:
        """Stores the answers to ``[n]`` ids, unless those to all ids would be too many.

        Raises:
            UserError: they differ in form from those that are there.
            RunError: the disk is full.
        """
        if self.kind is None:
            size = self.size * sum(x.nbytes for x in answers.parts.values()) / len(ids)
            layout = {"version": VERSION, "size": self.size, "stored": size <= MOST_STORED, "kind": answers.kind}
            if self.folder is not None:
                atomic_files.write_json(self.folder / "layout.json", layout)
            self._open(layout)
        assert self.kind is not None
        check_alike([self.kind, answers.kind])
        if not self.stored:
            return
        data, first = answers.encode().numpy(), answers.counts.cumsum(0) - answers.counts
        start = self._append(data.tobytes()) + first
        if self.folder is not None:
            slices = zip(ids.tolist(), first.tolist(), answers.counts.tolist(), strict=True)
            checksums = [_checksum(data[i : i + count], number) for number, i, count in slices]
            self._index[ids.numpy()] = torch.stack([start, answers.counts, torch.tensor(checksums)], 1).numpy()
        self._start[ids], self._count[ids] = start, answers.counts

    def _layout(self, path: Path) -> dict:
        reason = "is damaged"
        try:
            names = path, *(path.with_name(name) for name in ("index.bin", "entries.bin"))
            if all(name.is_file() for name in names if name.exists()):  # a pipe would be waited for
                layout = json.loads(path.read_text())
                if (layout["version"], layout["size"]) == (VERSION, self.size):
                    return layout | {"kind": check_kind(layout["kind"], self.names), "stored": layout["stored"] is True}
                numbers = f"version {layout['version']!s:.20} and {layout['size']!s:.20} samples"
                reason = f"is of {numbers}, not {VERSION} and {self.size}"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise UserError(f"{path} {reason}: delete {path.parent}, and the reference's losses are scored anew")

    def _open(self, layout: dict) -> None:
        self.kind, self.stored = layout["kind"], layout["stored"]
        if not self.stored:
            return
        self._width = sum(widths(layout["kind"]))
        self._start = torch.full((self.size,), -1)  # of the samples that this process has verified
        self._count = torch.zeros(self.size, dtype=torch.int64)
        if self.folder is not None:
            index = atomic_files.allocate(self.folder / "index.bin", self.size * 24)
            self._index = np.memmap(index, np.int64, "r+", shape=(self.size, 3))
            self._file = self.folder / "entries.bin"
            self._file.touch()
            self._entries = np.empty((0, self._width), np.uint8)

    def _verify(self, ids: Tensor) -> None:
        """Finds what other processes, or an earlier one, have written."""
        index, ragged = self._index[ids.numpy()], self.kind is not None and self.kind["ragged"]
        written = (index[:, 2] > 0).nonzero()[0]
        if len(written):
            self._map()
        for number, (start, count, checksum) in zip(ids[written].tolist(), index[written].tolist(), strict=True):
            inside = 0 <= start <= len(self._entries) and 0 <= count <= len(self._entries) - start
            inside = inside and (count == 1 or ragged)
            if inside and _checksum(self._entries[start : start + count], number) == checksum:
                self._start[number], self._count[number] = start, count

    def _append(self, content: bytes) -> int:
        """Adds whole entries and gives the index of the first."""
        if self.folder is None:
            self._memory += content
            return (len(self._memory) - len(content)) // self._width
        try:
            with FileLock(self.folder / ".lock", timeout=patience()), self._file.open("r+b") as file:
                start = -(-self._file.stat().st_size // self._width)  # behind an entry that a killed process tore
                file.seek(start * self._width)
                file.write(content)
        except OSError as error:
            reason = f"{error.strerror}. Free some space or choose another folder with --out"
            if isinstance(error, Timeout):
                reason = (
                    f"another process holds {self.folder / '.lock'}. Is it stopped? End it, or wait longer ({VARIABLE})"
                )
            raise RunError(f"cannot write {self._file}: {reason}") from None
        self._map()
        return start

    def _map(self) -> None:
        """Brings the view of the entries up to date."""
        number = self._file.stat().st_size // self._width
        if number > len(self._entries):
            self._entries = np.memmap(self._file, np.uint8, "r", shape=(number, self._width))


def _checksum(content: np.ndarray, number: int) -> int:
    """CRC-32 of the entries of an id, plus 1 so that it is never 0; another under another id."""
    return zlib.crc32(content.tobytes(), number & 0xFFFFFFFF) + 1
