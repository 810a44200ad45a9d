"""Training batches of image-caption pairs, looked up by id."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

SMALL = 64  # pixels: pictures whose sides are at most this are kept in memory,
MOST_KEPT = 256 << 20  # in bytes, by each process that loads; what comes later is decoded every time
MOST_TOKENS = 64 << 20  # in bytes, by each process: tokens are kept if those of all samples fit
TRIES = 100  # substitutes looked at for one sample

Tokenizer = Callable[[list[str]], Tensor]


class PairData:
    """Pairs to train on, by id: the places 0 to n - 1 of ``numbers``.

    A sample that cannot be used is replaced by another one of the training set, drawn at random among those not
    in the batch: batches keep their size on every rank, no pair is its own negative, and every good sample is
    as likely to stand in. ``Batch.ids`` holds the ids of the samples that are really there. Which one stands in
    depends on the generator alone, not on the process that loads. (A rank does not know the samples of the
    others: a substitute is in another rank's part of the batch with probability batch / n, as a duplicate.)

    Args:
        shards: where the samples are.
        tokenizer: texts to ``[n, context]`` int64, of the target.
        preprocessing: of the target: size, mean, standard deviation.
        numbers: ``[n]`` int64, the samples of the shards to train on; all if not given.
        augment: ``small`` for fast views of small pictures, ``pictures`` for open_clip's. By default by the size
            that the target sees.
        facts: fields of the JSON member to tell with every sample, numbers or booleans; a field that the first
            sample does not have is left out.
        bad_share: share of the samples that may be unusable.
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
            raise UserError(f"augment is small (for square views) or pictures, got {augment} for {width} x {height}")
        self.shards, self.tokenizer, self.preprocessing = shards, tokenizer, preprocessing
        self.numbers = torch.arange(len(shards)) if numbers is None else numbers
        self.bad_share = bad_share
        self._transform = picture_transform(preprocessing) if augment == "pictures" else None
        self._pictures = _Pictures(len(self))
        self._known = _Known(len(self))
        self._counts = _Counts()
        self._facts = [name for name in facts if name in self._first_info()]

    def __len__(self) -> int:
        return len(self.numbers)
