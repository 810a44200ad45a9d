"""Files of shards, opened by this process: local ones as they are, remote ones through a bounded disk cache."""

import errno
import hashlib
import io
import json
import os
import select
import stat
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from steering import atomic_files
from steering.clip.data.sources import printable, remote
from steering.errors import RunError

TRIES = 3
WAIT = 1.0  # seconds before the second try, twice as many before the next
ABANDONED = 86_400.0  # seconds after which a file that nobody writes any more is deleted
MOST_OPEN = 128  # local shards that a process keeps open
MOST_JSON = 64 << 20  # bytes of a file beside shards
MOST_SHARD = 100e9  # bytes of a remote shard, if the cache is not larger
PATIENCE = 10.0  # seconds until a process that waits for another one says so,
STALLED = 3_600.0  # and those without any progress of the other one after which it gives up
CURL = "curl --connect-timeout 30 --retry 30 --retry-delay 2 --speed-limit 1 --speed-time 120 -f -s -L -g"


def cache_folder() -> Path:
    """``$STEERING_CACHE``, else a folder ``model-steering`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.expanduser(os.environ.get("STEERING_CACHE") or os.path.join(home, "model-steering"))
    if folder.startswith("~"):
        raise RunError(f"there is no home folder to keep {folder} in. Set STEERING_CACHE to a folder to use instead")
    return Path(folder)


def open_file(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """A descriptor of an ordinary file; raises OSError, also for a pipe or a device, which may have no end."""
    file = os.open(path, flags | os.O_NONBLOCK, 0o644)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise OSError(errno.EINVAL, "it is no ordinary file", str(path))


@contextmanager
def opened(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> Iterator[int]:
    """The same for as long as a ``with`` block lasts."""
    file = open_file(path, flags)
    try:
        yield file
    finally:
        os.close(file)


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of an ordinary file of at most so many bytes; raises OSError."""
    with opened(path) as file:
        size = os.fstat(file).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
        return os.read(file, size)


def read_json(path: str) -> Any:
    """A JSON file beside shards, None if there is none that can be read; asked for once where it is remote."""
    try:
        if remote(path):
            stream = io.BytesIO()
            copy(path, stream, MOST_JSON)
            return json.loads(stream.getvalue())
        return atomic_files.read_json(Path(path), MOST_JSON)
    except (OSError, ValueError, RecursionError):
        return None


@contextmanager
def locked(path: Path, work: str) -> Iterator[None]:
    """Holds a lock; who has to wait for another process says for what, and gives up if that one stands still.

    Raises:
        RunError: nothing was written beside the lock for an hour.
    """
    lock, waited = FileLock(path), False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            others = [entry for entry in path.parent.iterdir() if not entry.name.endswith("lock")]
            newest = max((entry.stat().st_mtime for entry in others if entry.exists()), default=0.0)
            if waited and time.time() - newest > STALLED:
                raise RunError(f"another process holds {path} and does nothing: end it, then start again") from None
            if not waited:
                print(f"waiting for another process to {work} ({path})", file=sys.stderr, flush=True)
            waited = True
    try:
        yield
    finally:
        lock.release()


class DownloadCache:
    """Copies of remote shards in one folder of this machine, the longest unused deleted first.

    All processes of a machine share the folder; a shard is fetched by one of them while the others wait.

    Args:
        most_bytes: that the copies may take; the one that was fetched last stays even if it is larger.
        folder: where they are, ``shards`` in the cache folder if not given.
    """

    def __init__(self, most_bytes: float, folder: Path | None = None):
        self.most_bytes = most_bytes
        self.folder = folder or cache_folder() / "shards"
        self._touched: dict[str, float] = {}

    def open(self, url: str) -> int:
        """A descriptor of the copy, fetched if need be; to be closed by the caller.

        Raises:
            OSError: it could not be fetched.
        """
        path = self._path(url)
        for _ in range(TRIES):  # another process may delete it between fetching and opening
            try:
                file = open_file(path)
            except FileNotFoundError:
                self._fetch(url, path)
                continue
            now = time.monotonic()
            if now - self._touched.get(path.name, -60) >= 60:  # marked as used, not more than once a minute
                self._touched[path.name] = now
                os.utime(file)
            return file
        raise OSError(f"the cache of {self.most_bytes / 1e9:g} GB is too small for the shards that are read at a time")

    def _path(self, url: str) -> Path:
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.tar"

    def _fetch(self, url: str, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        failed, began = path.with_suffix(".failed"), time.time()
        with locked(path.with_suffix(".lock"), "fetch a shard"):
            if path.exists():
                return
            if failed.exists() and failed.stat().st_mtime >= began:  # somebody tried while this process waited
                raise OSError(failed.read_text())
            failed.unlink(missing_ok=True)
            try:
                _download(url, path, max(self.most_bytes, MOST_SHARD))
            except OSError as error:
                failed.write_text(f"could not be fetched in {TRIES} tries: {error}")
                raise OSError(failed.read_text()) from None
        self._make_room(path)

    def _make_room(self, latest: Path) -> None:
        with locked(self.folder / "room.lock", "make room"):
            copies = [(path, path.stat()) for path in self.folder.glob("*.tar")]
            copies.sort(key=lambda copy: copy[1].st_mtime)
            total = sum(status.st_size for _, status in copies)
            for path, status in copies:
                if total > self.most_bytes and path != latest:
                    path.unlink(missing_ok=True)
                    total -= status.st_size
            for rest in self.folder.glob(".*.tar.*"):  # of a process that was killed while it fetched
                with suppress(FileNotFoundError):  # of one that has just finished
                    if time.time() - rest.stat().st_mtime > ABANDONED:
                        rest.unlink()


def _download(url: str, path: Path, most: float) -> None:
    """Copies a URL to a path, whole or not at all, in several tries if need be."""
    for attempt in range(TRIES):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                copy(url, file, most)
                if not file.tell():
                    raise OSError("nothing came")
            os.replace(name, path)
            return
        except OSError:
            if attempt == TRIES - 1:
                raise
            time.sleep(WAIT * 2**attempt)
        finally:
            Path(name).unlink(missing_ok=True)


def copy(url: str, file: BinaryIO | io.BufferedWriter, most: float = float("inf")) -> None:
    """Writes what a URL or pipe gives to an open file.

    Raises:
        OSError: what fetches it is missing or fails, which may be noticed only at the end, gives more than so many
            bytes, or nothing for an hour.
    """
    try:
        for block in _hub(url) if url.startswith("hf://") else _output(_command(url)):
            file.write(block)
            if file.tell() > most:
                raise OSError(f"it has more than {most:,} bytes")
    except Exception as error:  # libraries raise what they like, in many lines
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise OSError(printable(why)) from None


def _command(url: str) -> str | list[str]:
    """What fetches a URL: a line for the shell, or a program and its arguments."""
    if url.startswith("pipe:"):
        return url.removeprefix("pipe:")
    programs = {"s3": ["aws", "s3", "cp", url, "-"], "gs": ["gsutil", "cat", url]}
    return programs.get(url.partition("://")[0], [*CURL.split(), url])


def _output(command: str | list[str]) -> Iterator[bytes]:
    """What a program writes; its name is not in any message, since a password may stand beside it."""
    try:
        process = Popen(command, shell=isinstance(command, str), stdin=DEVNULL, stdout=PIPE)
    except FileNotFoundError:
        raise OSError(f"the program {command[0]} is not installed") from None
    with process:
        assert process.stdout is not None
        try:
            while select.select([process.stdout], [], [], STALLED)[0]:
                block = os.read(process.stdout.fileno(), 1 << 20)
                if not block:
                    break
                yield block
            else:
                raise OSError(f"nothing came for {STALLED:g} seconds")
        except BaseException:
            process.kill()
            raise
    if process.returncode not in (0, 141):  # 141: of a pipeline, all was read that was asked for
        raise OSError(f"exit code {process.returncode}")


def _hub(url: str) -> Iterator[bytes]:
    from huggingface_hub import HfFileSystem

    stream: Any
    with HfFileSystem().open(url, "rb", block_size=0) as stream:
        yield from iter(partial(stream.read, 1 << 20), b"")


class ShardFiles:
    """Opens shards, for as long as a ``with`` block lasts.

    Args:
        most_bytes: of the copies of remote shards.
        most: local shards that stay open; the longest unused are closed.
    """

    def __init__(self, most_bytes: float = 50e9, most: int = MOST_OPEN):
        self.fetched = DownloadCache(most_bytes)
        self.most = most
        self.files: OrderedDict[str, int] = OrderedDict()

    def open(self, url: str) -> AbstractContextManager[int]:
        """A descriptor of a shard, for one thread; raises OSError."""
        if remote(url):
            return self.once(url)
        if url not in self.files:
            self.files[url] = open_file(url)
            if len(self.files) > self.most:
                os.close(self.files.popitem(last=False)[1])
        self.files.move_to_end(url)
        return nullcontext(self.files[url])

    @contextmanager
    def once(self, url: str) -> Iterator[int]:
        """The same, for any thread, of a shard that is not opened often."""
        file = self.fetched.open(url) if remote(url) else open_file(url)
        try:
            yield file
        finally:
            os.close(file)

    def __getstate__(self) -> dict:
        return {"fetched": self.fetched, "most": self.most, "files": OrderedDict()}  # another process opens its own

    def __del__(self, close: Callable[[int], None] = os.close):
        for file in self.files.values():
            close(file)
