"""Features of a reference in files: one file a shard, one row a sample, read from any process.

FOLDER/cache.json                  whose features these are
FOLDER/shards/NAME.safetensors     features [count, 2, width] float16, picture and caption, and present [count] uint8
FOLDER/claims/NAME.lock            held by the process that is at work on the shard
"""

import hashlib
import json
import os
import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from steering import atomic_files
from steering.clip.data.manifest import Shard
from steering.clip.models import Towers
from steering.distributed import rank
from steering.errors import UserError

FORMAT = 1
MANIFEST = "cache.json"
NOT_FINITE = "not finite"  # why a sample has no features although it was read
MOST_BYTES = 4 << 20  # of cache.json
MOST_REASONS = 64  # in a file, each of so many letters at the most
MOST_OPEN = 8192  # files mapped at a time, of the 65,530 maps that Linux allows a process


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Manifest:
    """Whose features a cache holds, as cache.json says.

    Attributes:
        ref: the name under which the reference was loaded.
        model: architecture, weights, preprocessing and tokenizer, as ``Towers.describe`` but for the source.
        width: of a feature.
        scale: the reference's inverse temperature.
        caption_field: JSON field the captions are from, None for the usual place.
    """

    ref: str
    model: dict[str, Any]
    width: Annotated[int, Field(gt=0, le=1 << 16)]
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    caption_field: str | None = None

    @classmethod
    def of(cls, towers: Towers, *, ref: str, caption_field: str | None = None) -> Self:
        model = {name: value for name, value in towers.describe().items() if name != "source"}
        scale = float(towers.clip.logit_scale.detach().exp())
        return cls(ref, model, int(towers.config["embed_dim"]), scale, caption_field)

    def is_of(self, towers: Towers) -> bool:
        """Whether these are features of that model, by whatever name it was loaded."""
        return short_hash(self.model) == short_hash(Manifest.of(towers, ref=self.ref).model)

    @cached_property
    def key(self) -> str:
        """Hash of all but ``ref``: equal means equal features of equal samples."""
        return short_hash({name: value for name, value in asdict(self).items() if name != "ref"})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What cache.json says, verified against its own hash.

        Raises:
            UserError: there is none, it is damaged, or of another version.
        """
        path = Path(folder) / MANIFEST
        try:
            content = atomic_files.read_json(path, MOST_BYTES)
            version, key = content.pop("format"), content.pop("key")
            manifest = cls(**content) if version == FORMAT else None
            if manifest and key != manifest.key:
                raise ValueError("its hash is wrong")
        except OSError as error:
            raise UserError(
                f"{folder} is no cache of features ({path.name}: {error.strerror}): steer cache makes one"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} is damaged: delete {folder} and fill it again with steer cache") from None
        if manifest is None:
            raise UserError(f"{folder} is a cache of another version of this software: fill another with steer cache")
        return manifest


class Rows(NamedTuple):
    """One shard's features: ``[count, 2, width]`` float16, mapped from the file, and ``[count]`` uint8 presence."""

    features: Tensor
    present: Tensor


class Cache:
    """The features of one reference in a folder, by shard and position in the shard.

    Nothing is believed unseen: whoever opens a file first in a process compares its size, checksum, model and
    shard with what they have to be. A file that fails, or that is not there, counts as not there.

    Args:
        folder: where the files are.
        manifest: what has to be in them.

    Attributes:
        faults: files that could not be used, by reason.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = Path(folder), manifest
        self.faults: Counter[str] = Counter()
        self._rows: OrderedDict[str, Rows | None] = OrderedDict()
        self._usable: dict[str, bool] = {}  # outlives the maps, so that a file is summed up once

    @classmethod
    def open(cls, folder: Path, *, ref: str, caption_field: str | None = None) -> Self:
        """A cache to look features up in, without loading the reference.

        Raises:
            UserError: there is no cache, it is damaged, or it is of another reference or other captions.
        """
        manifest = Manifest.read(folder)
        if manifest.ref != ref:
            raise UserError(
                f"{folder} holds features of --ref {manifest.ref!r}, this run has --ref {ref!r}: "
                f"say the former, or fill a cache of the latter with steer cache"
            )
        if manifest.caption_field != caption_field:
            raise UserError(
                f"{folder} holds features of the captions in {manifest.caption_field or 'their usual place'}, this run "
                f"takes them from {caption_field or 'there'}: fill another cache with steer cache --caption-field"
            )
        return cls(folder, manifest)

    @classmethod
    def make(cls, folder: Path, manifest: Manifest) -> Self:
        """A cache to write into, new or continued; several processes may make it at once.

        Raises:
            UserError: the folder holds other features.
            RunError: the folder cannot be written.
        """
        path = Path(folder) / MANIFEST
        if not path.exists():
            atomic_files.write_json(path, {"format": FORMAT, "key": manifest.key, **asdict(manifest)})
        old = Manifest.read(folder)
        if (old.key, old.ref) != (manifest.key, manifest.ref):
            raise UserError(
                f"{folder} holds features of --ref {old.ref!r} ({old.key}), these would be of {manifest.ref!r} "
                f"({manifest.key}): choose another folder with --out"
            )
        return cls(folder, manifest)

    def path(self, shard: Shard) -> Path:
        """The file of a shard's features: its name, made fit for a file, and a hash that no other shard has."""
        readable = re.sub(r"[^\w.-]+", "_", shard.name, flags=re.ASCII)[-80:].removesuffix(".tar").lstrip(".")
        return self.folder / "shards" / f"{readable}-{short_hash(shard.name)[:8]}.safetensors"

    def claim(self, shard: Shard) -> Path:
        return self.folder / "claims" / f"{self.path(shard).stem}.lock"

    def write(self, shard: Shard, features: Tensor, present: Tensor, reasons: Mapping[str, int]) -> None:
        """Writes a shard's file, whole or not at all.

        Args:
            shard: whose features.
            features: ``[count, 2, width]``, rows of length one; what is not finite counts as not present.
            present: ``[count]`` bool.
            reasons: why samples are not present, counted.
        """
        features, present = features.to("cpu", torch.float16), present.to("cpu", torch.bool)
        finite = features.isfinite().all(dim=(1, 2))
        reasons = Counter(reasons) + Counter({NOT_FINITE: int((present & ~finite).sum())})
        features = features.where(finite[:, None, None], 0)
        tensors = {"features": features.contiguous(), "present": (present & finite).to(torch.uint8)}
        metadata = {"key": self.manifest.key, "shard": _ascii(shard.name), "bytes": str(shard.size)}
        metadata |= {"head": shard.head, "reasons": json.dumps(dict(reasons))}
        metadata["checksum"] = _checksum(tensors, metadata["reasons"])
        atomic_files.write(self.path(shard), save(tensors, metadata))

    def reasons(self, shard: Shard) -> Counter[str] | None:
        """Why samples of a shard have no features, from the head of its file; None if it cannot be used."""
        try:
            with self._open(shard) as file:
                metadata = file.metadata() or {}
            return None if self._difference(metadata, shard) else _reasons(metadata, shard.count)
        except (OSError, SafetensorError, ValueError, KeyError):
            return None

    def rows(self, shard: Shard) -> Rows | None:
        """A shard's features, verified; None if they cannot be used."""
        if shard.name in self._rows:
            self._rows.move_to_end(shard.name)
            return self._rows[shard.name]
        rows, fault = self._read(shard) if self._usable.get(shard.name, True) else (None, "")
        if fault:
            self._warn(shard, fault)
        self._usable[shard.name] = rows is not None
        self._rows[shard.name] = rows
        if len(self._rows) > MOST_OPEN:
            self._rows.popitem(last=False)
        return rows

    def fault(self, shard: Shard) -> str:
        """Why a file that is there cannot be used, read anew; empty if it can be."""
        return Cache(self.folder, self.manifest)._read(shard)[1]

    def present(self, positions: Sequence[tuple[Shard, int]]) -> Tensor:
        """Which samples, by shard and position in it, have features, ``[n]`` bool."""
        return self.look_up(positions)[1]

    def look_up(self, positions: Sequence[tuple[Shard, int]]) -> tuple[Tensor, Tensor]:
        """Features of n samples, by shard and position in it.

        Returns:
            ``[n, 2, width]`` float32, rows of length one, of pictures and captions, and ``[n]`` bool: False where
            there are none, and zeros.
        """
        features = torch.zeros(len(positions), 2, self.manifest.width)
        present = torch.zeros(len(positions), dtype=torch.bool)
        by_shard: dict[str, list[int]] = {}
        for index, (shard, _) in enumerate(positions):
            by_shard.setdefault(shard.name, []).append(index)
        for indices in by_shard.values():
            if rows := self.rows(positions[indices[0]][0]):
                inner = torch.tensor([positions[index][1] for index in indices])
                values = rows.features[inner].float()
                usable = (rows.present[inner] == 1) & values.isfinite().all(dim=(1, 2))
                features[indices], present[indices] = values.where(usable[:, None, None], 0), usable
        return F.normalize(features, dim=-1), present

    def _difference(self, metadata: Mapping[str, str], shard: Shard) -> str:
        """Why a file is not the one of this shard and this model, if so."""
        if metadata["key"] != self.manifest.key:
            return "of another model"
        if metadata["shard"] != _ascii(shard.name):
            return "of another shard"
        for then, now in ((metadata["bytes"], str(shard.size)), (metadata["head"], shard.head)):
            if then != now and then not in ("", "0") and now not in ("", "0"):  # which stand for unknown
                return "made of a shard that was another one then"
        return ""

    def _open(self, shard: Shard) -> Any:
        path = self.path(shard)
        if path.exists() and not path.is_file():
            raise ValueError("what is no ordinary file may have no end")
        return safe_open(path, framework="pt")

    def _read(self, shard: Shard) -> tuple[Rows | None, str]:
        """A shard's features, or why there are none; a file that is not there is no fault."""
        try:
            with self._open(shard) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in ("features", "present")}
            if difference := self._difference(metadata, shard):
                return None, difference
            _reasons(metadata, shard.count)
            rows, shape = Rows(**tensors), (shard.count, 2, self.manifest.width)
            fits = rows.features.shape == shape and rows.present.shape == shape[:1]
            fits = fits and (rows.features.dtype, rows.present.dtype) == (torch.float16, torch.uint8)
            if fits and shard.name not in self._usable:
                fits = metadata["checksum"] == _checksum(tensors, metadata["reasons"])
            return (rows, "") if fits else (None, "damaged")
        except FileNotFoundError:
            return None, ""
        except (OSError, SafetensorError, ValueError, KeyError):
            return None, "damaged"

    def _warn(self, shard: Shard, reason: str) -> None:
        """Says the first time that something is wrong; later times are counted."""
        self.faults[reason] += 1
        if self.faults[reason] == 1 and rank() == 0:
            print(
                f"{self.path(shard)} is {reason}: its features, and those of others like it, are computed anew in "
                f"every run; steer cache --check makes the files again",
                file=sys.stderr,
            )


def open_caches(
    folders: Sequence[str], refs: Sequence[str], shards: Sequence[Shard], caption_field: str | None
) -> list[Cache | None]:
    """The caches of several references, and a line on each that lacks shards.

    Raises:
        UserError: as ``Cache.open``, or there are not as many as references.
    """
    if len(folders) != len(refs):
        raise UserError(
            f"{len(folders)} caches are given for {len(refs)} references: name one for each, X + Y, in the same order"
        )
    nonempty = [shard for shard in shards if shard.count]
    caches: list[Cache | None] = []
    for folder, ref in zip(folders, refs, strict=True):
        cache = Cache.open(Path(os.path.expanduser(folder)), ref=ref, caption_field=caption_field)
        files = {path.name for path in (cache.folder / "shards").glob("*")}
        if (missing := [shard for shard in nonempty if cache.path(shard).name not in files]) and rank() == 0:
            print(
                f"{folder} lacks {len(missing):,} of {len(nonempty):,} shards ({missing[0].name} say): their features "
                f"are computed in every run, until steer cache completes it",
                file=sys.stderr,
            )
        caches.append(cache)
    return caches


def short_hash(value: Any) -> str:
    """16 hexadecimal digits that depend on content alone; tuples and lists are alike."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _ascii(name: str) -> str:
    """A shard's name in ASCII: one that is no UTF-8 could not be written."""
    return name.encode("ascii", "backslashreplace").decode()


def _reasons(metadata: Mapping[str, str], most: int) -> Counter[str]:
    """Why samples are absent; raises ValueError where these are no counts, or of more samples than there are."""
    try:
        reasons = json.loads(metadata["reasons"])
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(reasons, dict) or len(reasons) > MOST_REASONS:
        raise ValueError("no counts")
    if not all(type(count) is int and count >= 0 for count in reasons.values()) or sum(reasons.values()) > most:
        raise ValueError("no counts")
    if not all(reason.isprintable() and len(reason) <= MOST_REASONS for reason in reasons):
        raise ValueError("no reasons")
    return Counter(reasons)


def _checksum(tensors: Mapping[str, Tensor], reasons: str) -> str:
    """Hash of a file's content: the bytes of its tensors, and why samples are absent."""
    digest = hashlib.blake2b(reasons.encode(), digest_size=16)
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
