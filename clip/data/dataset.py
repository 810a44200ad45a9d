"""Training batches of image-caption pairs, looked up by id."""

import hashlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch import Tensor

from steering.clip.data.augmentation import (
    Transform,
    canvas,
    picture_transform,
    picture_views,
    plain_views,
    small_views,
)
from steering.clip.data.images import UNREADABLE, Undecodable, decode
from steering.clip.data.shards import Shards
from steering.clip.data.skipped_samples import SharedCounts, Skips
from steering.errors import RunError, UserError
from steering.task import Batch
from steering.training import seeds
from steering.training.loader import Share

SMALL = 64  # pixels: pictures whose sides are at most this stay in memory,
MOST_KEPT = 256 << 20  # up to so many bytes in every process that loads; what comes later is decoded each time
MOST_TOKENS = 64 << 20  # bytes: tokens stay in memory if those of all samples fit
TRIES = 100  # random substitutes tried for one sample
MOST_DRAWS = 1000  # until one is found that is not in the batch already

Tokenizer = Callable[[list[str]], Tensor]


class PairData:
    """Pairs to train on, by id: the number of the sample in its shards.

    A sample that cannot be used is replaced, so that batches keep their size on every rank: first by one of the
    stand-ins that are offered, then by one drawn at random, at first from the shards that the batch reads anyway. No
    pair is twice in what this process loads for a batch, ``Batch.ids`` names the samples that are really there, and
    who stands in depends on ids, stand-ins and generator alone, not on the process that loads. With several ranks an
    offered stand-in is in no other rank's part of the batch; one drawn at random may be, and is then a false negative.

    Args:
        shards: where the samples are.
        tokenizer: texts to ``[n, context]`` int64, of the target.
        preprocessing: of the target: size, mean, standard deviation.
        left_out: numbers of samples never to train on, in rising order.
        augment: ``small`` for fast views of small pictures, ``pictures`` for open_clip's; by default the first if
            the target sees squares of at most 64 pixels.
        facts: fields of the JSON member to report of every sample, numbers or booleans; of these, the ones that the
            first sample has.
        bad_share: share of the samples that may be unusable before the run ends, 0 to 1.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        tokenizer: Tokenizer,
        preprocessing: PreprocessCfg,
        left_out: Sequence[int] = (),
        augment: str | None = None,
        facts: Sequence[str] = ("wrong",),
        bad_share: float = 0.01,
    ):
        height, width = preprocessing.input_size[1:]
        augment = augment or ("small" if height == width <= SMALL else "pictures")
        if augment not in ("small", "pictures") or (augment == "small" and height != width):
            raise UserError(f"augment is small, for square views, or pictures; got {augment} for {width} x {height}")
        self.shards, self.preprocessing, self.bad_share = shards, preprocessing, bad_share
        self.left_out = frozenset(left_out)
        self.facts = tuple(name for name in facts if name in _first_info(shards, self.left_out))
        self._transform = picture_transform(preprocessing) if augment == "pictures" else None
        self._pictures = _Pictures(preprocessing if augment == "small" else None)
        self._tokens = _Tokens(len(shards), tokenizer)
        self._counts = SharedCounts(len(shards), len(shards.index))

    def __len__(self) -> int:
        return len(self.shards) - len(self.left_out)

    def load(self, ids: Tensor, generator: torch.Generator, share: Share | None = None) -> Batch:
        """Random views of the samples, and one caption of each, drawn where it has several.

        Args:
            ids: ``[n]`` int64; of equal ones all but the first are replaced.
            generator: decides the views, the captions, and the substitutes where there have to be any.
            share: of the whole batch; with the same generator for all shares, views and captions are those of one load
                of the whole. Its stand-ins are tried in their order before any other sample.

        Returns:
            ``image`` ``[n, 3, size, size]`` float32, ``text`` ``[n, context]`` int64, and the facts.

        Raises:
            RunError: too many samples cannot be used, or a shard can no longer be read.
        """
        if share is None:
            share = Share(0, len(ids), ids[:0])
        samples = self._usable(ids.tolist(), generator.initial_seed(), share)
        facts = torch.tensor([sample.facts for sample in samples]).T
        fields = {"image": self._views(samples, generator, share), "text": self._tokens.look_up(samples)}
        return Batch(torch.tensor([sample.id for sample in samples]), fields, dict(zip(self.facts, facts, strict=True)))

    def plain(self, ids: Tensor, preprocess: Transform, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
        """The samples without augmentation and with their first caption, as another model sees them in evaluation.

        Args:
            ids: ``[n]`` int64, from a batch that was loaded.
            preprocess, tokenizer: of that model.

        Returns:
            Images ``[n, 3, h, w]`` and tokens ``[n, context]``.

        Raises:
            RunError: one of them cannot be used.
        """
        images, captions = [], []
        for number in ids.tolist():
            try:
                images.append(self._picture(number).image)
                captions.append(self.shards.caption(number))
            except Undecodable as error:
                raise RunError(f"{self.shards.name(number)} cannot be used: {error}; leave it out") from error
        return plain_views(images, preprocess), tokenizer(captions)

    @property
    def skips(self) -> Skips:
        """The samples that could not be used so far, in all processes that load for this one, each counted once."""
        seen, reasons, examples, stand_ins = self._counts.totals()  # later epochs see the same samples again
        return Skips(min(seen, len(self)), reasons, [self.shards.name(number) for number in examples], stand_ins)

    def _usable(self, ids: list[int], seed: int, share: Share) -> list["_Sample"]:
        """The samples of a batch, bad ones replaced."""
        self._counts.add_seen(len(ids))
        samples: list[_Sample | None] = []
        taken: set[int] = set()
        for number in ids:
            samples.append(None if number in taken else self._try(number, seed))
            taken.add(number)
        draws, offered = seeds.generator(seed, "substitutes", share.first), iter(share.stand_ins.tolist())
        for index, number in enumerate(ids):
            if samples[index] is None:
                others = (other for other in self._stand_ins(ids, taken, draws, offered) if other not in taken)
                samples[index] = self._substitute(number, others, taken, seed)
        return [sample for sample in samples if sample is not None]

    def _substitute(self, bad: int, others: Iterator[int], taken: set[int], seed: int) -> "_Sample":
        for number in others:
            taken.add(number)
            self._counts.add_seen(1)
            if sample := self._try(number, seed):
                self._counts.add_stand_in()
                return sample
        raise RunError(
            f"{self.shards.name(bad)} cannot be used, and none of the {len(self):,} training samples is left to stand "
            "in: leave it out, or use a smaller batch"
        )

    def _stand_ins(
        self, ids: list[int], taken: set[int], draws: torch.Generator, offered: Iterator[int]
    ) -> Iterator[int]:
        """Samples that may stand in for one: the next ones that are offered, then ``TRIES`` at random."""
        yield from offered
        shards = self.shards
        for attempt in range(TRIES):
            if len(taken) >= len(self):
                return
            for _ in range(MOST_DRAWS):
                near = shards.index[shards.which(ids[_draw(len(ids), draws)])]
                low, count = (near.first, near.count) if attempt < TRIES // 2 else (0, len(shards))
                number = low + _draw(count, draws)
                if number not in taken and number not in self.left_out:
                    yield number
                    break

    def _try(self, number: int, seed: int) -> "_Sample | None":
        try:
            # Captions whose tokens are kept are not read again.
            captions = None if self._tokens.has(number) else self.shards.captions(number)
            caption = captions[_draw(len(captions), seeds.generator(seed, "caption", number))] if captions else None
            alone = captions is not None and len(captions) == 1
            return _Sample(number, self._picture(number), caption, alone, self._facts(number))
        except Undecodable as error:
            self._note(str(error), number)
        return None

    def _note(self, reason: str, number: int) -> None:
        """Counts a bad sample, and ends the run if there are too many of them."""
        self._counts.add_bad(reason, number)
        others = self.skips
        lost = Skips(len(self.shards), examples=others.examples)
        if reason == UNREADABLE:  # what an unreadable shard says about the whole data is certain: all of it is lost
            shards = self._counts.add_shard(self.shards.which(number))
            lost.reasons[reason] = sum(self.shards.index[which].count for which in shards)
        del others.reasons[UNREADABLE]
        lost.check(self.bad_share, 1)
        others.check(self.bad_share)

    def _picture(self, number: int) -> "_Picture":
        return self._pictures.by_id.get(number) or self._pictures.add(number, self.shards.picture(number))

    def _facts(self, number: int) -> list[float]:
        info = self.shards.info(number) if self.facts else {}
        values = [info.get(name) for name in self.facts]
        if not all(isinstance(value, int | float) and abs(value) <= sys.float_info.max for value in values):
            raise UserError(
                f"{self.shards.name(number)} does not say {', '.join(self.facts)} in its .json although the first "
                "sample does: give every sample a number or a truth value"
            )
        return [float(value) for value in values if value is not None]

    def _views(self, samples: Sequence["_Sample"], generator: torch.Generator, share: Share) -> Tensor:
        among = share.first, share.batch
        if self._transform is not None:
            return picture_views([sample.picture.image for sample in samples], self._transform, generator, among)
        canvases = [sample.picture.canvas for sample in samples if sample.picture.canvas is not None]
        size, mean, std = self.preprocessing.input_size[1], self.preprocessing.mean, self.preprocessing.std
        return small_views(torch.stack(canvases), generator, size, mean, std, among)


def _first_info(shards: Shards, left_out: Collection[int]) -> dict:
    for number in range(min(20, len(shards))):
        try:
            if number not in left_out:
                return shards.info(number)
        except Undecodable:
            continue
    return {}


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator)) if count > 1 else 0


class _Picture(NamedTuple):
    image: Image.Image
    canvas: Tensor | None  # [4, size, size] uint8, for small views


class _Sample(NamedTuple):
    id: int
    picture: _Picture
    caption: str | None  # None if its tokens are kept
    alone: bool  # it has no other caption
    facts: list[float]


class _Pictures:
    """Small pictures, decoded; identical files are kept once, for captions that share a picture."""

    def __init__(self, preprocessing: PreprocessCfg | None):
        self.preprocessing = preprocessing  # of canvases, None if there are none
        self.by_id: dict[int, _Picture] = {}
        self.kept: dict[bytes, _Picture] = {}  # by hash of the file
        self.bytes = 0

    def add(self, number: int, data: bytes) -> _Picture:
        """Decodes a picture and keeps it if it is small."""
        image = decode(data)
        picture = _Picture(image, canvas(image, self.preprocessing) if self.preprocessing else None)
        if max(image.size) > SMALL:
            return picture
        content = hashlib.blake2b(data, digest_size=16).digest()
        if content not in self.kept:
            size = 4 * image.width * image.height + (0 if picture.canvas is None else picture.canvas.nbytes)
            if self.bytes + size > MOST_KEPT:
                return picture
            self.bytes += size
            self.kept[content] = picture
        self.by_id[number] = self.kept[content]
        return self.kept[content]


class _Tokens:
    """Tokens by id, a caption that is the only one of its sample tokenised once if there is room for all."""

    def __init__(self, samples: int, tokenizer: Tokenizer):
        self.samples, self.tokenizer = samples, tokenizer
        self.filled = bytearray()  # 1 where the row of an id is kept
        self.table: Tensor | None = None  # [samples, context] int32

    def has(self, number: int) -> bool:
        return self.table is not None and bool(self.filled[number])

    def look_up(self, samples: Sequence[_Sample]) -> Tensor:
        """``[n, context]`` int64 of n samples: from the captions where they have one, else kept; those alone are."""
        fresh = [sample for sample in samples if sample.caption is not None]
        tokens = self.tokenizer([sample.caption or "" for sample in fresh]).long() if fresh else None
        if tokens is not None and self.table is None:
            if 4 * tokens.shape[1] * self.samples > MOST_TOKENS:
                return tokens
            self.table = torch.zeros(self.samples, tokens.shape[1], dtype=torch.int32)
            self.filled = bytearray(self.samples)
        assert self.table is not None
        rows = self.table[[sample.id for sample in samples]].long()
        if tokens is not None:
            rows[torch.tensor([sample.caption is not None for sample in samples])] = tokens
            for sample, row in zip(fresh, tokens, strict=True):
                if sample.alone:
                    self.table[sample.id], self.filled[sample.id] = row.int(), 1
        return rows
