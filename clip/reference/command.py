"""``steer cache``: which model, which shards, which device, and the table at the end."""

import os
import re
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from steering.clip.data.shards import Shards
from steering.clip.reference.cache import Cache, Manifest
from steering.clip.reference.fill_cache import Filled, content, drop_faulty, fill
from steering.clip.reference.load import load_reference
from steering.clip.task import Clip
from steering.errors import RunError, UserError
from steering.runs.processes import device_named, local_device, rank_and_world_size

MOST_WORKERS = 8  # where no number is given


def run(
    task: Clip, out: Path | None, *, batch: int = 256, workers: int | None = None, device: str = "auto", check: bool
) -> None:
    """Fills a cache, in ``out`` or a folder named by the model, and prints its state; the others as ``steer cache``."""
    if len(task.refs) > 1:
        raise UserError(f"a cache holds the features of one reference, got {task.ref!r}: fill one for each")
    (ref,), chosen, share = task.refs, local_device(device_named(device)), rank_and_world_size()
    shards = task.shards
    towers = load_reference(ref).to(chosen)
    manifest = Manifest.of(towers, ref=ref, caption_field=task.caption_field)
    default = Path("features") / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', towers.arch)}-{manifest.key[:8]}"
    cache = Cache.make(out or default, manifest)
    console, done = Console(soft_wrap=True, markup=False, highlight=False), Filled()
    if check:
        for fault, files in drop_faulty(cache, shards).items():
            console.print(f"{files} files were {fault}: made again")
    workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1) if workers is None else workers
    try:
        fill(cache, towers, shards, batch=batch, workers=workers, share=share, done=done)
    except KeyboardInterrupt:
        console.print(f"interrupted after {done.shards:,} shards: the same command continues")
        raise
    finally:
        if share[0] == 0:
            console.print(_table(cache, shards, done, chosen))
    if done.unread:
        error = RunError(
            f"{len(done.unread):,} shards could not be read ({min(done.unread)} say): start this again later"
        )
        error.local = True  # another process may have read its part
        raise error
    if share[0] == 0:
        console.print(f"train with it: --data {task.data!r} --ref {ref!r} --set options.cache={cache.folder}")


def _table(cache: Cache, shards: Shards, done: Filled, device: torch.device) -> Table:
    state = content(cache, shards)
    speed = f"{done.pairs / done.seconds:,.0f} on {device}" if done.seconds else "nothing was left to do"
    table = Table(show_header=False)
    table.add_row("folder", str(cache.folder))
    table.add_row("shards", f"{state.shards:,} of {len(shards.index):,}, {done.shards:,} of them made by this process")
    table.add_row("pairs", f"{state.pairs:,}")
    table.add_row("without features", f"{state.missing.total():,}")
    for reason, count in state.missing.most_common():
        table.add_row(f"  {reason}", f"{count:,}")
    table.add_row("size", f"{state.size / 1e6:,.1f} MB")
    table.add_row("pairs per second", speed)
    return table
