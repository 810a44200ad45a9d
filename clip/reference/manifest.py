"""cache.json: whose features a cache holds, verified whenever it is read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from steering import atomic_files
from steering.clip.models import Towers
from steering.errors import UserError

FORMAT = 1
MANIFEST = "cache.json"


@dataclass(frozen=True)
class Manifest:
    """Whose features a cache holds.

    Attributes:
        ref: the name under which the reference was loaded.
        model: architecture, weights, preprocessing and tokenizer, as ``Towers.describe`` but for the source.
        width: of a feature.
        scale: the reference's inverse temperature.
        caption_field: JSON field the captions are from, None for the usual place.
    """

    ref: str
    model: Mapping[str, Any]
    width: int
    scale: float
    caption_field: str | None = None

    @classmethod
    def of(cls, towers: Towers, *, ref: str, caption_field: str | None = None) -> Self:
        scale = float(towers.clip.logit_scale.detach().exp())
        return cls(ref, _model(towers), int(towers.config["embed_dim"]), scale, caption_field)

    def is_of(self, towers: Towers) -> bool:
        """Whether these are features of that model, by whatever name it was loaded."""
        return short_hash(self.model) == short_hash(_model(towers))

    @cached_property
    def key(self) -> str:
        """Hash of all but ``ref``: equal means equal features of equal samples."""
        return short_hash({name: value for name, value in asdict(self).items() if name != "ref"})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes cache.json where there is none yet; several processes may do so at once, all of them the same.

    Raises:
        RunError: the folder cannot be written.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        atomic_files.write_json(path, {"format": FORMAT, "key": manifest.key, **asdict(manifest)})


def read_manifest(folder: Path) -> Manifest:
    """What cache.json says, verified against its own hash.

    Raises:
        UserError: there is none, it is damaged, or of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise UserError(f"{folder} is a cache of another version of this software: fill another with steer cache")
        key, manifest = content.pop("key"), Manifest(**content)
        if key != manifest.key:
            raise ValueError("its hash is wrong")
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"{folder} is no cache of features ({path.name}: {error.strerror}): steer cache makes one"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: delete {folder} and fill it again with steer cache") from None
    return manifest


def short_hash(value: Any) -> str:
    """16 hexadecimal digits that depend on content alone; tuples and lists are alike."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _model(towers: Towers) -> dict[str, Any]:
    """What decides a model's features."""
    return {name: value for name, value in towers.describe().items() if name != "source"}
