"""``steer data icons``: the package to shards, with what one has to know of them."""

import hashlib
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, track

from steering import atomic_files
from steering.clip.icons import package as npm
from steering.clip.icons.package import Package
from steering.clip.icons.render import Drawn, draw_all, shard
from steering.clip.icons.selection import Icon, Selection, select
from steering.errors import UserError
from steering.runs.folder import RunFolder, read_part, write_part

SETTINGS = "icons.json"
SHARD = 2000  # samples
DRAWN = ".drawn"  # folder of pictures that are not in their shards yet
LAYOUT = 1  # count up whenever the same package gives other shards
EVERY = 15.0  # seconds between lines on something that is no terminal


class Settings(BaseModel):
    """What decides the bytes of the shards."""

    package: str
    integrity: str
    renderer: str
    layout: int = LAYOUT
    seed: int
    limit: int | None
    side: int


class ShardStats(BaseModel):
    """What stands beside a finished shard; training reads the number of its samples there."""

    successes: int
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What is in the folder, once it is complete."""

    version: str
    settings: Settings
    samples: dict[str, int]
    bytes: int
    licenses: dict[str, int]
    sets: dict[str, dict[str, Any]]
    left_out: dict[str, int]
    shards: dict[str, str]


@dataclass(frozen=True)
class Pictures:
    """A file of pictures that are drawn together, and the icons in it."""

    path: Path
    icons: list[Icon]


Place = tuple[Path, int, int]  # of a picture: its file, first byte and size


def run(out: Path, package: Path | None, *, limit: int | None, seed: int, side: int, workers: int) -> None:
    """Writes the shards that are not there yet, then the manifest, the attributions and a README.

    Raises:
        UserError: the package cannot be used, ``out`` holds something else, or resvg-py is missing.
        RunError: npm or the disk failed.
    """
    if find_spec("resvg_py") is None:
        raise UserError("icons are drawn by resvg-py: pip install 'model-steering[icons]'")
    from resvg_py import __version__ as renderer

    path = npm.fetch() if package is None else package
    integrity = npm.integrity(path)
    if package is None and integrity != npm.INTEGRITY:
        raise UserError(f"{path} is not version {npm.VERSION} as npm published it: delete it, and it is fetched again")
    settings = Settings(
        package=npm.NAME, integrity=integrity, renderer=f"resvg-py {renderer}", seed=seed, limit=limit, side=side
    )
    with RunFolder.open(out, settings=SETTINGS, compare=lambda file: _compared(file, settings)):
        finished = read_part(out / "manifest.json", Manifest)
        if finished is None or any(not (out / name).exists() for name in finished.shards):
            finished = _make(out, Package(path), settings, workers)
        print(summary(finished, out))


def _compared(file: Path, settings: Settings) -> str:
    before = read_part(file, Settings)
    if before is not None and before != settings:
        old, new = before.model_dump(), settings.model_dump()
        differing = ", ".join(f"{name} {old[name]} is now {new[name]}" for name in old if old[name] != new[name])
        raise UserError(f"{file.parent} holds icons that were made otherwise ({differing}): choose another --out")
    return settings.model_dump_json(indent=1) + "\n"


def _make(out: Path, package: Package, settings: Settings, workers: int) -> Manifest:
    print(f"reading {package.path}", file=sys.stderr, flush=True)
    selection = select(package.sets(), seed=settings.seed, limit=settings.limit)
    files = [
        Pictures(out / DRAWN / f"{number:03d}.bin", selection.icons[start : start + SHARD])
        for number, start in enumerate(range(0, len(selection.icons), SHARD))
    ]
    _draw(files, settings.side, workers)
    left_out = Counter(selection.left_out)
    pictures = _distinct(files, left_out)
    splits = selection.split((icon for icon in selection.icons if (icon.set, icon.name) in pictures), left_out)
    if not splits["train"]:
        raise UserError(f"{package.path} has no icons that can be used: left out were {_listed(left_out)}")
    shards = _write_shards(out, splits, pictures)
    manifest = _manifest(package, settings, selection, splits, left_out, shards)
    atomic_files.write(out / "ATTRIBUTIONS.md", attributions(manifest))
    atomic_files.write(out / "README.md", readme(manifest))
    write_part(out / "manifest.json", manifest)
    shutil.rmtree(out / DRAWN, ignore_errors=True)
    return manifest


def _draw(files: list[Pictures], side: int, workers: int) -> None:
    """Makes all files of pictures that are not finished, ``workers`` at a time."""
    left = [file for file in files if not (file.path.exists() and file.path.with_suffix(".json").exists())]
    total = sum(len(file.icons) for file in files)
    done = first = total - sum(len(file.icons) for file in left)
    console, began, printed = Console(stderr=True), time.monotonic(), time.monotonic()
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    pool = ThreadPoolExecutor(workers)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("icons", total=total, completed=done)
        try:
            running = {pool.submit(draw_all, file.path, file.icons, side): len(file.icons) for file in left}
            while running:
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    future.result()
                    done += running.pop(future)
                bars.update(bar, completed=done)
                if not console.is_terminal and done > first and time.monotonic() - printed > EVERY:
                    printed = time.monotonic()
                    seconds = (total - done) * (printed - began) / (done - first)
                    print(f"icons: {done:,} of {total:,}, {seconds:.0f} s left", file=sys.stderr, flush=True)
        finally:
            pool.shutdown(cancel_futures=True)  # those that were begun are finished


def _distinct(files: list[Pictures], left_out: Counter[str]) -> dict[tuple[str, str], Place]:
    """Where the picture of an icon stands, by set and name, its file, first byte and size; each picture once."""
    pictures, seen = {}, set[bytes]()
    for file in files:
        drawn, content, position = read_part(file.path.with_suffix(".json"), Drawn), file.path.read_bytes(), 0
        if drawn is None or sum(drawn.sizes) != len(content) or len(drawn.sizes) != len(file.icons):
            raise UserError(f"{file.path} is damaged: delete {file.path.parent}, and it is made again")
        left_out.update(drawn.left_out.values())
        for icon, size in zip(file.icons, drawn.sizes, strict=True):
            digest = hashlib.sha256(content[position : position + size]).digest()[:16]
            if size and digest in seen:
                left_out["picture of another icon"] += 1
            elif size:
                seen.add(digest)
                pictures[icon.set, icon.name] = file.path, position, size
            position += size
    return pictures


def _write_shards(
    out: Path, splits: dict[str, list[Icon]], pictures: dict[tuple[str, str], Place]
) -> dict[Path, ShardStats]:
    """All shards, those that are there already as they are."""

    def picture(icon: Icon) -> bytes:
        path, position, size = pictures[icon.set, icon.name]
        with path.open("rb") as file:
            file.seek(position)
            return file.read(size)

    parts = {
        out / split / f"{number:03d}.tar": icons[start : start + SHARD]
        for split, icons in splits.items()
        for number, start in enumerate(range(0, len(icons), SHARD))
    }
    console, shards = Console(stderr=True), {}
    for path in track(parts, "shards", console=console, disable=not console.is_terminal):
        stats_path = path.with_name(f"{path.stem}_stats.json")
        stats = read_part(stats_path, ShardStats) if path.exists() else None
        if stats is None:
            tar = shard((icon, picture(icon)) for icon in parts[path])
            stats = ShardStats(successes=len(parts[path]), bytes=len(tar), sha256=hashlib.sha256(tar).hexdigest())
            atomic_files.write(path, tar)
            write_part(stats_path, stats)
        shards[path.relative_to(out)] = stats
    return shards


def _manifest(
    package: Package,
    settings: Settings,
    selection: Selection,
    splits: dict[str, list[Icon]],
    left_out: Counter[str],
    shards: dict[Path, ShardStats],
) -> Manifest:
    used = Counter(icon.set for icons in splits.values() for icon in icons)
    licenses = Counter(icon.license for icons in splits.values() for icon in icons)
    return Manifest(
        version=package.version,
        settings=settings,
        samples={split: len(icons) for split, icons in splits.items()},
        bytes=sum(stats.bytes for stats in shards.values()),
        licenses=dict(licenses.most_common()),
        sets={prefix: {"icons": used[prefix], **selection.sets[prefix].model_dump()} for prefix in sorted(used)},
        left_out=dict(left_out.most_common()),
        shards={path.as_posix(): stats.sha256 for path, stats in shards.items()},
    )


def summary(manifest: Manifest, out: Path) -> str:
    """What the command ends with."""
    lines = [f"{split:<18} {count:>9,} icons" for split, count in manifest.samples.items()]
    total = f"{sum(manifest.samples.values()):,} icons of {len(manifest.sets)} sets, {manifest.bytes / 1e6:,.0f} MB"
    return "\n".join([*lines, f"{total}: {out}/README.md"])


def attributions(manifest: Manifest) -> str:
    """Who drew what, and under which licence: one row a set."""
    rows = "".join(
        f"| {prefix} | {_cell(about['name'])} | {_cell(about['author']['name'])} {about['author']['url']} "
        f"| {about['license']['spdx']} {about['license']['url']} | {about['icons']:,} |\n"
        for prefix, about in manifest.sets.items()
    )
    return (
        f"# Attributions\n\nDrawings of {npm.NAME} {manifest.version}, made into pictures of "
        f"{manifest.settings.side} pixels and otherwise unchanged. Licences ask for this list to stay with them.\n\n"
        f"| set | name | author | licence | icons |\n|---|---|---|---|---:|\n{rows}"
    )


def readme(manifest: Manifest) -> str:
    """What is in the folder, in numbers."""
    samples = "".join(f"| {split} | {count:,} |\n" for split, count in manifest.samples.items())
    settings = manifest.settings
    return (
        f"# Icons with their names\n\n{npm.NAME} {manifest.version} (`{settings.integrity}`), drawn by "
        f"{settings.renderer} at {settings.side} pixels; seed {settings.seed}, limit {settings.limit or 'none'}. "
        f"Webdataset shards, {manifest.bytes:,} bytes; how they are chosen stands in docs/icons.md of model-steering, "
        f"who drew them in ATTRIBUTIONS.md, digests of all shards in manifest.json.\n\n"
        f"| part | icons |\n|---|---:|\n{samples}\n"
        f"Licences: {_listed(manifest.licenses)}.\n\nLeft out: {_listed(manifest.left_out)}.\n"
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
