"""Samples a second of the data path, against bare webdataset on the same shards with the same views."""

import io
import itertools
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import webdataset
from PIL import Image
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Goal, Report, Work
from steering.clip.data.augmentation import canvas, picture_transform, small_views
from steering.clip.data.images import flatten
from steering.clip.emoji_data import emoji_shard
from steering.clip.models import EMOJI, Towers, build
from steering.clip.task import Clip

# Side of the pictures in pixels: architecture, shards, pictures in each, batch.
KINDS = {32: (EMOJI, 4, 1000, 100), 224: ("ViT-B-32", 4, 250, 50)}


def write_shards(folder: Path, side: int) -> str:
    """Shards of JPEGs with smooth contents, as photographs have, and short captions; returns their pattern."""
    _, shards, pictures, _ = KINDS[side]
    chance = torch.Generator().manual_seed(side)
    for shard in range(shards):
        with tarfile.open(folder / f"{side}-{shard}.tar", "w") as tar:
            for number in range(pictures):
                coarse = torch.randint(256, (8, 8, 3), generator=chance, dtype=torch.uint8).numpy()
                picture = io.BytesIO()
                Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(picture, "JPEG", quality=90)
                key = f"{shard:02}{number:06}"
                for kind, data in (("jpg", picture.getvalue()), ("txt", f"a picture of number {number}".encode())):
                    member = tarfile.TarInfo(f"{key}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return str(folder / f"{side}-{{0..{shards - 1}}}.tar")


def actual(pattern: str, side: int, workers: int) -> Work:
    """One epoch of a task's stream; later calls go on with the next epoch."""
    architecture, _, _, batch = KINDS[side]
    task = Clip(data=pattern, val=str(emoji_shard("held_out_google")), model=architecture, workers=workers)
    stream = iter(task.stream(batch, seed=0))
    return lambda: _run(itertools.islice(stream, task.size // batch), lambda entry: len(entry["image"]))


def bare(pattern: str, side: int, workers: int, looks: Towers) -> Work:
    """One epoch of webdataset, shuffled in a buffer, with views and tokens as ours; later calls go on."""
    _, shards, pictures, batch = KINDS[side]
    size = shards * pictures
    views = _Views(looks, side)
    pipeline: Any = webdataset.WebDataset(pattern, shardshuffle=shards, seed=0)  # type: ignore[attr-defined]
    pipeline = pipeline.shuffle(1000).decode("pil").to_tuple("jpg", "txt").map_tuple(views.one, str)
    pipeline = pipeline.batched(batch, collation_fn=views.many).repeat()
    stream = iter(torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=workers))
    return lambda: _run(itertools.islice(stream, size // batch), lambda entry: len(entry[0]))


class _Views:
    """The views that our stream makes: small pictures all at once, others one at a time by open_clip's transform."""

    def __init__(self, looks: Towers, side: int):
        self.preprocessing, self.tokenizer, self.small = looks.preprocessing, looks.tokenizer, side <= 64
        self.transform = None if self.small else picture_transform(looks.preprocessing)
        self.chance = torch.Generator().manual_seed(0)

    def one(self, picture: Image.Image) -> Tensor:
        return canvas(picture, self.preprocessing) if self.transform is None else self.transform(flatten(picture))

    def many(self, samples: list[tuple[Tensor, str]]) -> tuple[Tensor, Tensor]:
        pictures, captions = zip(*samples, strict=True)
        images = torch.stack(pictures)
        if self.small:
            looks = self.preprocessing
            images = small_views(images, self.chance, looks.input_size[1], looks.mean, looks.std)
        return images, self.tokenizer(list(captions))


def _run(batches: Iterator, count: Callable[[Any], int]) -> int:
    return sum(count(batch) for batch in batches)


def main() -> None:
    parser = harness.arguments("data", __doc__, rounds=5)
    parser.add_argument("--sides", type=int, nargs="+", choices=KINDS, default=[*KINDS], help="of the pictures")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="processes that load")
    options = parser.parse_args()
    device = harness.prepare_process(options)
    report = Report("data", device)
    report.notes = [
        "Epochs after the first; by the clock where another process loads, else in processor time. From the second "
        "epoch on our stream has pictures of at most 64 pixels, and all tokens, in memory; webdataset has neither. A "
        "process that loads has two batches ready when a timing begins, whosever it is."
    ]
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sides:
            _measure(report, write_shards(Path(folder), side), side, options)
    report.save(options.out)


def _measure(report: Report, pattern: str, side: int, options) -> None:
    architecture, shards, pictures, _ = KINDS[side]
    looks, samples = build(architecture), shards * pictures
    rows = [["workers", "ours, samples/s", "webdataset, samples/s", "ours / webdataset"]]
    for workers in options.workers:
        works = {"ours": actual(pattern, side, workers), "bare": bare(pattern, side, workers, looks)}
        assert works["ours"]() == works["bare"]() == samples, "an epoch of each has all samples"
        spent = harness.race(works, options.rounds, torch.device("cpu"))
        seconds = {name: [entry.wall if workers else entry.cpu for entry in times] for name, times in spent.items()}
        rounds = sorted(b / a for a, b in zip(seconds["ours"], seconds["bare"], strict=True))
        ratio = harness.Ratio(harness.median(rounds), rounds[0], rounds[-1])
        speeds = [f"{samples / harness.median(seconds[name]):.0f}" for name in works]
        rows.append([str(workers), *speeds, str(ratio)])
        report.figures[f"{side} pixels, {workers} workers"] = spent
        report.goals.append(Goal(f"ours / webdataset, {side} pixels, workers {workers}", ratio.median, least=1))
    report.table(f"pictures of {side} pixels, {samples} samples", rows)


if __name__ == "__main__":
    harness.run(main)
