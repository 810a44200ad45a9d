"""``steer cache``: which model, which shards, which device, and the table at the end."""

import os
import re
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from steering.clip.data.shards import Shards
from steering.clip.reference.cache import Cache
from steering.clip.reference.fill_cache import Filled, content, drop_faulty, fill
from steering.clip.reference.load import load_reference
from steering.clip.reference.manifest import Manifest
from steering.clip.task import Clip
from steering.errors import RunError, UserError
from steering.runs.processes import local_device, rank_and_world_size
from steering.runs.run import device as find_device

MOST_WORKERS = 8  # without another word


def run(
    data: str,
    ref: str | None,
    out: Path | None,
    *,
    batch: int,
    workers: int | None,
    device: str,
    check: bool,
    caption_field: str | None,
    bad_shards: bool,
    cache_gb: float,
) -> None:
    """Fills a cache and says what is in it; the arguments are those of ``steer cache``."""
    task = Clip(data=data, ref=ref, caption_field=caption_field, bad_shards=bad_shards, cache_gb=cache_gb)
    if len(task.refs) > 1:
        raise UserError(f"a cache holds the features of one reference, got {ref!r}: fill one for each")
    chosen, share = local_device(find_device(device)), rank_and_world_size()
    shards = task._shards
    towers = load_reference(task.refs[0]).to(chosen)
    manifest = Manifest.of(towers, ref=task.refs[0], caption_field=caption_field)
    folder = out or Path("features") / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', towers.arch)}-{manifest.key[:8]}"
    cache = Cache.make(folder, manifest)
    console, done = Console(soft_wrap=True), Filled()
    if check:
        for fault, files in drop_faulty(cache, shards).items():
            console.print(f"{files} files were {fault}: made again", highlight=False)
    try:
        fill(cache, towers, shards, batch=batch, workers=_workers(workers), share=share, done=done)
    except KeyboardInterrupt:
        console.print(f"interrupted after {done.shards:,} shards: the same command continues", highlight=False)
        raise
    finally:
        if share[0] == 0:
            console.print(_table(cache, shards, done, chosen))
    if done.unread:
        error = RunError(
            f"{len(done.unread):,} shards could not be read ({min(done.unread)} say): start this again later"
        )
        error.local = True  # another process may have read its own
        raise error
    if share[0] == 0:
        told = f"train with it: --data {data!r} --ref {task.refs[0]!r} --set options.cache={folder}"
        console.print(told, markup=False, highlight=False)


def _workers(given: int | None) -> int:
    """One process for every core that may be used but one, within reason."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1) if given is None else given


def _table(cache: Cache, shards: Shards, done: Filled, device: torch.device) -> Table:
    found = content(cache, shards)
    rate = f"{done.pairs / done.seconds:,.0f} on {device}" if done.seconds else "nothing was left to do"
    reasons = [(f"  {reason}", f"{count:,}") for reason, count in found.missing.most_common()]
    table = Table(show_header=False)
    for line in [
        ("folder", str(cache.folder)),
        ("shards", f"{found.shards:,} of {len(shards.index):,}, {done.shards:,} of them made by this process"),
        ("pairs", f"{found.pairs:,}"),
        ("without features", f"{found.missing.total():,}"),
        *reasons,
        ("size", f"{found.size / 1e6:,.1f} MB"),
        ("pairs per second", rate),
    ]:
        table.add_row(*line)
    return table
