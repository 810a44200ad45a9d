"""What a target or a reference is evaluated on: pairs it never trained on, each model seeing them its own way."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from scipy.stats import hypergeom
from torch import Tensor

from steering.clip.data.images import Undecodable
from steering.clip.data.shards import Shards
from steering.clip.data.skipped_samples import Skips
from steering.clip.emoji_data import emoji_shard
from steering.clip.evaluation import retrieval
from steering.clip.evaluation.embedding import ALONE, PairPictures, PictureSet, Work, embed_classes, embed_texts
from steering.clip.evaluation.labelled_images import read_classes
from steering.clip.evaluation.retrieval import Share
from steering.clip.models import Towers
from steering.settings import Metric

TOP = 10  # the k of the headline's recall at k
KS = (TOP, 5, 1)
TOP_CLASSES = 5


class PairSet:
    """Pairs to evaluate on: pictures with their captions; what cannot be read is left out and counted.

    Args:
        shards: where they are.
        ids: which of them, all if not given.
        skips, bad_share: as of ``PictureSet``.
        lines: every line of a text is a caption of its own.
    """

    def __init__(
        self,
        shards: Shards,
        ids: Sequence[int] | None = None,
        skips: Skips | None = None,
        bad_share: float = 0.01,
        *,
        lines: bool = False,
    ):
        self.shards, self.lines = shards, lines
        self.ids = range(len(shards)) if ids is None else ids
        self.skips = Skips() if skips is None else skips
        self.pictures = PictureSet(PairPictures(shards, self.ids), self.skips, bad_share)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def usable(self) -> list[int]:
        """Ids of the pairs that can be read."""
        return [self.ids[index] for index in self.pictures.usable]

    @cached_property
    def captions(self) -> list[str]:
        """The first caption of every usable pair."""
        return [captions[0] for captions in self.all_captions]

    @cached_property
    def all_captions(self) -> list[list[str]]:
        """All captions of every usable pair."""
        return [self._captions_of(number) for number in self.usable]

    @cached_property
    def caption_counts(self) -> list[int]:
        """How many captions pairs have, of all or of some 1,000 that are spread evenly."""
        counts = []
        for number in self.ids[:: max(1, len(self.ids) // 1000)]:
            with suppress(Undecodable):
                counts.append(len(self._captions_of(number)))
        return counts or [1]

    def _captions_of(self, number: int) -> list[str]:
        captions = self.shards.captions(number)
        if not self.lines:
            return captions
        return [line.strip() for text in captions for line in text.splitlines() if line.strip()]

    def picture(self, index: int) -> Image.Image:
        """The picture of the pair at an index of ``usable``, on white."""
        return self.pictures.source.load(self.pictures.usable[index])

    def info(self, name: str) -> list:
        """One field of every pair's JSON member."""
        return [self.shards.info(number).get(name) for number in self.usable]

    def embed(self, towers: Towers, work: Work = ALONE) -> tuple[Tensor, Tensor]:
        """Features of the pictures and of their first captions, ``[n, width]`` each."""
        return self.pictures.embed(towers, work), embed_texts(towers, self.captions, work)

    def embed_all(self, towers: Towers, work: Work = ALONE) -> tuple[Tensor, Tensor, Tensor]:
        """Features of n pictures and of their m captions, and the ``[m]`` index of every caption's picture."""
        images = self.pictures.embed(towers, work)
        texts = embed_texts(towers, [caption for captions in self.all_captions for caption in captions], work)
        counts = torch.tensor([len(captions) for captions in self.all_captions], device=images.device)
        return images, texts, torch.arange(len(images), device=images.device).repeat_interleave(counts)


class Suite(Protocol):
    """Something to evaluate models on: every metric of a model, and how to read these, in the same order."""

    skips: Skips

    @property
    def metrics(self) -> Mapping[str, Metric]: ...
    def measure(self, towers: Towers, work: Work = ALONE) -> dict[str, Share]: ...


def measure(towers: Towers, suites: Sequence[Suite], work: Work = ALONE) -> dict[str, Share]:
    """Every metric of all suites."""
    return {name: share for suite in suites for name, share in suite.measure(towers, work).items()}


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
        "category": Metric(label="category", chance=0.1205, percent=True),  # of the 95 prompts, those of the category
    }

    def __init__(self):
        self.skips = Skips()
        names = {"held_out": "held_out_google", "other_vendor": "seen_twitter", "other_held_out": "held_out_twitter"}
        self.sets = {
            metric: PairSet(Shards.open(emoji_shard(split)), skips=self.skips) for metric, split in names.items()
        }
        self.gallery = self.sets["held_out"]

    def measure(self, towers: Towers, work: Work = ALONE) -> dict[str, Share]:
        features = {metric: pairs.embed(towers, work) for metric, pairs in self.sets.items()}
        shares = {metric: retrieval.recall(*both, TOP, work) for metric, both in features.items()}
        return shares | {"category": self._category(towers, features["held_out"][0], work)}

    def _category(self, towers: Towers, images: Tensor, work: Work) -> Share:
        """Zero-shot category of the held-out pictures."""
        subcategories, categories = self.gallery.info("subcategory"), self.gallery.info("category")
        group_of = dict(zip(subcategories, categories, strict=True))
        classes, groups = sorted(group_of), sorted(set(categories))
        prompts = [embed_texts(towers, [t.format(s) for s in classes], work) for t in ("an emoji of {}", "{}:")]
        of_class = torch.tensor([groups.index(group_of[s]) for s in classes], device=images.device)
        labels = torch.tensor([groups.index(c) for c in categories], device=images.device)
        return retrieval.share(retrieval.rank_own(images, torch.stack(prompts).mean(0), of_class, labels, work).hits(1))


class RetrievalSuite:
    """Retrieval in both directions on one set of pairs that are held out of the training."""

    def __init__(self, pairs: PairSet):
        self.gallery, self.skips = pairs, pairs.skips

    @property
    def metrics(self) -> Mapping[str, Metric]:
        pictures, counts = max(1, len(self.gallery)), np.array(self.gallery.caption_counts)
        texts = max(round(counts.mean() * pictures), counts.max())  # those that cannot be read are few
        metrics = {}
        for k in KS:
            # Of k texts drawn at random, at least one is among those of the picture.
            chance = float(hypergeom.sf(0, texts, counts, min(k, texts)).mean())
            metrics[f"i2t_r{k}"] = Metric(label=f"image to text R@{k}", chance=min(1.0, chance), percent=True)
            metrics[f"t2i_r{k}"] = Metric(label=f"text to image R@{k}", chance=min(1.0, k / pictures), percent=True)
        return metrics

    def measure(self, towers: Towers, work: Work = ALONE) -> dict[str, Share]:
        return retrieval.both_ways(*self.gallery.embed_all(towers, work), KS, work)


class ZeroShotSuite:
    """Accuracy of choosing each picture's class by name: top 1, top 5 where there are more, mean recall of a class.

    The text side is one row a class, the mean of its prompts' features; the picture's class is the one whose row is
    most similar. All classes compete, also those without pictures. ``source`` is as ``read_classes`` takes it.
    """

    def __init__(self, source: str, bad_share: float = 0.01):
        self.classes = read_classes(source)
        self.skips = Skips()
        self.pictures = PictureSet(self.classes.pictures, self.skips, bad_share)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        count = len(self.classes.names)
        labels = {"top1": ("top-1", 1), "top5": ("top-5", TOP_CLASSES), "class_recall": ("mean class recall", 1)}
        return {
            name: Metric(label=f"zero-shot {label}", chance=k / count, percent=True)
            for name, (label, k) in labels.items()
            if k < count
        }

    def measure(self, towers: Towers, work: Work = ALONE) -> dict[str, Share]:
        images = self.pictures.embed(towers, work)
        rows = embed_classes(towers, self.classes.prompts, work)
        labels = torch.tensor(self.classes.labels, device=images.device)[self.pictures.usable]
        ranks = retrieval.rank_own(images, rows, torch.arange(len(rows), device=rows.device), labels, work)
        first = ranks.hits(1)
        shares = {"top1": retrieval.share(first), "top5": retrieval.share(ranks.hits(TOP_CLASSES))}
        shares["class_recall"] = retrieval.mean_of_classes(first, labels)
        return {name: shares[name] for name in self.metrics}
