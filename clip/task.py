"""CLIP as a task: image-caption pairs, open_clip towers, a reference that sees every sample its own way."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from steering.clip import default_recipes
from steering.clip.data.dataset import PairData
from steering.clip.data.shards import Shards, require_apart
from steering.clip.data.sources import retrieval_set, split
from steering.clip.emoji_data import BUNDLE, emoji_shard
from steering.clip.evaluation import gallery
from steering.clip.evaluation.embedding import Work
from steering.clip.evaluation.suites import EmojiSuite, PairSet, RetrievalSuite, Suite, ZeroShotSuite, measure
from steering.clip.models import EMOJI, Towers, build, export
from steering.clip.presets import PRESETS
from steering.clip.reference.cache import Cache, open_caches
from steering.clip.reference.load import load
from steering.clip.reference.model import Member, Reference, names, stored, towers_of
from steering.errors import UserError
from steering.settings import Metric, Recipe
from steering.task import Batch, Exhibit, Losses
from steering.training.loader import ShuffledLoader
from steering.training.sampler import WINDOW, Permutation, Sampler, Windows
from steering.training.seeds import derive, generator, untouched

__all__ = ["Clip"]

EMOJI_DATA, EMOJI_REFERENCE_DATA = "emoji", "emoji-reference"
HELD_OUT = 20  # one pair in so many is held out where no val is given,
MOST_HELD_OUT = 1000  # but no more than these
QUERIES = 12  # lines of the gallery
ELASTIC = {"elastic": True}  # may change when a run resumes
MOST_WHOLE = 1 << 22  # samples up to which an epoch is one permutation, held in memory


@dataclass(frozen=True)
class Clip:
    """Contrastive image-text training of an open_clip model, guided by another CLIP.

    The loss, which is the engine's, is the global contrastive loss of SogCLR and FastCLIP, per anchor over its
    negatives; with a reference's losses subtracted it is DRRho-CLIP (Wei et al. 2025, section 5).

    Args:
        data: shards (``shards/{000..099}.tar``, a glob, URLs, ``pipe:...``, several joined by ``::``), ``emoji``,
            the bundled pairs, or ``emoji-reference``, the clean part of them that the bundled reference is trained on.
        weights: how often samples of the sources that ``::`` joins are seen relative to each other, ``2,1`` say.
        val: shards to evaluate on, or a folder of them as ``steer eval`` takes it; without them one pair in 20, at
            most 1,000, is held out of the data.
        zeroshot: pictures with a class each, to be classified by name as well: ``FOLDER``, or ``imagenet:FOLDER``.
        model: target, any open_clip architecture; for the bundled pairs a small one made for them, else ViT-B-32.
        init: a trained model to go on from, named like a reference, in place of ``model`` and random weights. As it
            is then, it is the reference as well, unless another is given.
        ref: ``openai/ViT-B-32``, ``hf-hub:...``, ``local-dir:...``, ``ARCH=checkpoint``, or a run folder of ours. If
            not given: the bundled one for the bundled pairs, ``openai/ViT-B-32`` for your shards. ``A + B``
            averages the similarities of several.
        cache: folder of the reference's features, filled by ``steer cache``; ``X + Y`` for several references. What
            is missing in it is computed online, and where nothing is, no weights are loaded for training.
        teacher: model that arms with ``distill`` learn from, named like a reference; the reference if not given.
        teacher_cache: folder of its features, as ``cache``.
        noise: share of the bundled training captions that are wrong, 0 to 1.
        temperature: of the target; 0.07 for the bundled pairs, 0.01 (the paper's) for your shards, and that of ``init``
            where there is one. Arms with a rule at the model's temperature begin there, or where the arm says, and
            learn it; the others keep it.
        caption_field: JSON field with the caption; without it the ``.txt`` member or the field ``caption``.
        bad_share: largest share of samples that may be unreadable.
        bad_shards: use what is whole of shards that are cut short, and go on without those that cannot be read.
        cache_gb: disk space for copies of remote shards, in 10^9 bytes.
        window: samples that are shuffled together where data are too many, or too far away, to be permuted whole.
        workers: processes that load ahead.
    """

    presets: ClassVar[Mapping[str, Any]] = PRESETS

    data: str = field(default=EMOJI_DATA, metadata=ELASTIC)
    val: str | None = None
    model: str | None = None
    ref: str | None = None
    cache: str | None = field(default=None, metadata=ELASTIC)
    noise: float = 0.3
    temperature: float | None = None
    caption_field: str | None = None
    bad_share: float = 0.01
    workers: int = field(default=0, metadata=ELASTIC)
    weights: str | None = None
    bad_shards: bool = False
    cache_gb: float = field(default=50, metadata=ELASTIC)
    window: int = WINDOW
    zeroshot: str | None = None
    init: str | None = None
    teacher: str | None = None
    teacher_cache: str | None = field(default=None, metadata=ELASTIC)
    samples: int | None = None

    def __post_init__(self):
        if not 0 <= self.bad_share <= 1 or not 0 <= self.noise <= 1:
            got = f"noise={self.noise:g} and bad_share={self.bad_share:g}"
            raise UserError(f"noise and bad_share are shares within 0 and 1, got {got}")
        if not 0 < self._temperature < math.inf:
            raise UserError(f"the temperature is a number above 0, got {self._temperature:g}")
        if self.samples is not None and self.samples < 1:
            raise UserError(f"samples is a number of training pairs, 1 or more, got {self.samples}")
        if self.workers < 0:
            raise UserError(f"workers is a number of processes, 0 or more, got {self.workers}")
        if not 0 < self.cache_gb < math.inf or self.window < 1:
            got = f"cache_gb={self.cache_gb:g} and window={self.window}"
            raise UserError(f"cache_gb and window are numbers above 0, got {got}")
        if self.init is not None and self.model is not None:
            raise UserError(f"init and model both name the target, got {self.init} and {self.model}: give one of them")
        if self.teacher is None and self.teacher_cache is not None:
            raise UserError("teacher_cache holds features of a teacher, but none is named: give teacher as well")
        _ = self._weights

    @property
    def _bundled(self) -> bool:
        return self.data in (EMOJI_DATA, EMOJI_REFERENCE_DATA)

    @property
    def _temperature(self) -> float:
        usual = 0.07 if self._bundled else 0.01
        return usual if self.temperature is None else self.temperature

    @property
    def _weights(self) -> list[float]:
        """One for every source, none if all are equal."""
        if self.weights is None:
            return []
        sources = len(split(self.data))
        try:
            weights = [float(part) for part in self.weights.split(",")]
        except ValueError:
            weights = []
        if self._bundled or len(weights) != sources or not all(0 < weight < math.inf for weight in weights):
            needed = f"weights are numbers above 0, one for each of the {sources} sources of data, as in 2,1"
            raise UserError(f"{needed}; got {self.weights}")
        return weights if len(set(weights)) > 1 else []

    @property
    def size(self) -> int:
        return len(self.shards)  # ids are the samples' numbers; those held out never occur

    @property
    def rows(self) -> int:
        return 2 * self.size

    @property
    def recipe(self) -> Recipe:
        if self._bundled:
            make = default_recipes.emoji if self.data == EMOJI_DATA else default_recipes.emoji_reference
            return make(self._temperature)
        return default_recipes.shards(self._temperature, self.size, scratch=self.init is None)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {name: metric for suite in self.suites for name, metric in suite.metrics.items()}

    def seeded(self, seed: int) -> Self:
        return self  # pairs and noise are fixed; order, views and initial weights are not

    def target(self) -> Towers:
        target = self._fresh()
        kept = self.init is not None and self.temperature is None
        return target.set_temperature(target.temperature if kept else self._temperature, learn=True)

    def _fresh(self) -> Towers:
        usual = EMOJI if self._bundled else "ViT-B-32"
        return load(self.init) if self.init is not None else build(self.model or usual)

    @property
    def refs(self) -> list[str]:
        """Names of the references whose similarities are averaged, one as a rule."""
        return names(self.ref or self.init or (f"local-dir:{BUNDLE}" if self._bundled else "openai/ViT-B-32"))

    def reference(self) -> Reference:
        pairs = self._pairs  # first: a mistake in the data is an error before anything is downloaded
        return Reference([Member(ref, cache) for ref, cache in zip(self.refs, self._caches, strict=True)], pairs).eval()

    def with_teacher(self) -> "Clip":
        if self.teacher is None:
            return self
        return replace(self, ref=self.teacher, cache=self.teacher_cache, teacher=None, teacher_cache=None)

    def stored(self, ids: torch.Tensor) -> torch.Tensor:
        """Which samples' reference features come from files, ``[n]`` bool."""
        return stored(self._caches, self.shards, ids)

    def stream(self, batch: int, *, seed: int) -> ShuffledLoader:
        load, order = self._pairs.load, self._order(batch, seed)
        return ShuffledLoader(load, order=order, batch=batch, seed=seed, workers=self.workers, with_share=True)

    def _order(self, batch: int, seed: int) -> Sampler:
        shards, name = self.shards, self.shards.fingerprint
        if len(shards) <= MOST_WHOLE and not shards.remote and not self._weights:
            return Permutation(len(shards), seed=seed, left_out=self._left_out, name=name)
        weights = [self._weights[shard.part] for shard in shards.index] if self._weights else None
        options = {"left_out": self._left_out, "weights": weights, "window": self.window, "name": name}
        return Windows([shard.count for shard in shards.index], batch=batch, seed=seed, **options)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        return Losses(model(batch))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        work = Work(shared=not isinstance(model, Reference), workers=self.workers)  # the first process asks it alone
        return {name: share.value for name, share in measure(towers_of(model), self.suites, work).items()}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes open_clip's own form: ``open_clip.create_model('local-dir:FOLDER')`` and ``--ref`` load it."""
        export(towers_of(model), folder)

    def skipped(self) -> dict[str, int]:
        return dict(sum((suite.skips.reasons for suite in self.suites), self._pairs.skips.reasons))

    def exhibits(self, models: Mapping[str, nn.Module]) -> list[Exhibit]:
        """A text-to-image retrieval gallery: the pictures every model ranks first for the same texts."""
        pairs = self._suite.gallery
        queries = gallery.pick(pairs.captions, QUERIES)
        features = {name: pairs.embed(towers_of(model)) for name, model in models.items()}
        scores = {name: (texts[queries] @ images.T).cpu() for name, (images, texts) in features.items()}
        png, failures = gallery.draw([pairs.captions[i] for i in queries], queries, pairs.picture, scores)
        text = (
            f"For {len(queries)} texts, spread evenly over the {len(pairs.captions)} held-out pairs and not chosen "
            f"otherwise, the {gallery.SHOWN} pictures each model finds closest. A green frame marks the right one. "
            f"Models are of repetition 0."
        )
        if failures:
            text += f" {len(failures)} pictures could not be drawn ({failures[0]} say)."
        return [Exhibit("Text-to-image retrieval on held-out pairs", text, png)]

    def held_out_pairs(self) -> PairSet:
        """Pairs that are never trained on, with right captions if they are the bundled ones."""
        return self._suite.gallery

    def training_pairs(self, number: int) -> PairSet:
        """So many of the training pairs, chosen at random but always the same."""
        order = torch.randperm(self.size, generator=generator(0, "training pairs")).tolist()
        left_out = set(self._left_out)
        return PairSet(self.shards, sorted(i for i in order[: number + len(left_out)] if i not in left_out)[:number])

    @cached_property
    def shards(self) -> Shards:
        if not self._bundled:
            return self._open(self.data)
        return Shards.open(
            emoji_shard("train", noise=self.noise) if self.data == EMOJI_DATA else emoji_shard("reference")
        )

    def _open(self, pattern: str) -> Shards:
        return Shards.open(pattern, self.caption_field, bad_shards=self.bad_shards, cache_gb=self.cache_gb)

    @cached_property
    def _held_out(self) -> list[int]:
        """Numbers of the samples never to train on, in rising order; a sample's side never depends on the others."""
        if self._bundled or self.val is not None:
            return []
        numbers = range(len(self.shards))
        held_out = list(islice((i for i in numbers if derive(0, "held out", i) % HELD_OUT == 0), MOST_HELD_OUT))
        if not held_out or len(held_out) == len(numbers):
            few = f"{self.data} has {len(numbers)} pairs, too few to hold some out"
            raise UserError(f"{few}: give --set options.val=SHARDS")
        return held_out

    @cached_property
    def _left_out(self) -> list[int]:
        """Numbers of the samples never to train on, in rising order: those held out, and those beyond ``samples``."""
        if self.samples is None:
            return self._held_out
        used = torch.ones(self.size, dtype=torch.bool)
        used[self._held_out] = False
        order = torch.randperm(self.size, generator=generator(0, "samples"))
        order = order[used[order]]
        if self.samples > len(order):
            raise UserError(f"{self.samples} training samples were asked for, of {len(order)} there are")
        used[order[self.samples :]] = False
        return (~used).nonzero().flatten().tolist()

    def part(self, number: int) -> "Clip":
        """The same on so many of its training samples."""
        return replace(self, samples=number)

    @cached_property
    def _suite(self) -> EmojiSuite | RetrievalSuite:
        if self._bundled:
            return EmojiSuite()
        if self.val is not None:
            pattern, lines = retrieval_set(self.val)
            return RetrievalSuite(PairSet(self._open(pattern), bad_share=self.bad_share, lines=lines))
        return RetrievalSuite(PairSet(self.shards, self._held_out, bad_share=self.bad_share))

    @cached_property
    def suites(self) -> list[Suite]:
        """All that is evaluated on; the first one decides."""
        return [self._suite, *([] if self.zeroshot is None else [ZeroShotSuite(self.zeroshot, self.bad_share)])]

    @cached_property
    def _caches(self) -> list[Cache | None]:
        """One for every reference."""
        if self.cache is None:
            return [None] * len(self.refs)
        return open_caches(names(self.cache), self.refs, self.shards.index, self.caption_field)

    @cached_property
    def _pairs(self) -> PairData:
        if not self._bundled:
            require_apart(self.shards, self._suite.gallery.shards, self._held_out if self.val is None else None)
        with untouched():
            model = self._fresh()  # for its preprocessing and tokenizer; the weights are thrown away
        options = {"left_out": self._left_out, "bad_share": self.bad_share}
        return PairData(self.shards, tokenizer=model.tokenizer, preprocessing=model.preprocessing, **options)
