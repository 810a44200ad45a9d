"""CLIP as a task: image-caption pairs, open_clip towers, a reference that sees every sample its own way."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import nn

from steering.clip import gallery, recipes
from steering.clip.bundled import BUNDLE
from steering.clip.bundled import shards as bundled_shard
from steering.clip.dataset import PairData
from steering.clip.evaluation import EmojiSuite, PairSet, RetrievalSuite
from steering.clip.reference import load_reference
from steering.clip.shards import Shards
from steering.clip.towers import EMOJI, Towers, build, export
from steering.errors import UserError
from steering.recipe import Metric, Recipe
from steering.task import Batch, Exhibit, Losses
from steering.training.seeds import derive, untouched
from steering.training.stream import Shuffled

__all__ = ["Clip"]

EMOJI_DATA, EMOJI_REFERENCE_DATA = "emoji", "emoji-reference"
HELD_OUT = 20  # one pair in so many is held out where no val is given,
MOST_HELD_OUT = 1000  # but no more than these
QUERIES = 12  # lines of the gallery


@dataclass(frozen=True)
class Clip:
    """Contrastive image-text training of an open_clip model, guided by another CLIP (DRRho-CLIP).

    The loss is the global contrastive loss of SogCLR and FastCLIP, per anchor over its negatives; with a
    reference's losses subtracted it is DRRho-CLIP (Wei et al. 2025, section 5). All of that is the engine's: this
    task gives features.

    Args:
        data: shards (``shards/{000..099}.tar``, a glob, several joined by ``::``), ``emoji``, the bundled pairs, or
            ``emoji-reference``, the clean part of them that the bundled reference is trained on.
        val: shards to evaluate on; without them one pair in 20, at most 1,000, is held out of the data.
        model: target, any open_clip architecture; for the bundled pairs a small one made for them, else ViT-B-32.
        ref: ``openai/ViT-B-32``, ``hf-hub:...``, ``local-dir:...``, ``ARCH=checkpoint``, or a run folder of ours. If
            not given: the bundled one for the bundled pairs, ``openai/ViT-B-32`` for your shards.
        noise: share of the bundled training captions that are wrong, 0 to 1.
        temperature: of the target, fixed; 0.07 for the bundled pairs, 0.01 (the paper's) for your shards.
        caption_field: JSON field with the caption; without it the ``.txt`` member or the field ``caption``.
        bad_share: largest share of samples that may be unreadable.
        workers: processes that load ahead.
    """

    data: str = EMOJI_DATA
    val: str | None = None
    model: str | None = None
    ref: str | None = None
    noise: float = 0.3
    temperature: float | None = None
    caption_field: str | None = None
    bad_share: float = 0.01
    workers: int = 0

    def __post_init__(self):
        if not 0 <= self.bad_share <= 1 or not 0 <= self.noise <= 1:
            raise UserError(
                f"noise and bad_share are shares within 0 and 1, got noise={self.noise:g} and "
                f"bad_share={self.bad_share:g}"
            )
        if not 0 < self._temperature < math.inf:
            raise UserError(f"the temperature is a number above 0, got {self._temperature:g}")
        if self.workers < 0:
            raise UserError(f"workers is a number of processes, 0 or more, got {self.workers}")

    @property
    def _bundled(self) -> bool:
        return self.data in (EMOJI_DATA, EMOJI_REFERENCE_DATA)

    @property
    def _temperature(self) -> float:
        if self.temperature is not None:
            return self.temperature
        return 0.07 if self._bundled else 0.01

    @property
    def size(self) -> int:
        return len(self._split[0])

    @property
    def rows(self) -> int:
        return 2 * self.size

    @property
    def recipe(self) -> Recipe:
        if self.data == EMOJI_REFERENCE_DATA:
            return recipes.emoji_reference(self._temperature)
        if self._bundled:
            return recipes.emoji(self._temperature)
        return recipes.shards(self._temperature, self.size)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return self._suite.metrics

    def seeded(self, seed: int) -> Self:
        return self  # pairs and noise are fixed; order, views and initial weights are not

    def target(self) -> Towers:
        return build(self._architecture, temperature=self._temperature)

    def reference(self) -> "Plain":
        ref = self.ref or (f"local-dir:{BUNDLE}" if self._bundled else "openai/ViT-B-32")
        pairs = self._pairs  # first: what is wrong with the data is told before anything is downloaded
        with untouched():  # open_clip draws random weights before it loads the trained ones
            return Plain(load_reference(ref), pairs).eval()

    def stream(self, batch: int, *, seed: int) -> Shuffled:
        return Shuffled(self._pairs.load, size=self.size, batch=batch, seed=seed, workers=self.workers)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        if isinstance(model, Plain):
            return Losses(model(batch))
        return Losses(model(batch["image"], batch["text"]))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self._suite.evaluate(_towers(model))

    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes open_clip's own form: ``open_clip.create_model('local-dir:FOLDER')`` and ``--ref`` load it."""
        export(_towers(model), folder)

    def skipped(self) -> dict[str, int]:
        return dict(self._pairs.skips.reasons + self._suite.skips.reasons)

    def exhibits(self, models: Mapping[str, nn.Module]) -> list[Exhibit]:
        """A text-to-image retrieval gallery: what every model finds for the same texts."""
        pairs = self._suite.gallery
        asked = gallery.pick(pairs.captions, QUERIES)
        scores = {}
        for name, model in models.items():
            images, texts = pairs.embed(_towers(model))
            scores[name] = (texts[asked] @ images.T).cpu()
        pictures = [pairs.picture(place) for place in range(len(pairs.captions))]
        png = gallery.draw([pairs.captions[i] for i in asked], asked, pictures, scores)
        text = (
            f"For {len(asked)} texts, spread evenly over the {len(pictures)} held-out pairs and not chosen otherwise, "
            f"the {gallery.SHOWN} pictures each model finds closest. A green frame marks the picture that belongs to "
            f"the text. Models are of repetition 0."
        )
        return [Exhibit("Text-to-image retrieval on held-out pairs", text, png)]

    @property
    def _architecture(self) -> str:
        return self.model or (EMOJI if self._bundled else "ViT-B-32")

    @cached_property
    def _shards(self) -> Shards:
        if self.data == EMOJI_DATA:
            return Shards.open(bundled_shard("train", noise=self.noise))
        if self.data == EMOJI_REFERENCE_DATA:
            return Shards.open(bundled_shard("reference"))
        return Shards.open(self.data, caption_field=self.caption_field)

    @cached_property
    def _split(self) -> tuple[torch.Tensor, list[int]]:
        """Numbers of the samples to train on and of those held out; a sample's side never depends on the others."""
        every = range(len(self._shards))
        if self._bundled or self.val is not None:
            return torch.tensor(every), []
        held_out = [i for i in every if derive(0, "held out", i) % HELD_OUT == 0][:MOST_HELD_OUT]
        out = set(held_out)
        train = torch.tensor([i for i in every if i not in out], dtype=torch.long)
        if not held_out or not len(train):
            raise UserError(
                f"{self.data} has {len(every)} pairs, too few to hold some out: give --set options.val=SHARDS"
            )
        return train, held_out

    @cached_property
    def _suite(self) -> EmojiSuite | RetrievalSuite:
        if self._bundled:
            return EmojiSuite()
        if self.val is not None:
            held_out = Shards.open(self.val, caption_field=self.caption_field)
            return RetrievalSuite(PairSet(held_out, bad_share=self.bad_share))
        return RetrievalSuite(PairSet(self._shards, self._split[1], bad_share=self.bad_share))

    @cached_property
    def _pairs(self) -> PairData:
        with untouched():
            looks = build(self._architecture)  # for its preprocessing and tokenizer; the weights are thrown away
        return PairData(
            self._shards,
            numbers=self._split[0],
            tokenizer=looks.tokenizer,
            preprocessing=looks.preprocessing,
            bad_share=self.bad_share,
        )


class Plain(nn.Module):
    """A reference: sees the pairs of a batch without augmentation, through its own preprocessing and tokenizer."""

    def __init__(self, towers: Towers, pairs: PairData):
        super().__init__()
        self.towers, self.pairs = towers, pairs

    def forward(self, batch: Batch):
        device = next(self.towers.parameters()).device
        images, tokens = self.pairs.plain(batch.ids.cpu(), self.towers.preprocess, self.towers.tokenize)
        return self.towers(images.to(device), tokens.to(device))


def _towers(model: nn.Module) -> Towers:
    towers = model.towers if isinstance(model, Plain) else model
    assert isinstance(towers, Towers)
    return towers
