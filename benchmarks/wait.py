"""The share of a training step that is spent waiting for data, over a thousand shards of tiny pictures.

    python -m benchmarks.wait --workers 1

Trains the small architecture on shards as they would come from a crawl: many, small, read in the order that is used for
data too large to permute (``--whole`` permutes all samples instead). Waiting is the wall time inside ``next(stream)``.
"""

import argparse
import io
import tarfile
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.harness import Goal, Report, median
from steering.clip import task as clip
from steering.clip.data.shards import Shards
from steering.clip.emoji_data import emoji_shard
from steering.references.store import ReferenceLosses
from steering.settings import Arm, Recipe
from steering.training.loop import Training


def write(folder: Path, shards: int, pairs: int) -> None:
    """Shards of bundled pairs, again and again."""
    source = Shards.open(emoji_shard("train", noise=0.0))
    samples = [source.read(number) for number in range(500)]
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for place in range(pairs):
                for kind, data in samples[(shard * pairs + place) % len(samples)].items():
                    member = tarfile.TarInfo(f"{place:06d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def measure(data: str, workers: int, batch: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of waiting and of the whole, of every step after the first few."""
    task = clip.Clip(data=data, model=clip.EMOJI, workers=workers)
    arm = Arm(rule="kl(temperature=0.07)", subtract=False)
    recipe = Recipe(steps=10**6, batch=batch, arms={"a": arm}, baseline="a")
    training = Training(task, arm, recipe, reference=ReferenceLosses(task), seed=0)
    inner, waits = training.stream, []

    class Watched:
        def __next__(self):
            began = time.perf_counter()
            found = next(inner)
            waits.append(time.perf_counter() - began)
            return found

    training.stream = Watched()  # type: ignore[assignment]
    whole = []
    for _ in range(steps):
        began = time.perf_counter()
        training.step()
        whole.append(time.perf_counter() - began)
    return waits[5:], whole[5:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=32, help="of a shard")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--whole", action="store_true", help="permute all samples")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.whole:
        clip.MOST_WHOLE = 0
    report = Report("wait", torch.device("cpu"))
    rows = [["workers", "waiting, ms", "step, ms", "share"]]
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), given.shards, given.pairs)
        for workers in given.workers:
            waits, steps = measure(f"{place}/*.tar", workers, given.batch, given.steps)
            share = sum(waits) / sum(steps)
            cells = f"{1000 * median(waits):.2f}", f"{1000 * median(steps):.1f}", f"{share:.2%}"
            rows.append([str(workers), *cells])
            report.goals.append(Goal(f"share of waiting, workers {workers}", share, most=0.05))
            report.figures[str(workers)] = {"waits": waits, "steps": steps}
    report.table(f"{given.shards} shards of {given.pairs} pairs, batch {given.batch}; medians, share of sums", rows)
    report.save()


if __name__ == "__main__":
    main()
