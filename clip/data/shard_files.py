"""Files of shards, opened by this process: local ones as they are, remote ones through a bounded disk cache."""

import hashlib
import os
import shlex
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock

from steering.clip.data.sources import remote
from steering.errors import RunError

TRIES = 3
WAIT = 1.0  # seconds before the second try, twice as many before the next
ABANDONED = 86_400.0  # seconds after which a file that nobody writes any more is deleted
MOST_OPEN = 128  # local shards that a process keeps open


def cache_folder() -> Path:
    """``$STEERING_CACHE``, else a folder ``model-steering`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    folder = os.environ.get("STEERING_CACHE")
    if not folder:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(home, "model-steering")
    folder = os.path.expanduser(folder)
    if folder.startswith("~"):
        raise RunError(f"there is no home folder to keep {folder} in. Set STEERING_CACHE to a folder to use instead")
    return Path(folder)


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
                file = os.open(path, os.O_RDONLY)
                self._touch(path.name, file)
                return file
            except FileNotFoundError:
                self._fetch(url, path)
        raise OSError(f"the cache of {self.most_bytes / 1e9:g} GB is too small for the shards that are read at a time")

    def _path(self, url: str) -> Path:
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.tar"

    def _touch(self, name: str, file: int) -> None:
        """Marks a copy as used, not more than once a minute."""
        now = time.monotonic()
        if now - self._touched.get(name, -60) >= 60:
            self._touched[name] = now
            os.utime(file)

    def _fetch(self, url: str, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        failed, began = path.with_suffix(".failed"), time.time()
        with FileLock(path.with_suffix(".lock")):
            if path.exists():
                return
            if failed.exists() and failed.stat().st_mtime >= began:  # somebody tried while this process waited
                raise OSError(failed.read_text())
            failed.unlink(missing_ok=True)
            if why := _try(url, path):
                failed.write_text(why)
                raise OSError(why)
        self._make_room(path)

    def _make_room(self, latest: Path) -> None:
        with FileLock(self.folder / "room.lock"):
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


def _try(url: str, path: Path) -> str:
    """Fetches a URL, several times if need be; what went wrong the last time, nothing if it is there."""
    why = ""
    for attempt in range(TRIES):
        try:
            _download(url, path)
            return ""
        except OSError as error:
            why = f"could not be fetched in {TRIES} tries: {error}"
        if attempt < TRIES - 1:
            time.sleep(WAIT * 2**attempt)
    return why


def _download(url: str, path: Path) -> None:
    """Copies a URL to a path, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            copy(url, file)
            if not file.tell():
                raise OSError("nothing came")
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def copy(url: str, file) -> None:
    """Writes what a URL or pipe gives to an open file.

    Raises:
        OSError: the program that fetches it is missing or fails, which may be noticed only at the end.
    """
    from webdataset.gopen import gopen

    if url.startswith("s3://"):  # webdataset leaves these to the user
        url = f"pipe:aws s3 cp {shlex.quote(url)} -"
    try:
        stream = gopen(url)
        try:
            shutil.copyfileobj(stream, file, 1 << 20)
        finally:
            stream.close()
    except OSError as error:
        if "exit" in str(error):  # it names the whole command, which may hold a password
            raise OSError(f"exit code {str(error).partition('exit ')[2].split()[0]}") from None
        raise
    except (ValueError, ImportError) as error:  # a scheme that webdataset does not know, or a library it lacks
        raise OSError(str(error).partition("\n")[0]) from None


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
            self.files[url] = os.open(url, os.O_RDONLY)
            if len(self.files) > self.most:
                os.close(self.files.popitem(last=False)[1])
        self.files.move_to_end(url)
        return nullcontext(self.files[url])

    @contextmanager
    def once(self, url: str) -> Iterator[int]:
        """The same, for any thread, of a shard that is not opened often."""
        file = self.fetched.open(url) if remote(url) else os.open(url, os.O_RDONLY)
        try:
            yield file
        finally:
            os.close(file)

    def __getstate__(self) -> dict:
        return {"fetched": self.fetched, "most": self.most, "files": OrderedDict()}  # another process opens its own

    def __del__(self, close: Callable[[int], None] = os.close):
        for file in self.files.values():
            close(file)
