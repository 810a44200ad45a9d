"""Bytes that several processes exchange in one step of the contrastive loss, counted, against the official exchange.

    python -m benchmarks.ranks --ranks 4

Counted are the bytes a rank receives by ring algorithms: (K - 1) / K of the output of a gather and of the input of a
reduce-scatter, twice that of an all-reduce. The official code gathers image and text features of target and
reference, and reduces and scatters two gradients: 6 B d numbers.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from benchmarks.harness import Goal, Report
from steering import KL, DualMemory, Pairs, Steerer
from steering.atomic_files import write_json

GOAL = 0.55


def count(ranks: int) -> dict[str, int]:
    """Wraps the collectives so that what they move is added up in what is returned."""
    moved = {"bytes": 0}
    gather, reduce, scatter = dist.all_gather, dist.all_reduce, dist.reduce_scatter_tensor

    def all_gather(outputs, value, *args, **options):
        moved["bytes"] += sum(x.nbytes for x in outputs) * (ranks - 1) // ranks
        return gather(outputs, value, *args, **options)

    def all_reduce(value, *args, **options):
        moved["bytes"] += 2 * value.nbytes * (ranks - 1) // ranks
        return reduce(value, *args, **options)

    def reduce_scatter(output, value, *args, **options):
        moved["bytes"] += value.nbytes * (ranks - 1) // ranks
        return scatter(output, value, *args, **options)

    dist.all_gather, dist.all_reduce, dist.reduce_scatter_tensor = all_gather, all_reduce, reduce_scatter
    return moved


def one_rank(place: int, ranks: int, sizes: list[int], width: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=place, world_size=ranks)
    moved, rows = count(ranks), []
    for batch in sizes:
        for gamma in (1.0, 0.7):
            features = [normalize(torch.randn(batch // ranks, width), dim=-1) for _ in range(4)]
            left, right = (side.requires_grad_() for side in features[:2])
            steerer = Steerer(KL(temperature=0.01), memory=DualMemory(2 * batch, gamma=gamma))
            moved["bytes"] = 0
            ids = torch.arange(batch // ranks) + place * (batch // ranks)
            steerer(Pairs(left, right), Pairs(*features[2:]), ids=ids).loss.backward()
            official = 6 * batch * width * 4 * (ranks - 1) // ranks + 24 * batch * (ranks - 1) // ranks
            if place == 0:
                rows.append([batch, gamma, moved["bytes"], official])
    if place == 0:
        write_json(Path(folder) / "rows.json", rows)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--width", type=int, default=512)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spawn(one_rank, (given.ranks, given.sizes, given.width, folder), nprocs=given.ranks)
        rows = json.loads((Path(folder) / "rows.json").read_text())
    report = Report("ranks", torch.device("cpu"))
    head = ["batch", "gamma", "bytes, ours", "bytes, official", "share"]
    lines = [
        [f"{b}", f"{gamma:g}", f"{ours:,}", f"{official:,}", f"{ours / official:.3f}"]
        for b, gamma, ours, official in rows
    ]
    report.table(f"{given.ranks} ranks, width {given.width}, float32", [head, *lines])
    worst = max(ours / official for *_, ours, official in rows)
    report.goals.append(Goal("share of the official bytes, worst", worst, most=GOAL))
    report.figures["rows"] = rows
    report.save()


if __name__ == "__main__":
    main()
