"""Training batches of image-caption pairs, looked up by id."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from steering.clip.images import REASONS, Skips, Undecodable, decode
from steering.clip.shards import Shards
from steering.clip.views import Transform, canvas, picture_transform, picture_views, plain_views, small_views
from steering.errors import RunError, UserError
from steering.task import Batch

SMALL = 64  # pixels: pictures whose sides are at most this stay in memory,
MOST_KEPT = 256 << 20  # up to so many bytes in every process that loads; what comes later is decoded each time
MOST_TOKENS = 64 << 20  # bytes: tokens stay in memory if those of all samples fit
TRIES = 100  # substitutes looked at for one sample

Tokenizer = Callable[[list[str]], Tensor]


class PairData:
    """Pairs to train on, by id: the places 0 to n - 1 of ``numbers``.

    A sample that cannot be used is replaced by one drawn at random from the training samples that are not in the
    batch: batches keep their size on every rank, no pair is a negative of itself, every good sample is equally
    likely to stand in, and ``Batch.ids`` names the samples that are really there. Who stands in depends on the
    generator alone, not on the process that loads. (A rank does not see what the others load: with several, a
    substitute may be in the batch of another one, with probability batch / n, and makes one false negative.)

    Args:
        shards: where the samples are.
        tokenizer: texts to ``[n, context]`` int64, of the target.
        preprocessing: of the target: size, mean, standard deviation.
        numbers: ``[n]`` int64, the samples of the shards to train on; all if not given.
        augment: ``small`` for fast views of small pictures, ``pictures`` for open_clip's; by default the first if
            the target sees squares of at most 64 pixels.
        facts: fields of the JSON member to tell of every sample, numbers or booleans; of these, the ones that the
            first sample has.
        bad_share: share of the samples that may be unusable before the run ends, 0 to 1.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        tokenizer: Tokenizer,
        preprocessing: PreprocessCfg,
        numbers: Tensor | None = None,
        augment: str | None = None,
        facts: Sequence[str] = ("wrong",),
        bad_share: float = 0.01,
    ):
        height, width = preprocessing.input_size[1:]
        augment = augment or ("small" if height == width <= SMALL else "pictures")
        if augment not in ("small", "pictures") or (augment == "small" and height != width):
            raise UserError(f"augment is small, for square views, or pictures; got {augment} for {width} x {height}")
        self.shards, self.preprocessing, self.bad_share = shards, preprocessing, bad_share
        self.numbers = torch.arange(len(shards)) if numbers is None else numbers
        self.facts = tuple(name for name in facts if name in _first_info(shards, self.numbers))
        self._transform = picture_transform(preprocessing) if augment == "pictures" else None
        self._pictures = _Pictures(len(self), preprocessing if augment == "small" else None)
        self._tokens = _Tokens(len(self), tokenizer)
        self._counts = _Counts()

    def __len__(self) -> int:
        return len(self.numbers)

    def load(self, ids: Tensor, generator: torch.Generator) -> Batch:
        """Random views of the samples and their captions.

        Args:
            ids: ``[n]`` int64, all different.
            generator: decides the views, and the substitutes where there have to be any.

        Returns:
            ``image`` ``[n, 3, size, size]`` float32, ``text`` ``[n, context]`` int64, and the facts.

        Raises:
            RunError: too many samples cannot be used, or a shard can no longer be read.
        """
        samples = self._usable(ids.tolist(), generator)
        chosen = [sample.id for sample in samples]
        text = self._tokens.look_up(chosen, [sample.caption for sample in samples])
        told = torch.tensor([sample.facts for sample in samples]).T
        facts = dict(zip(self.facts, told, strict=True))
        return Batch(torch.tensor(chosen), {"image": self._views(samples, generator), "text": text}, facts)

    def plain(self, ids: Tensor, preprocess: Transform, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
        """The samples without augmentation, as another model sees them in evaluation.

        Args:
            ids: ``[n]`` int64, from a batch that was loaded.
            preprocess, tokenizer: that model's own.

        Returns:
            Images ``[n, 3, h, w]`` and tokens ``[n, context]``.

        Raises:
            RunError: one of them cannot be used.
        """
        images, captions = [], []
        for place in ids.tolist():
            number = int(self.numbers[place])
            try:
                images.append(self._picture(place).image)
                captions.append(self.shards.caption(number))
            except Undecodable as error:
                raise RunError(f"{self.shards.name(number)} cannot be used: {error}; leave it out") from error
        return plain_views(images, preprocess), tokenizer(captions)

    @property
    def skips(self) -> Skips:
        """What could not be used so far, in all processes that load for this one."""
        seen, reasons, examples = self._counts.totals()
        return Skips(seen, reasons, [self.shards.name(number) for number in examples])

    def _usable(self, ids: list[int], generator: torch.Generator) -> list["_Sample"]:
        """The samples of a batch, bad ones replaced."""
        self._counts.saw(len(ids))
        taken = set(ids)
        return [self._try(place) or self._substitute(place, taken, generator) for place in ids]

    def _substitute(self, bad: int, taken: set[int], generator: torch.Generator) -> "_Sample":
        for _ in range(min(TRIES, len(self) - len(taken))):
            place = bad
            while place in taken:
                place = int(torch.randint(len(self), (), generator=generator))
            taken.add(place)
            self._counts.saw(1)
            if sample := self._try(place):
                return sample
        raise RunError(
            f"{self.shards.name(int(self.numbers[bad]))} cannot be used, and none of the {len(self):,} training "
            "samples is left to stand in: leave it out, or use a smaller batch"
        )

    def _try(self, place: int) -> "_Sample | None":
        number = int(self.numbers[place])
        try:
            # Captions that are known as tokens are not read again.
            caption = None if self._tokens.known(place) else self.shards.caption(number)
            return _Sample(place, self._picture(place), caption, self._told(number))
        except Undecodable as error:
            self._counts.add(str(error), number)
        self.skips.check(self.bad_share)
        return None

    def _picture(self, place: int) -> "_Picture":
        kept = self._pictures.find(place)
        return kept or self._pictures.add(place, self.shards.picture(int(self.numbers[place])))

    def _told(self, number: int) -> list[float]:
        info = self.shards.info(number) if self.facts else {}
        values = [info.get(name) for name in self.facts]
        if not all(isinstance(value, int | float) for value in values):
            raise UserError(
                f"{self.shards.name(number)} does not say {', '.join(self.facts)} in its .json although the first "
                "sample does: give every sample a number or a truth value"
            )
        return [float(value) for value in values if value is not None]

    def _views(self, samples: Sequence["_Sample"], generator: torch.Generator) -> Tensor:
        if self._transform is not None:
            return picture_views([sample.picture.image for sample in samples], self._transform, generator)
        canvases = [sample.picture.canvas for sample in samples if sample.picture.canvas is not None]
        size, mean, std = self.preprocessing.input_size[1], self.preprocessing.mean, self.preprocessing.std
        return small_views(torch.stack(canvases), generator, size, mean, std)


def _first_info(shards: Shards, numbers: Tensor) -> dict:
    for number in numbers[:20].tolist():
        try:
            return shards.info(number)
        except Undecodable:
            continue
    return {}


class _Picture(NamedTuple):
    image: Image.Image
    canvas: Tensor | None  # [4, size, size] uint8, for small views


class _Sample(NamedTuple):
    id: int
    picture: _Picture
    caption: str | None  # None if its tokens are known
    facts: list[float]


class _Pictures:
    """Small pictures, decoded; identical files are kept once, for captions that share a picture."""

    def __init__(self, samples: int, preprocessing: PreprocessCfg | None):
        self.preprocessing = preprocessing  # of canvases, None if there are none
        self.places = array("i", [-1]) * samples  # in kept, by id
        self.kept: list[_Picture] = []
        self.by_content: dict[bytes, int] = {}
        self.bytes = 0

    def find(self, place: int) -> _Picture | None:
        where = self.places[place]
        return self.kept[where] if where >= 0 else None

    def add(self, place: int, data: bytes) -> _Picture:
        """Decodes a picture and keeps it if it is small."""
        image = decode(data)
        picture = _Picture(image, canvas(image, self.preprocessing) if self.preprocessing else None)
        if max(image.size) > SMALL:
            return picture
        content = hashlib.blake2b(data, digest_size=16).digest()
        if content not in self.by_content:
            size = 4 * image.width * image.height + (0 if picture.canvas is None else picture.canvas.nbytes)
            if self.bytes + size > MOST_KEPT:
                return picture
            self.bytes += size
            self.by_content[content] = len(self.kept)
            self.kept.append(picture)
        self.places[place] = self.by_content[content]
        return self.kept[self.places[place]]


class _Tokens:
    """Tokens by id, each caption tokenised once if there is room for all."""

    def __init__(self, samples: int, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.held = bytearray(samples)  # 1 where the row of an id is there
        self.table: Tensor | None = None  # [samples, context] int32

    def known(self, place: int) -> bool:
        return bool(self.held[place])

    def look_up(self, ids: Sequence[int], captions: Sequence[str | None]) -> Tensor:
        """``[n, context]`` int64 of n ids; a caption may be None where the id is known."""
        new = {place: caption for place, caption in zip(ids, captions, strict=True) if caption is not None}
        if new:
            tokens = self.tokenizer(list(new.values())).long()
            if self.table is None:
                if 4 * tokens.shape[1] * len(self.held) > MOST_TOKENS:
                    return tokens
                self.table = torch.zeros(len(self.held), tokens.shape[1], dtype=torch.int32)
            self.table[list(new)] = tokens.int()
            for place in new:
                self.held[place] = 1
        assert self.table is not None
        return self.table[list(ids)].long()


class _Counts:
    """Samples that could not be used, in memory shared with the worker processes; a row each, so none is lost."""

    ROWS = 257

    def __init__(self):
        # Samples seen, number of one that was bad plus one, and how many were for every reason.
        self.table = torch.zeros(self.ROWS, 2 + len(REASONS), dtype=torch.int64).share_memory_()

    def saw(self, samples: int) -> None:
        self._row()[0] += samples

    def add(self, reason: str, number: int) -> None:
        row = self._row()
        row[1] = number + 1
        row[2 + REASONS.index(reason)] += 1

    def totals(self) -> tuple[int, Counter[str], list[int]]:
        """Samples seen, skipped ones by reason, and up to three that were."""
        seen, _, *counts = self.table.sum(0).tolist()
        reasons = Counter({reason: count for reason, count in zip(REASONS, counts, strict=True) if count})
        examples = [place - 1 for place in self.table[:, 1].tolist() if place]
        return seen, reasons, examples[:3]

    def _row(self) -> Tensor:
        worker = get_worker_info()
        return self.table[0 if worker is None else 1 + worker.id % (self.ROWS - 1)]
