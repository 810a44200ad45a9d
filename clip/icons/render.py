"""Drawings to pictures, in processes that may be ended since a drawing can be a trap; and pictures to shards."""

import io
import json
import multiprocessing
import os
import signal
import tarfile
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from steering import atomic_files
from steering.clip.icons.selection import Icon, unsafe
from steering.errors import RunError

SECONDS = 60.0  # that one drawing may take; half a millisecond is usual,
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


class Drawn(BaseModel):
    """What a file of pictures holds, which are one behind the other.

    Attributes:
        sizes: bytes of every icon's picture, 0 where there is none.
        left_out: why there is none, by the icon's index.
    """

    sizes: list[int]
    left_out: dict[int, str]


def draw_all(path: Path, icons: list[Icon], side: int) -> None:
    """Writes a file of pictures, and ``Drawn`` beside it, as ``.json``.

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
        process = context.Process(target=_work, args=(sender, position, path, icons, side, refused), daemon=True)
        process.start()
        sender.close()
        try:
            trouble = _answer(receiver, position, process)
        finally:
            receiver.close()
            process.join()
        if trouble == "":
            return
        if trouble:
            raise RunError(trouble)
        if position.value < 0:
            raise RunError(f"a process that draws ended with code {process.exitcode}: is there memory left?")
        refused.add(position.value)


def _answer(receiver: Connection, position: Any, process: Any) -> str | None:
    """What went wrong, nothing as a rule; None if the process ended in a drawing. One that is stuck is ended."""
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
    """The process that draws. Ctrl-C is the parent's: what was begun is finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the renderer says when it ends the process
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # there is no such limit on this system
    try:
        _write(position, path, icons, side, refused)
        sender.send("")
    except RunError as error:
        sender.send(str(error))
    except Exception as error:
        sender.send(f"cannot draw {path.name} ({type(error).__name__}: {error})")


def _write(position: Any, path: Path, icons: list[Icon], side: int, refused: set[int]) -> None:
    pictures, left_out = [], {index: "drawing takes too long or too much memory" for index in refused}
    blank = draw(Icon("", "", "", "", (0, 0, 1, 1)), side)
    for index, icon in enumerate(icons):
        picture, position.value = b"", index
        if index not in refused:
            try:
                picture = draw(icon, side)
            except ValueError:
                left_out[index] = "drawing refused by resvg"
        if picture == blank:
            picture, left_out[index] = b"", "nothing drawn"
        pictures.append(picture)
    position.value = -1  # what follows may wait for the disk
    atomic_files.write(path, b"".join(pictures))
    drawn = Drawn(sizes=[len(picture) for picture in pictures], left_out=left_out)
    atomic_files.write(path.with_suffix(".json"), drawn.model_dump_json())


def shard(samples: Iterable[tuple[Icon, bytes]]) -> bytes:
    """A webdataset tar of icons with their pictures.

    Nothing is taken from the clock or the user, so that two runs give the same bytes.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for icon, picture in samples:
            about = {"set": icon.set, "license": icon.license, "style": icon.style, "concept": icon.concept}
            members = {"png": picture, "txt": icon.caption.encode(), "json": json.dumps(about).encode()}
            for kind, content in members.items():
                header = tarfile.TarInfo(f"{icon.set}/{icon.name}.{kind}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return stream.getvalue()
