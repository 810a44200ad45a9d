"""Drawings to shards. Every shard is made by a process of its own, which may be ended: a drawing can be a trap."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from steering import atomic_files
from steering.clip.icons.selection import Icon, unsafe
from steering.errors import RunError

SECONDS = 20.0  # that one drawing may take; half a millisecond is usual,
MEMORY = 2 << 30  # and bytes
WAIT = 0.5  # seconds between looks at a process


def draw(icon: Icon, side: int) -> bytes:
    """A PNG of ``side`` by ``side`` pixels with an alpha channel, the drawing in the middle.

    Raises:
        ValueError: it cannot be drawn, or must not be.
    """
    if reason := unsafe(icon.body):
        raise ValueError(reason)
    from resvg_py import svg_to_bytes

    box = " ".join(f"{value:g}" for value in icon.box)
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'{head} width="{side}" height="{side}" viewBox="{box}">{icon.body}</svg>'
    return svg_to_bytes(svg_string=svg, skip_system_fonts=True, resources_dir=os.devnull)


def make_shard(path: Path, icons: list[Icon], side: int) -> Counter[str]:
    """Writes a shard and the ``_stats.json`` beside it; returns why icons are not in it.

    A drawing that takes more than ``SECONDS`` or ``MEMORY`` ends the process that draws it; another one goes on
    without it.

    Raises:
        RunError: the disk is full or read-only, or no process can be started.
    """
    context = multiprocessing.get_context("spawn")  # the same on every system, and without this process's threads
    refused = set[int]()
    while True:
        position: Any = context.Value("l", -1, lock=False)
        receiver, sender = context.Pipe(duplex=False)
        options = {"args": (sender, position, path, icons, side, refused), "daemon": True}
        process = context.Process(target=_work, **options)
        process.start()
        sender.close()
        try:
            answer = _answer(receiver, position, process)
        finally:
            receiver.close()
            process.join()
        if isinstance(answer, Counter):
            return answer
        if isinstance(answer, str):
            raise RunError(answer)
        if position.value < 0:
            raise RunError(f"a process that draws ended with code {process.exitcode}: is there memory left?")
        refused.add(position.value)


def _answer(receiver: Connection, position: Any, process: Any) -> Counter[str] | str | None:
    """What a process sends when it is done, None if it ended before; one that is stuck is ended."""
    last, since = -1, time.monotonic()
    while not receiver.poll(WAIT):
        if position.value != last:
            last, since = position.value, time.monotonic()
        elif last >= 0 and time.monotonic() - since > SECONDS:
            process.kill()
    try:
        return receiver.recv()
    except EOFError:
        return None


def _work(sender: Connection, position: Any, path: Path, icons: list[Icon], side: int, refused: set[int]) -> None:
    """The process of a shard. Ctrl-C is the parent's: what was begun is finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the renderer says when it ends the process
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # there is no such limit on this system
    try:
        sender.send(_write(position, path, icons, side, refused))
    except RunError as error:
        sender.send(str(error))
    except Exception as error:
        sender.send(f"cannot draw {path.name} ({type(error).__name__}: {error})")


def _write(position: Any, path: Path, icons: list[Icon], side: int, refused: set[int]) -> Counter[str]:
    left_out, pictures = Counter[str](), []
    blank = draw(Icon("", "", "", "", (0, 0, 1, 1)), side)
    for index, icon in enumerate(icons):
        if index in refused:
            left_out["drawing takes too long or too much memory"] += 1
            continue
        position.value = index
        try:
            picture = draw(icon, side)
        except ValueError:
            left_out["drawing refused by resvg"] += 1
            continue
        if picture == blank:  # an animation that begins with nothing, say
            left_out["nothing drawn"] += 1
        else:
            pictures.append((icon, picture))
    tar = _tar(pictures)
    atomic_files.write(path, tar)
    stats = {"count": len(icons), "successes": len(pictures), "left_out": dict(sorted(left_out.items()))}
    atomic_files.write_json(stats_path(path), stats | {"bytes": len(tar), "sha256": hashlib.sha256(tar).hexdigest()})
    return left_out


def stats_path(shard: Path) -> Path:
    """What tells that a shard is finished; training reads the number of its samples there."""
    return shard.with_name(f"{shard.stem}_stats.json")


def _tar(pictures: list[tuple[Icon, bytes]]) -> bytes:
    """Nothing is taken from the clock or the user, so that two runs give the same bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for icon, picture in pictures:
            about = {"set": icon.set, "license": icon.license, "style": icon.style, "concept": icon.concept}
            members = {"png": picture, "txt": icon.caption.encode(), "json": json.dumps(about).encode()}
            for kind, content in members.items():
                header = tarfile.TarInfo(f"{icon.set}/{icon.name}.{kind}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return stream.getvalue()
