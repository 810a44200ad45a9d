"""The reference in training: features of a batch from files where there are any, else computed online."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steering.clip.data.dataset import PairData
from steering.clip.data.shards import Shards
from steering.clip.models import Towers
from steering.clip.reference.cache import Cache, Shard
from steering.clip.reference.ensemble import Ensemble, Views, side_by_side
from steering.clip.reference.load import load_reference
from steering.contrastive.pairs import Pairs
from steering.errors import UserError
from steering.task import Batch
from steering.training.seeds import untouched

Places = list[tuple[Shard, int]]


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
        places = _places(self.pairs.shards, batch.ids)
        found = [member.look_up(places) for member in self.members]
        lacking = [i for i, (_, present) in enumerate(found) if not present.all()]
        if lacking:
            self._compute(batch, lacking, found)
        features = side_by_side([features for features, _ in found])
        return Pairs(features[:, 0], features[:, 1], sum(member.scale for member in self.members) / len(found))

    def _compute(self, batch: Batch, lacking: list[int], found: list[tuple[Tensor, Tensor]]) -> None:
        """Fills in what the files lack; a picture is decoded once for all members."""
        rows = (~torch.stack([found[i][1] for i in lacking]).all(0)).nonzero()[:, 0]
        towers = [self.members[i].towers for i in lacking]
        if tuple(lacking) not in self._views:
            self._views[tuple(lacking)] = Views(towers)
        views = self._views[tuple(lacking)]
        images, tokens = self.pairs.plain(batch.ids.cpu()[rows], views.preprocess, views.tokenize)
        for place, i in enumerate(lacking):
            features, present = found[i]
            mine = ~present[rows]
            fresh = encode(towers[place], views.images.of(images, place)[mine], views.tokens.of(tokens, place)[mine])
            features[rows[mine].to(features.device)] = fresh


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
        self.loaded: Any = self.load() if cache is None else None  # a wrong name is told now

    @property
    def towers(self) -> Towers:
        """Loaded now if need be, and kept."""
        if self.loaded is None:
            self.loaded = self.load()
        return self.loaded

    def load(self) -> Towers:
        """The model, on the device of this module, if it is still the one of its cache."""
        with untouched():  # open_clip draws random weights before it loads the trained ones
            towers = load_reference(self.ref)
        if self.cache is not None and not self.cache.manifest.is_of(towers):
            raise UserError(
                f"{self.cache.folder} holds features of another model than {self.ref} is now: "
                f"fill another cache with steer cache, or go without"
            )
        return towers.to(self._device)

    @property
    def scale(self) -> float:
        """Inverse temperature."""
        if self.cache is not None:
            return self.cache.manifest.scale
        return float(self.towers.clip.logit_scale.exp())

    def look_up(self, places: Places) -> tuple[Tensor, Tensor]:
        """Features ``[n, 2, width]`` of pictures and captions, and which are there; the others are zero."""
        if self.cache is None:
            features = torch.zeros(len(places), 2, self.towers.config["embed_dim"])
            return features.to(self._device), torch.zeros(len(places), dtype=torch.bool)
        features, present = self.cache.look_up(places)
        return features.to(self._device), present

    @property
    def _device(self) -> torch.device:
        return self.get_buffer("where").device


def names(joined: str) -> list[str]:
    """The parts of ``A + B``."""
    parts = [part.strip() for part in joined.split(" + ")]
    if not all(parts):
        raise UserError(f"several are joined as A + B, got {joined!r}")
    return parts


def stored(caches: Sequence[Cache | None], shards: Shards, ids: Tensor) -> Tensor:
    """Which samples have features in all of the caches, ``[n]`` bool."""
    places = _places(shards, ids)
    every = torch.ones(len(places), dtype=torch.bool)
    for cache in caches:
        every &= torch.zeros_like(every) if cache is None else cache.present(places)
    return every


@torch.no_grad()
def encode(towers: Towers, images: Tensor, tokens: Tensor) -> Tensor:
    """Features of pictures and captions, ``[n, 2, width]`` float32, rows of length one; in bfloat16 inside on CUDA."""
    device = next(towers.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return torch.stack([towers.encode_images(images.to(device)), towers.encode_texts(tokens.to(device))], 1)


def _places(shards: Shards, ids: Tensor) -> Places:
    """Shards of samples, and where they are in these."""
    return [shards.locate(number) for number in ids.tolist()]
