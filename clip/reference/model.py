"""The reference in training: features of a batch from files where there are any, else computed online."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steering.clip.data.dataset import PairData
from steering.clip.data.manifest import Shard
from steering.clip.data.shards import Shards
from steering.clip.models import Towers
from steering.clip.reference.cache import Cache
from steering.clip.reference.ensemble import Ensemble, Views, side_by_side
from steering.clip.reference.load import load_reference
from steering.contrastive.pairs import Pairs
from steering.errors import UserError
from steering.task import Batch
from steering.training.seeds import untouched


class Reference(nn.Module):
    """A reference, or several whose similarities are averaged: sees pairs without augmentation, its own way.

    Args:
        members: the references; ``Ensemble`` says how they become one.
        pairs: where the samples of a batch are.
    """

    def __init__(self, members: Sequence["Member"], pairs: PairData):
        super().__init__()
        self.members: Any = nn.ModuleList(members)
        self.pairs = pairs
        self._views: dict[tuple[int, ...], Views] = {}  # by the members that see them

    @property
    def towers(self) -> Towers:
        """The model itself, to be evaluated; not kept where training may never need it."""
        towers = [member.load() if member.loaded is None else member.loaded for member in self.members]
        return towers[0] if len(towers) == 1 else Ensemble(towers)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Pairs:
        positions = [self.pairs.shards.locate(number) for number in batch.ids.tolist()]
        features, present = zip(*(member.look_up(positions) for member in self.members), strict=True)
        if missing := [i for i in range(len(present)) if not present[i].all()]:
            self._compute(batch, missing, features, present)
        joined = side_by_side(features)
        return Pairs(joined[:, 0], joined[:, 1], sum(member.scale for member in self.members) / len(features))

    def _compute(self, batch: Batch, members: list[int], features: Sequence[Tensor], present: Sequence[Tensor]) -> None:
        """Fills in what the files lack; a picture is decoded once for all members."""
        rows = (~torch.stack([present[i] for i in members]).all(0)).nonzero()[:, 0]
        towers = [self.members[i].towers for i in members]
        if tuple(members) not in self._views:
            self._views[tuple(members)] = Views(towers)
        views = self._views[tuple(members)]
        images, tokens = self.pairs.plain(batch.ids.cpu()[rows], views.preprocess, views.tokenize)
        for part, i in enumerate(members):
            absent = ~present[i][rows]
            fresh = encode(towers[part], views.images.of(images, part)[absent], views.tokens.of(tokens, part)[absent])
            features[i][rows[absent].to(features[i].device)] = fresh


class Member(nn.Module):
    """One reference: the features in its cache, and the model, loaded when first needed; at once without a cache.

    Args:
        ref: as ``load_reference`` takes it.
        cache: its features in files.
    """

    def __init__(self, ref: str, cache: Cache | None = None):
        super().__init__()
        self.ref, self.cache = ref, cache
        self.register_buffer("where", torch.empty(0), persistent=False)  # follows .to(device) before there are weights
        self.loaded: Any = self.load() if cache is None else None  # a wrong name is an error now

    @property
    def towers(self) -> Towers:
        """Loaded now if need be, and kept."""
        self.loaded = self.load() if self.loaded is None else self.loaded
        return self.loaded

    def load(self) -> Towers:
        """The model, on the device of this module, if it is still the one of its cache."""
        with untouched():  # open_clip draws random weights before it loads the trained ones
            towers = load_reference(self.ref)
        if self.cache is not None and not self.cache.manifest.is_of(towers):
            other = f"{self.cache.folder} holds features of another model than {self.ref} is now"
            raise UserError(f"{other}: fill another cache with steer cache, or go without")
        return towers.to(self.get_buffer("where").device)

    @property
    def scale(self) -> float:
        """Inverse temperature."""
        return float(self.towers.clip.logit_scale.exp()) if self.cache is None else self.cache.manifest.scale

    def look_up(self, positions: Sequence[tuple[Shard, int]]) -> tuple[Tensor, Tensor]:
        """Features ``[n, 2, width]`` of pictures and captions, and which are there; the others are zero."""
        count, device = len(positions), self.get_buffer("where").device
        if self.cache is None:
            width = self.towers.config["embed_dim"]
            return torch.zeros(count, 2, width, device=device), torch.zeros(count, dtype=torch.bool)
        features, present = self.cache.look_up(positions)
        return features.to(device), present


def towers_of(model: nn.Module) -> Towers:
    """What is evaluated of a target or a reference."""
    towers = model.towers if isinstance(model, Reference) else model
    assert isinstance(towers, Towers)
    return towers


def names(joined: str) -> list[str]:
    """The parts of ``A + B``."""
    parts = [part.strip() for part in joined.split(" + ")]
    if not all(parts):
        raise UserError(f"several are joined as A + B, got {joined!r}")
    return parts


def stored(caches: Sequence[Cache | None], shards: Shards, ids: Tensor) -> Tensor:
    """Which samples have features in all of the caches, ``[n]`` bool."""
    if None in caches:
        return torch.zeros(len(ids), dtype=torch.bool)
    positions = [shards.locate(number) for number in ids.tolist()]
    return torch.stack([cache.present(positions) for cache in caches if cache]).all(0)


@torch.no_grad()
def encode(towers: Towers, images: Tensor, tokens: Tensor) -> Tensor:
    """Features of pictures and captions, ``[n, 2, width]`` float32, rows of length one; in bfloat16 inside on CUDA."""
    device = next(towers.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return torch.stack([towers.encode_images(images.to(device)), towers.encode_texts(tokens.to(device))], 1)
