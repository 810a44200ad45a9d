"""Training batches of image-caption pairs, looked up by id."""

import hashlib
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
from steering.clip.data.images import UNREADABLE, Skips, Undecodable, decode
from steering.clip.data.shards import Shards
from steering.clip.data.skipped_samples import Counts
from steering.errors import RunError, UserError
from steering.task import Batch
from steering.training import seeds
from steering.training.loader import Share

SMALL = 64  # pixels: pictures whose sides are at most this stay in memory,
MOST_KEPT = 256 << 20  # up to so many bytes in every process that loads; what comes later is decoded each time
MOST_TOKENS = 64 << 20  # bytes: tokens stay in memory if those of all samples fit
TRIES = 100  # random substitutes looked at for one sample
MOST_DRAWS = 1000  # until one is found that is not in the batch already

Tokenizer = Callable[[list[str]], Tensor]


class PairData:
    """Pairs to train on, by id: the number of the sample in its shards.

    A sample that cannot be used is replaced, so that batches keep their size on every rank: first by one of the
    stand-ins that are offered, samples that the epoch would leave out otherwise; then by one drawn at random that is
    not in the batch, at first from the shards that the batch reads anyway. Promised is that no pair is twice in what
    this process loads for a batch, that ``Batch.ids`` names the samples that are really there, and that who stands in
    depends on ids, stand-ins and generator alone, not on the process that loads. With several ranks an offered
    stand-in is in no other rank's part of the batch; one drawn at random may be, and is then a false negative. A
    random one may also come again later in the epoch, or before.

    Args:
        shards: where the samples are.
        tokenizer: texts to ``[n, context]`` int64, of the target.
        preprocessing: of the target: size, mean, standard deviation.
        left_out: numbers of samples never to train on, in rising order.
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
        self._counts = Counts(len(shards), len(shards.index))

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
        chosen = [sample.id for sample in samples]
        captions = [sample.caption for sample in samples]
        text = self._tokens.look_up(chosen, captions, {sample.id for sample in samples if sample.alone})
        told = torch.tensor([sample.facts for sample in samples]).T
        facts = dict(zip(self.facts, told, strict=True))
        return Batch(torch.tensor(chosen), {"image": self._views(samples, generator, share), "text": text}, facts)

    def plain(self, ids: Tensor, preprocess: Transform, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
        """The samples without augmentation and with their first caption, as another model sees them in evaluation.

        Args:
            ids: ``[n]`` int64, from a batch that was loaded.
            preprocess, tokenizer: that model's own.

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
        skips = self._skips()
        skips.examples += self._examples()
        return skips

    def _skips(self) -> Skips:
        seen, reasons, _, stand_ins = self._counts.totals()
        # Later epochs see the same samples again; a share is of different ones.
        return Skips(min(seen, len(self)), reasons, stand_ins=stand_ins)

    def _examples(self) -> list[str]:
        return [self.shards.name(number) for number in self._counts.totals()[2]]

    def _usable(self, ids: list[int], seed: int, share: Share) -> list["_Sample"]:
        """The samples of a batch, bad ones replaced."""
        self._counts.saw(len(ids))
        found: list[_Sample | None] = []
        taken: set[int] = set()
        for number in ids:
            found.append(None if number in taken else self._try(number, seed))
            taken.add(number)
        chance = seeds.generator(seed, "substitutes", share.first)
        others = _Others(self, ids, taken, chance, share.stand_ins.tolist())
        return [sample or self._substitute(number, others, seed) for number, sample in zip(ids, found, strict=True)]

    def _substitute(self, bad: int, others: "_Others", seed: int) -> "_Sample":
        for number in others:
            self._counts.saw(1)
            if sample := self._try(number, seed):
                self._counts.replaced()
                return sample
        raise RunError(
            f"{self.shards.name(bad)} cannot be used, and none of the {len(self):,} training samples is left to stand "
            "in: leave it out, or use a smaller batch"
        )

    def _try(self, number: int, seed: int) -> "_Sample | None":
        try:
            # Captions that are known as tokens are not read again.
            captions = None if self._tokens.known(number) else self.shards.captions(number)
            caption = captions[_draw(len(captions), seeds.generator(seed, "caption", number))] if captions else None
            alone = captions is not None and len(captions) == 1
            return _Sample(number, self._picture(number), caption, alone, self._told(number))
        except Undecodable as error:
            self._note(str(error), number)
        return None

    def _note(self, reason: str, number: int) -> None:
        """Counts a bad sample, and ends the run if there are too many of them."""
        self._counts.add(reason, number)
        lost = Skips(len(self.shards))  # what an unreadable shard says about the whole data is known: all of it is lost
        if reason == UNREADABLE:
            shards = self._counts.add_shard(self.shards.which(number))
            lost.reasons[reason] = sum(self.shards.index[which].count for which in shards)
        others = self._skips()
        del others.reasons[UNREADABLE]
        for skips, least in ((lost, 1), (others, 10)):
            if skips.too_many(self.bad_share, least):
                skips.examples += self._examples()
                skips.check(self.bad_share, least)

    def _picture(self, number: int) -> "_Picture":
        kept = self._pictures.find(number)
        return kept or self._pictures.add(number, self.shards.picture(number))

    def _told(self, number: int) -> list[float]:
        info = self.shards.info(number) if self.facts else {}
        values = [info.get(name) for name in self.facts]
        if not all(isinstance(value, int | float) for value in values):
            raise UserError(
                f"{self.shards.name(number)} does not say {', '.join(self.facts)} in its .json although the first "
                "sample does: give every sample a number or a truth value"
            )
        return [float(value) for value in values if value is not None]

    def _views(self, samples: Sequence["_Sample"], generator: torch.Generator, share: Share) -> Tensor:
        among = share.first, share.whole
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


class _Others:
    """Samples that may stand in, one after the other, none twice: those offered, then random ones."""

    def __init__(self, data: PairData, ids: list[int], taken: set[int], generator: torch.Generator, offered: list[int]):
        self.data, self.ids, self.taken, self.generator = data, ids, taken, generator
        self.offered = iter(offered)

    def __iter__(self) -> Iterator[int]:
        """Those for one bad sample: the next ones that are offered, then ``TRIES`` at random."""
        for number in self.offered:
            if self._free(number):
                yield number
        shards = self.data.shards
        for attempt in range(TRIES):
            if len(self.taken) >= len(self.data):
                return
            number = self.ids[0]
            for _ in range(MOST_DRAWS):
                near = shards.index[shards.which(self.ids[_draw(len(self.ids), self.generator)])]
                low, count = (near.first, near.count) if attempt < TRIES // 2 else (0, len(shards))
                number = low + _draw(count, self.generator)
                if number not in self.taken and number not in self.data.left_out:
                    break
            if self._free(number):
                yield number

    def _free(self, number: int) -> bool:
        free = number not in self.taken
        self.taken.add(number)
        return free


class _Picture(NamedTuple):
    image: Image.Image
    canvas: Tensor | None  # [4, size, size] uint8, for small views


class _Sample(NamedTuple):
    id: int
    picture: _Picture
    caption: str | None  # None if its tokens are known
    alone: bool  # it has no other caption
    facts: list[float]


class _Pictures:
    """Small pictures, decoded; identical files are kept once, for captions that share a picture."""

    def __init__(self, preprocessing: PreprocessCfg | None):
        self.preprocessing = preprocessing  # of canvases, None if there are none
        self.places: dict[int, int] = {}  # in kept, by id
        self.kept: list[_Picture] = []
        self.by_content: dict[bytes, int] = {}
        self.bytes = 0

    def find(self, place: int) -> _Picture | None:
        where = self.places.get(place)
        return None if where is None else self.kept[where]

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
    """Tokens by id, a caption that is the only one of its sample tokenised once if there is room for all."""

    def __init__(self, samples: int, tokenizer: Tokenizer):
        self.samples, self.tokenizer = samples, tokenizer
        self.held = bytearray()  # 1 where the row of an id is there
        self.table: Tensor | None = None  # [samples, context] int32

    def known(self, number: int) -> bool:
        return self.table is not None and bool(self.held[number])

    def look_up(self, ids: Sequence[int], captions: Sequence[str | None], alone: Collection[int]) -> Tensor:
        """``[n, context]`` int64 of n ids; a caption may be None where the id is known, and is kept of those alone."""
        new = {number: caption for number, caption in zip(ids, captions, strict=True) if caption is not None}
        tokens = self.tokenizer(list(new.values())).long() if new else None
        if len(new) == len(ids) and tokens is not None and not self._room(tokens.shape[1]):
            return tokens
        assert self.table is not None
        found = torch.empty(len(ids), self.table.shape[1], dtype=torch.long)
        fresh = torch.tensor([number in new for number in ids])
        if tokens is not None:
            found[fresh] = tokens
            for number, row in zip(new, tokens, strict=True):
                if number in alone:
                    self.table[number], self.held[number] = row.int(), 1
        found[~fresh] = self.table[[number for number in ids if number not in new]].long()
        return found

    def _room(self, context: int) -> bool:
        if self.table is None and 4 * context * self.samples <= MOST_TOKENS:
            self.table = torch.zeros(self.samples, context, dtype=torch.int32)
            self.held = bytearray(self.samples)
        return self.table is not None
