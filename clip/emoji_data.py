"""The bundled image-text data: 1,870 emoji by two vendors, with four captions each, as webdataset shards.

    path = emoji_shard("train", noise=0.3)  # 6,000 pairs, 1,800 of them with another concept's caption

Nothing is downloaded: the first call writes the shard to a cache, an ordinary tar of ``KEY.png``, ``KEY.txt`` and
``KEY.json``. The pictures are 32 pixels wide with an alpha channel, white where nothing is drawn: decode them with
``"pilrgba"`` and lay them over any background.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache as once
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image
from webdataset.writer import TarWriter

from steering import atomic_files
from steering.clip.data.shard_files import cache_folder
from steering.errors import RunError, UserError, did_you_mean

SPLITS = ("train", "reference", "seen_google", "seen_twitter", "held_out_google", "held_out_twitter")
BUNDLE = Path(__file__).parent / "emoji"
TOKENIZER = str(BUNDLE / "bpe_4096.txt.gz")  # for SimpleTokenizer(bpe_path=...): a vocabulary of 4,610

LAYOUT = 1  # count up whenever the same bundle gives other shards
SIDE = 32  # pixels of a picture
COLUMNS = 44  # pictures in a row of a sheet


@dataclass(frozen=True)
class Concept:
    """A row of the table: unique in its lower-case ASCII name and in its four captions, of which the name is the first.

    ``index`` is its position in the table and on both sheets. Of those ``held_out`` neither picture nor name is ever
    trained on; ``reference`` marks the 600 others that the reference is trained on.
    """

    index: int
    emoji: str
    name: str
    category: str
    subcategory: str
    held_out: bool
    reference: bool
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """A picture and one of its concept's four captions."""

    concept: Concept
    caption: int

    @property
    def key(self) -> str:
        return f"{self.concept.index:04d}-{self.caption}"

    @property
    def text(self) -> str:
        return self.concept.captions[self.caption]


def emoji_shard(split: str, *, noise: float = 0.0, cache: Path | None = None) -> Path:
    """The webdataset tar of a split, written on the first call and found again on every later one.

    ``train`` and ``reference`` hold one sample a (Google picture, caption) pair, 6,000 and 2,400 in a fixed
    mixed order. The others hold one sample a concept with its plain name, in the order of the table: the
    1,500 train concepts as either vendor draws them (``seen_*``), and the 370 never trained on (``held_out_*``).

    ``KEY.json`` holds ``emoji``, ``name``, ``category``, ``subcategory``, ``concept`` (index in the table),
    ``caption`` (0 to 3, which of the picture's four the pair is about) and ``wrong``: then ``KEY.txt`` is a caption of
    some other train concept with another picture.

    Args:
        split: one of ``SPLITS``.
        noise: share of wrong captions, from 0 to 1; only ``train`` has any. Pairs that are wrong at 0.2 are so at 0.3.
        cache: folder to keep the tar in, by default ``cache_folder()``.

    Raises:
        UserError: there is no such split, or ``noise`` is none that the split can have.
        RunError: the folder can not be written to.
    """
    if split not in SPLITS:
        raise UserError(f"no split is named {split!r}; known: {', '.join(SPLITS)}{did_you_mean(split, SPLITS)}")
    if not 0 <= noise <= 1:
        raise UserError(f"noise is a share of the captions, from 0 to 1, got {noise}")
    if noise and split != "train":
        raise UserError(f"only train has wrong captions; {split} takes noise=0, got {noise}")

    wrong = round(noise * len(_pairs(split)))
    path = _folder(cache) / (f"{split}-{wrong}-wrong.tar" if wrong else f"{split}.tar")
    if os.path.exists(path):
        return path
    try:
        return atomic_files.write(path, partial(_write, samples=_samples(split, wrong)))
    except RunError as error:
        raise RunError(
            f"can not keep the {split} shard in {path.parent} ({str(error).rpartition('. ')[0]}). "
            "Set STEERING_CACHE to a folder that can be written to and has 30 MB left"
        ) from None


@once
def concepts() -> tuple[Concept, ...]:
    """Every concept of the bundle, in the order of the table."""
    table = json.loads((BUNDLE / "emoji.json").read_text(encoding="utf-8"))
    rows = (dict(zip(table["columns"], row, strict=True)) for row in table["rows"])
    return tuple(Concept(n, captions=tuple(row.pop("captions")), **row) for n, row in enumerate(rows))


def _pairs(split: str) -> list[Pair]:
    """The pairs of a split, in the order of its shard."""
    if split in ("train", "reference"):
        chosen = [c for c in concepts() if c.reference or (split == "train" and not c.held_out)]
        mixed = [Pair(concept, caption) for concept in chosen for caption in range(len(concept.captions))]
        # In the order of the table a shuffle buffer would fill up with look-alikes.
        return sorted(mixed, key=lambda pair: _draw("order", pair))
    return [Pair(concept, 0) for concept in concepts() if concept.held_out == split.startswith("held_out")]


def _samples(split: str, wrong: int) -> Iterator[dict[str, str | bytes]]:
    """What TarWriter takes, in the shard's order, ``wrong`` of the captions being some other concept's."""
    pictures = _pictures("twitter" if split.endswith("twitter") else "google")
    chosen = _pairs(split)
    replaced = {pair.key for pair in sorted(chosen, key=lambda pair: _draw("wrong", pair))[:wrong]}
    for pair in chosen:
        concept = pair.concept
        facts = {name: getattr(concept, name) for name in ("emoji", "name", "category", "subcategory")}
        facts |= {"concept": concept.index, "caption": pair.caption, "wrong": pair.key in replaced}
        text = _foreign(pair, chosen, pictures).text if facts["wrong"] else pair.text
        named = {"__key__": pair.key, "png": pictures[concept.index]}
        yield named | {"txt": text.encode("utf-8"), "json": json.dumps(facts).encode("ascii")}


def _foreign(pair: Pair, chosen: list[Pair], pictures: tuple[bytes, ...]) -> Pair:
    """The pair whose caption replaces this one's. It depends on the pair alone, not on how many are wrong.

    The caption of a picture that looks exactly the same (the flags of Norway and Svalbard) is not wrong.
    """
    others = (chosen[int.from_bytes(_draw(f"foreign {attempt}", pair)) % len(chosen)] for attempt in count())
    return next(other for other in others if pictures[other.concept.index] != pictures[pair.concept.index])


def _draw(purpose: str, pair: Pair) -> bytes:
    """A fixed number for a pair, another one for every purpose, and the same with every library version."""
    return hashlib.sha256(f"{purpose}:{pair.key}".encode()).digest()


@once
def _pictures(vendor: str) -> tuple[bytes, ...]:
    """A vendor's pictures as PNG, one a concept."""
    with Image.open(BUNDLE / f"{vendor}.webp") as file:
        sheet = file.convert("RGBA")
    # WebP leaves any colour where nothing is drawn; a reader that drops alpha should find white there.
    drawn = sheet.getchannel("A").point(lambda alpha: 255 if alpha else 0)
    sheet = Image.composite(sheet, Image.new("RGBA", sheet.size, (255, 255, 255, 0)), drawn)
    pictures = []
    for concept in concepts():
        left, top = concept.index % COLUMNS * SIDE, concept.index // COLUMNS * SIDE
        stream = io.BytesIO()
        sheet.crop((left, top, left + SIDE, top + SIDE)).save(stream, "PNG")
        pictures.append(stream.getvalue())
    return tuple(pictures)


def _folder(cache: Path | None) -> Path:
    """Where this bundle's shards are kept; another content, or layout of shards, has another folder."""
    contents = [(BUNDLE / name).read_bytes() for name in ("emoji.json", "google.webp", "twitter.webp")]
    digest = hashlib.sha256(b"".join([f"layout {LAYOUT}".encode(), *contents]))
    return (cache or cache_folder()) / f"emoji-{digest.hexdigest()[:12]}"


def _write(path: Path, samples: Iterator[dict[str, str | bytes]]) -> None:
    # Nothing is taken from the clock or the user, so that two builds give the same tar.
    fixed: dict[str, Any] = {"user": "steering", "group": "steering", "mode": 0o644, "encoder": False, "mtime": 0}
    with path.open("wb") as file, TarWriter(file, **fixed) as tar:
        for sample in samples:
            tar.write(sample)
