"""Features of many pictures and texts, in fixed blocks that the ranks share: the same bits for any number of ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from steering.clip.data.images import REASONS, Undecodable, decode, flatten
from steering.clip.data.shards import Shards
from steering.clip.data.skipped_samples import Skips, worker_errors, worker_options
from steering.clip.models import Towers, Transform
from steering.distributed import (
    all_reduce_max,
    all_reduce_sum,
    communication_device,
    fail_on_all_ranks,
    rank,
    world_size,
)
from steering.errors import RunError

BLOCK = 256  # samples encoded at a time
KEPT_BYTES = 64 << 20  # preprocessed pictures of a set stay in memory up to this size
UNSEEN, USABLE = 0, 1  # state of a picture; above that it is the reason why it cannot be used


@dataclass(frozen=True)
class Work:
    """How an evaluation is done, which does not change its result.

    Args:
        shared: by all ranks, a block each in turn; all have to evaluate the same at the same time.
        block: samples encoded at a time. Another number may change the last bits of features, no other figure does.
        workers: processes that read and decode pictures ahead.
    """

    shared: bool = False
    block: int = BLOCK
    workers: int = 0

    def blocks(self, count: int, size: int | None = None) -> list[range]:
        """This rank's blocks of ``count`` samples."""
        size = size or self.block
        blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
        return blocks[rank() :: world_size()] if self.shared else blocks

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The results of all ranks; each one's tensor is zero where the others' blocks are."""
        if not self.shared or world_size() == 1:
            return values
        return all_reduce_sum(values.to(communication_device())).to(values.device)

    def rows(self, count: int, device: torch.device, parts: Iterator[tuple[Sequence[int], Tensor]]) -> Tensor:
        """Rows of all ranks, ``[count, width]``, from this rank's, which come with their indices."""
        # Reading can fail on one rank alone.
        local = fail_on_all_ranks(lambda: list(parts)) if self.shared else list(parts)
        width = torch.tensor(local[0][1].shape[1] if local else 0)
        if self.shared and world_size() > 1:
            width = all_reduce_max(width.to(communication_device()))
        rows = torch.zeros(count, int(width), device=device)
        for indices, values in local:
            rows[list(indices)] = values
        return self.sum_over_ranks(rows)


ALONE = Work()


class Pictures(Protocol):
    """Pictures by index, in any process; ``name`` is what a message calls one.

    ``load`` gives one in RGB and raises Undecodable where it, or what else is needed of the sample, cannot be read.
    """

    def __len__(self) -> int: ...
    def load(self, index: int) -> Image.Image: ...
    def name(self, index: int) -> str: ...


@dataclass(frozen=True)
class PairPictures:
    """The pictures of the pairs ``ids``, on white; with ``captions``, a pair is of no use without one."""

    shards: Shards
    ids: Sequence[int]
    captions: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int) -> Image.Image:
        picture = flatten(decode(self.shards.picture(self.ids[index])))
        if self.captions:
            self.shards.caption(self.ids[index])
        return picture

    def name(self, index: int) -> str:
        return self.shards.name(self.ids[index])


@dataclass
class PictureSet:
    """Pictures to be embedded by one model after the other; those that cannot be read are left out and counted.

    No more than a share ``bad_share`` of them may be, as ``Skips.check`` says.
    """

    source: Pictures
    skips: Skips = field(default_factory=Skips)
    bad_share: float = 0.01

    def __post_init__(self):
        self._states = torch.zeros(len(self.source), dtype=torch.int64)
        self._kept: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}

    @property
    def usable(self) -> list[int]:
        """Indices of the pictures that can be read; those that were never embedded are tried now."""
        if unseen := (self._states == UNSEEN).nonzero()[:, 0].tolist():
            states = self._states.clone()
            states[unseen] = torch.tensor([_attempt(self.source, index)[1] for index in unseen])
            self._note(states)
        return (self._states == USABLE).nonzero()[:, 0].tolist()

    @torch.no_grad()
    def embed(self, towers: Towers, work: Work = ALONE) -> Tensor:
        """Features of the usable pictures, ``[n, width]``."""
        device = next(towers.parameters()).device
        states = torch.zeros_like(self._states)

        def features() -> Iterator[tuple[list[int], Tensor]]:
            for block, images, in_block in self._views(towers, work):
                states[list(block)] = in_block
                usable = [index for index, state in zip(block, in_block.tolist(), strict=True) if state == USABLE]
                if usable:
                    yield usable, towers.encode_images(images.to(device))

        rows = work.rows(len(states), device, features())
        self._note(work.sum_over_ranks(states))
        return rows[(self._states == USABLE).to(device)]

    def _views(self, towers: Towers, work: Work) -> Iterator[tuple[range, Tensor, Tensor]]:
        """Blocks with their preprocessed pictures, kept from one evaluation to the next while they are small."""
        kept = self._kept.setdefault(f"{towers.preprocessing} {work.block}", {})
        blocks = work.blocks(len(self.source))
        missing = [block for block in blocks if block.start not in kept]
        load: Any = partial(_load_block, self.source, towers.preprocess)
        options: Any = worker_options(min(work.workers, len(missing))) | {"generator": torch.Generator()}
        fresh = worker_errors(iter(DataLoader(cast(Any, missing), batch_size=None, collate_fn=load, **options)))
        for block in blocks:
            images, states = kept[block.start] if block.start in kept else next(fresh)
            if len(images) and images[0].nbytes * len(self.source) <= KEPT_BYTES:
                kept[block.start] = images, states
            yield block, images, states

    def _note(self, states: Tensor) -> None:
        """Counts the pictures that were looked at for the first time."""
        for index in ((self._states == UNSEEN) & (states != UNSEEN)).nonzero()[:, 0].tolist():
            self.skips.seen += 1
            if states[index] != USABLE:
                self.skips.add(REASONS[int(states[index]) - USABLE - 1], self.source.name(index))
        self._states = torch.where(self._states == UNSEEN, states, self._states)
        self.skips.check(self.bad_share)
        if (self._states != UNSEEN).all() and not (self._states == USABLE).any():
            raise RunError(f"nothing to evaluate on can be read: {', '.join(self.skips.examples)}")


@torch.no_grad()
def embed_texts(towers: Towers, texts: Sequence[str], work: Work = ALONE) -> Tensor:
    """Features of texts, ``[n, width]``; equal texts get equal bits, so that they tie."""
    index_of = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    distinct, device = list(index_of), next(towers.parameters()).device
    blocks = work.blocks(len(distinct))
    tokens = ((block, towers.tokenize(distinct[block.start : block.stop])) for block in blocks)
    parts = ((block, towers.encode_texts(part.to(device))) for block, part in tokens)
    rows = work.rows(len(distinct), device, parts)
    return rows if len(distinct) == len(texts) else rows[[index_of[text] for text in texts]]


@torch.no_grad()
def embed_classes(towers: Towers, classes: Sequence[Sequence[str]], work: Work = ALONE) -> Tensor:
    """One row of length one for every class, the mean of its prompts' features, ``[c, width]``."""
    rows = embed_texts(towers, [text for texts in classes for text in texts], work)
    parts = rows.split([len(texts) for texts in classes])
    return normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)


def _attempt(source: Pictures, index: int) -> tuple[Image.Image | None, int]:
    """A picture and USABLE, or none and the reason."""
    try:
        return source.load(index), USABLE
    except Undecodable as error:
        return None, USABLE + 1 + REASONS.index(str(error))


def _load_block(source: Pictures, transform: Transform, block: range) -> tuple[Tensor, Tensor]:
    """The preprocessed pictures of a block that can be read, and the states of all of them."""
    attempts = [_attempt(source, index) for index in block]
    images = [transform(image) for image, _ in attempts if image is not None]
    return torch.stack(images) if images else torch.zeros(0), torch.tensor([state for _, state in attempts])
