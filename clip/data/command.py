"""``steer index``: the contents of shards as a table."""

import sys

from rich.console import Console
from rich.table import Table

from steering.clip.data.index import Index, open_index
from steering.clip.data.shard_files import ShardFiles
from steering.clip.data.sources import expand, split


def run(data: str, *, rebuild: bool, bad_shards: bool, cache_gb: float) -> Index:
    """Indexes shards and prints their contents; the arguments are the command's."""
    named = expand(data, missing=bad_shards)
    files = ShardFiles(cache_gb * 1e9)
    index = open_index(named, files=files, bad_shards=bad_shards, rebuild=rebuild, read_headers=True)
    console = Console(
        width=None if sys.stdout.isatty() else 10_000, markup=False, highlight=False
    )  # no broken lines in a file
    for warning in index.warnings:
        console.print(f"note: {warning}")
    for shard in index.shards:
        if shard.fault:
            console.print(f"note: {shard.url} {shard.fault}")
    console.print(table(index, split(data)))
    console.print(f"manifest: {index.manifest}")
    return index


def table(index: Index, sources: list[str]) -> Table:
    """A line for every source, and one for all of them."""
    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("source", overflow="fold")
    for head in ("shards", "new", "faulty", "pairs", "bytes"):
        drawn.add_column(head, justify="right")
    parts = [[shard for shard in index.shards if shard.part == which] for which in range(len(sources))]
    rows = [*zip(sources, parts, strict=True), *([("all", index.shards)] if len(sources) > 1 else [])]
    for name, shards in rows:
        new, faulty = sum(shard.new for shard in shards), sum(bool(shard.fault) for shard in shards)
        sums = sum(shard.count for shard in shards), sum(shard.size for shard in shards)
        drawn.add_row(name, *(f"{number:,}" for number in (len(shards), new, faulty, *sums)))
    return drawn
