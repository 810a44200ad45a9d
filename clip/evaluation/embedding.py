"""Features of many pictures and texts, in fixed blocks that the ranks share: the same bits for any number of ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from steering.clip.data.images import REASONS, Skips, Undecodable
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
UNSEEN, USABLE = 0, 1  # what is known of a picture; above that the reason why it cannot be used


@dataclass(frozen=True)
class Work:
    """How an evaluation is done, which does not change what it finds.

    Args:
        shared: by all ranks, a block each in turn; all have to evaluate the same at the same time.
        block: samples encoded at a time. Another number may change the last bits of features, no other figure does.
        workers: processes that read and decode pictures ahead.
    """

    shared: bool = False
    block: int = BLOCK
    workers: int = 0

    def blocks(self, count: int, size: int | None = None) -> list[range]:
        """This rank's blocks of ``count`` things."""
        size = size or self.block
        every = [range(start, min(start + size, count)) for start in range(0, count, size)]
        return every[rank() :: world_size()] if self.shared else every

    def together(self, values: Tensor) -> Tensor:
        """What all ranks found; each one's tensor is zero where the others' blocks are."""
        if not self.shared or world_size() == 1:
            return values
        return all_reduce_sum(values.to(communication_device())).to(values.device)

    def rows(self, count: int, device: torch.device, parts: Iterator[tuple[Sequence[int], Tensor]]) -> Tensor:
        """Rows of all ranks, ``[count, width]``, from this one's, given with their places."""
        found = (
            fail_on_all_ranks(lambda: list(parts)) if self.shared else list(parts)
        )  # reading can fail on one rank alone
        width = torch.tensor(found[0][1].shape[1] if found else 0)
        if self.shared and world_size() > 1:
            width = all_reduce_max(width.to(communication_device()))
        rows = torch.zeros(count, int(width), device=device)
        for places, values in found:
            rows[list(places)] = values
        return self.together(rows)


ALONE = Work()


class Pictures(Protocol):
    """Pictures by place. Must be fit to be sent to another process."""

    def __len__(self) -> int: ...

    def load(self, place: int) -> Image.Image:
        """One picture in RGB; raises Undecodable where it, or what else is needed of the sample, cannot be read."""
        ...

    def name(self, place: int) -> str:
        """What to call it in a message."""
        ...


@dataclass
class PictureSet:
    """Pictures to be embedded by one model after the other; those that cannot be read are left out and counted.

    Args:
        source: the pictures.
        skips: counts what cannot be read.
        bad_share: largest share of them, see ``Skips.check``.
    """

    source: Pictures
    skips: Skips = field(default_factory=Skips)
    bad_share: float = 0.01

    def __post_init__(self):
        self._known = torch.zeros(len(self.source), dtype=torch.int64)
        self._kept: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}

    @property
    def usable(self) -> list[int]:
        """Places of the pictures that can be read; those that were never embedded are tried now."""
        unseen = (self._known == UNSEEN).nonzero()[:, 0].tolist()
        if unseen:
            known = torch.zeros_like(self._known)
            known[unseen] = torch.tensor([_attempt(self.source, place)[1] for place in unseen])
            self._note(known)
        return (self._known == USABLE).nonzero()[:, 0].tolist()

    @torch.no_grad()
    def embed(self, towers: Towers, work: Work = ALONE) -> Tensor:
        """Features of the usable pictures, ``[n, width]``."""
        device = next(towers.parameters()).device
        known = torch.zeros_like(self._known)

        def features() -> Iterator[tuple[list[int], Tensor]]:
            for block, images, codes in self._views(towers, work):
                known[list(block)] = codes
                places = [place for place, code in zip(block, codes.tolist(), strict=True) if code == USABLE]
                if places:
                    yield places, towers.encode_images(images.to(device))

        rows = work.rows(len(known), device, features())
        self._note(work.together(known))
        return rows[(self._known == USABLE).to(device)]

    def _views(self, towers: Towers, work: Work) -> Iterator[tuple[range, Tensor, Tensor]]:
        """Blocks with their preprocessed pictures, kept from one evaluation to the next while they are small."""
        kept = self._kept.setdefault(f"{towers.preprocessing} {work.block}", {})
        mine = work.blocks(len(self.source))
        lacking = [block for block in mine if block.start not in kept]
        fresh = _load(self.source, towers.val_transform(), lacking, work.workers)
        for block in mine:
            images, codes = kept[block.start] if block.start in kept else next(fresh)
            if len(images) and images[0].nbytes * len(self.source) <= KEPT_BYTES:
                kept[block.start] = images, codes
            yield block, images, codes

    def _note(self, known: Tensor) -> None:
        """Counts what was looked at for the first time."""
        for place in ((self._known == UNSEEN) & (known != UNSEEN)).nonzero()[:, 0].tolist():
            self.skips.seen += 1
            if known[place] != USABLE:
                self.skips.add(REASONS[int(known[place]) - USABLE - 1], self.source.name(place))
        self._known = torch.where(self._known == UNSEEN, known, self._known)
        self.skips.check(self.bad_share)
        if not (self._known != UNSEEN).all() or (self._known == USABLE).any():
            return
        raise RunError(f"nothing to evaluate on can be read: {', '.join(self.skips.examples)}")


@torch.no_grad()
def embed_texts(towers: Towers, texts: Sequence[str], work: Work = ALONE) -> Tensor:
    """Features of texts, ``[n, width]``; equal texts get equal bits, so that they tie."""
    distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    given, device = list(distinct), next(towers.parameters()).device
    blocks = work.blocks(len(given))
    parts = ((block, _encode(towers, given[block.start : block.stop])) for block in blocks)
    rows = work.rows(len(given), device, parts)
    return rows if len(given) == len(texts) else rows[[distinct[text] for text in texts]]


@torch.no_grad()
def embed_classes(towers: Towers, classes: Sequence[Sequence[str]], work: Work = ALONE) -> Tensor:
    """One row of length one for every class, the mean of its prompts' features, ``[c, width]``."""
    device = next(towers.parameters()).device
    longest = max(map(len, classes), default=1)

    def means() -> Iterator[tuple[range, Tensor]]:
        for block in work.blocks(len(classes), max(1, work.block // longest)):
            chosen = classes[block.start : block.stop]
            features = _encode(towers, [text for texts in chosen for text in texts])
            parts = features.split([len(texts) for texts in chosen])
            yield block, torch.nn.functional.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)

    return work.rows(len(classes), device, means())


def _encode(towers: Towers, texts: Sequence[str]) -> Tensor:
    return towers.encode_texts(towers.tokenize(texts).to(next(towers.parameters()).device))


def _attempt(source: Pictures, place: int) -> tuple[Image.Image | None, int]:
    """A picture and USABLE, or none and the reason."""
    try:
        return source.load(place), USABLE
    except Undecodable as error:
        return None, USABLE + 1 + REASONS.index(str(error))


class _Blocks(Dataset):
    """Preprocessed pictures of blocks, and what is known of them then."""

    def __init__(self, source: Pictures, transform: Transform, blocks: Sequence[range]):
        self.source, self.transform, self.blocks = source, transform, blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        tried = [_attempt(self.source, place) for place in self.blocks[number]]
        images = [self.transform(image) for image, _ in tried if image is not None]
        return torch.stack(images) if images else torch.zeros(0), torch.tensor([code for _, code in tried])


def _load(
    source: Pictures, transform: Transform, blocks: Sequence[range], workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks in their order, read ahead by other processes if there are any."""
    options: dict[str, Any] = {"batch_size": None, "generator": torch.Generator()}
    try:
        yield from DataLoader(_Blocks(source, transform, blocks), num_workers=min(workers, len(blocks)), **options)
    except RunError as error:  # a worker's comes wrapped in its traceback
        last = str(error).strip().splitlines()[-1]
        raise RunError(last.removeprefix(f"{RunError.__module__}.{RunError.__name__}: ")) from None
