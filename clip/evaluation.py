"""What a target or a reference is evaluated on: pairs it never trained on, each model seeing them its own way."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from steering.clip import retrieval
from steering.clip.bundled import shards as bundled_shard
from steering.clip.images import Skips, Undecodable, decode, flatten
from steering.clip.shards import Shards
from steering.clip.towers import Towers
from steering.errors import RunError
from steering.recipe import Metric

KEPT_BYTES = 64 << 20  # preprocessed pictures of a set stay in memory up to this size
BLOCK = 256  # samples encoded at a time
TOP = 10  # the k of recall at k


@dataclass
class PairSet:
    """Pairs to evaluate on: pictures with one caption each; what cannot be read is left out and counted.

    Args:
        shards: where they are.
        ids: which of them, all if not given.
        skips: counts what cannot be read.
        bad_share: largest share of them, see ``Skips.check``.
    """

    shards: Shards
    ids: Sequence[int] | None = None
    skips: Skips = field(default_factory=Skips)
    bad_share: float = 0.01
    kept: dict[str, list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def usable(self) -> list[int]:
        """Ids of the pairs that can be read."""
        found = []
        for number in range(len(self.shards)) if self.ids is None else self.ids:
            self.skips.seen += 1
            try:
                decode(self.shards.picture(number))
                self.shards.caption(number)
            except Undecodable as error:
                self.skips.add(str(error), self.shards.name(number))
            else:
                found.append(number)
        self.skips.check(self.bad_share)
        if not found:
            raise RunError(f"none of the pairs to evaluate on can be read: {', '.join(self.skips.examples)}")
        return found

    @cached_property
    def captions(self) -> list[str]:
        return [self.shards.caption(number) for number in self.usable]

    def picture(self, place: int):
        """The picture of the pair at a place of ``usable``, on white."""
        return flatten(decode(self.shards.picture(self.usable[place])))

    def info(self, name: str) -> list:
        """One field of every pair's JSON member."""
        return [self.shards.info(number).get(name) for number in self.usable]

    @torch.no_grad()
    def embed(self, towers: Towers) -> tuple[Tensor, Tensor]:
        """Features of the pictures and of their captions, ``[n, width]`` each."""
        device = next(towers.parameters()).device
        images = [towers.encode_images(block.to(device)) for block in self._views(towers)]
        return torch.cat(images), embed_texts(towers, self.captions)

    def _views(self, towers: Towers) -> Iterator[Tensor]:
        """Preprocessed pictures in blocks, kept from one evaluation to the next while they are small."""
        key = str(towers.preprocessing)
        if key in self.kept:
            yield from self.kept[key]
            return
        kept: list[Tensor] | None = []
        for start in range(0, len(self.usable), BLOCK):
            places = range(start, min(start + BLOCK, len(self.usable)))
            block = torch.stack([towers.preprocess(self.picture(place)) for place in places])
            if kept is not None and block[0].nbytes * len(self.usable) <= KEPT_BYTES:
                kept.append(block)
            else:
                kept = None
            yield block
        if kept:
            self.kept[key] = kept


@torch.no_grad()
def embed_texts(towers: Towers, texts: Sequence[str]) -> Tensor:
    """Features of texts, ``[n, width]``."""
    device = next(towers.parameters()).device
    blocks = towers.tokenize(texts).split(BLOCK)
    return torch.cat([towers.encode_texts(block.to(device)) for block in blocks])


class EmojiSuite:
    """Held-out names, and pictures of a vendor that was never trained on.

    Recall at 10 of the right name for a picture: among 370 names that no caption of the training had, and among
    the 1,500 (and 370) names for the other vendor's pictures. Zero-shot category: the best of 98 subcategory
    prompts, counted right when its category is.
    """

    metrics: Mapping[str, Metric] = {
        "held_out": Metric(label="held-out R@10", chance=TOP / 370, percent=True),
        "other_vendor": Metric(label="other vendor R@10", chance=TOP / 1500, percent=True),
        "other_held_out": Metric(label="other vendor held-out R@10", chance=TOP / 370, percent=True),
        "category": Metric(label="category", chance=0.11, percent=True),
    }

    def __init__(self):
        self.skips = Skips()
        names = {"held_out": "held_out_google", "other_vendor": "seen_twitter", "other_held_out": "held_out_twitter"}
        self.sets = {
            metric: PairSet(Shards.open(bundled_shard(split)), skips=self.skips) for metric, split in names.items()
        }
        self.gallery = self.sets["held_out"]

    def evaluate(self, towers: Towers) -> dict[str, float]:
        found = {}
        for metric, pairs in self.sets.items():
            images, texts = pairs.embed(towers)
            found[metric] = retrieval.recall(images, texts, TOP)
            if metric == "held_out":
                found["category"] = self._category(towers, images)
        return {metric: found[metric] for metric in self.metrics}

    def _category(self, towers: Towers, images: Tensor) -> float:
        """Zero-shot category of the held-out pictures."""
        subcategories, categories = self.gallery.info("subcategory"), self.gallery.info("category")
        group_of = dict(zip(subcategories, categories, strict=True))
        known, groups = sorted(group_of), sorted(set(categories))
        prompts = [embed_texts(towers, [t.format(s) for s in known]) for t in ("an emoji of {}", "{}:")]
        of_class = torch.tensor([groups.index(group_of[s]) for s in known], device=images.device)
        labels = torch.tensor([groups.index(c) for c in categories], device=images.device)
        return retrieval.zero_shot(images, torch.stack(prompts).mean(0), labels, of_class)


class RetrievalSuite:
    """Retrieval in both directions on one set of pairs.

    Args:
        pairs: held out of the training.
    """

    def __init__(self, pairs: PairSet):
        self.gallery, self.skips = pairs, pairs.skips

    @property
    def metrics(self) -> Mapping[str, Metric]:
        count = max(1, len(self.gallery.usable))
        return {
            f"{way}_r{k}": Metric(label=f"{words} R@{k}", chance=min(1.0, k / count), percent=True)
            for k in (TOP, 1)
            for way, words in (("i2t", "image to text"), ("t2i", "text to image"))
        }

    def evaluate(self, towers: Towers) -> dict[str, float]:
        images, texts = self.gallery.embed(towers)
        return {
            f"{way}_r{k}": retrieval.recall(queries, answers, k)
            for k in (TOP, 1)
            for way, queries, answers in (("i2t", images, texts), ("t2i", texts, images))
        }
