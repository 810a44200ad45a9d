"""Pictures with a class each: folders of pictures, one a class, or shards with ``.cls`` members."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import open_clip

from steering.clip.data.images import PICTURES, Undecodable
from steering.clip.data.index import open_index
from steering.clip.data.shard_files import Files
from steering.clip.data.shards import Shards, bar
from steering.clip.data.sources import expand
from steering.errors import RunError, UserError

NAMES = "classnames.txt"
TEMPLATES = ("templates.txt", "zeroshot_classification_templates.txt")
IMAGENET = "imagenet:"
PLAIN = ("a photo of a {}.",)


class _Source(Protocol):
    """Pictures and the number of each one's class."""

    labels: list[int]

    def data(self, place: int) -> bytes: ...

    def name(self, place: int) -> str: ...


@dataclass(frozen=True)
class Classes:
    """Pictures with a class each, and how to say the classes in words.

    Attributes:
        source: the pictures.
        names: of the classes, by number.
        templates: sentences in which ``{}`` or ``{c}`` stands for a name.
    """

    source: _Source
    names: Sequence[str]
    templates: Sequence[str]

    def __len__(self) -> int:
        return len(self.source.labels)

    @property
    def labels(self) -> list[int]:
        """The number of each picture's class."""
        return self.source.labels

    @property
    def prompts(self) -> list[list[str]]:
        """Every class in every sentence."""
        return [[_fill(template, name) for template in self.templates] for name in self.names]

    def picture(self, place: int) -> bytes:
        """An undecoded picture; raises Undecodable where there is none."""
        return self.source.data(place)

    def name(self, place: int) -> str:
        """What to call a picture in a message."""
        return self.source.name(place)


def read_classes(source: str) -> Classes:
    """Finds pictures, their classes, and words for these.

    Args:
        source: a folder, or ``imagenet:`` and a folder whose classes are ImageNet's. Either it has a folder of
            pictures for every class (named as the class unless there is a ``classnames.txt``, whose lines are in
            the sorted order of the folders), or it has tars, itself or in ``test/``, with the number of the class in
            ``.cls``; then ``classnames.txt`` has a line for every number. ``templates.txt`` has a sentence a line,
            ``{}`` for the name.

    Raises:
        UserError: no such folder, nothing in it, or words that do not fit the classes.
    """
    imagenet = source.startswith(IMAGENET)
    folder = Path(source.removeprefix(IMAGENET)).expanduser()
    if not folder.is_dir():
        raise UserError(f"zeroshot takes a folder, or imagenet:FOLDER, and {str(folder)!r} is none")
    names = list(open_clip.IMAGENET_CLASSNAMES) if imagenet else _read(folder / NAMES)
    tars = sorted(folder.glob("*.tar")) or sorted(folder.glob("test/*.tar"))
    if tars:
        if not names:
            raise UserError(f"{folder} has shards but no {NAMES}: write one, the name of a class a line, 0 first")
        found: _Source = _Tars(tars, len(names))
    else:
        kinds = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        numbers = _imagenet_numbers(kinds, folder) if imagenet else range(len(kinds))
        names = names or [kind.replace("_", " ") for kind in kinds]
        if not imagenet and len(names) != len(kinds):
            raise UserError(f"{folder} has {len(kinds)} folders of pictures, but {NAMES} has {len(names)} lines")
        found = _Folders(folder, dict(zip(kinds, numbers, strict=True)))
    if not found.labels:
        raise UserError(f"{folder} has no pictures: put them in a folder for every class, or in tars with .cls members")
    return Classes(found, names, _templates(folder, imagenet))


def _templates(folder: Path, imagenet: bool) -> Sequence[str]:
    for name in TEMPLATES:
        if lines := _read(folder / name):
            for line in lines:
                if "{}" not in line and "{c}" not in line:
                    raise UserError(f"{folder / name} has a line without {{}}, where the name goes: {line!r}")
            return lines
    return [make("{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES] if imagenet else PLAIN


def _fill(template: str, name: str) -> str:
    """No str.format: a template is data, and a name may hold braces."""
    return re.sub(r"\{c?\}", lambda _: name, template)


def _read(path: Path) -> list[str]:
    """The lines of a text that are not empty; none if there is no such file."""
    if not path.is_file():
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None


def _imagenet_numbers(kinds: Sequence[str], folder: Path) -> list[int]:
    """ImageNet's numbers of folders that are named by WordNet id or by number, or that are all thousand of them."""
    from timm.data.imagenet_info import ImageNetInfo

    known = {name: number for number, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    known |= {str(number): number for number in range(len(known))}
    if len(kinds) == len(open_clip.IMAGENET_CLASSNAMES) and not all(kind in known for kind in kinds):
        return list(range(len(kinds)))
    for kind in kinds:
        if kind not in known:
            raise UserError(
                f"{folder / kind} is no class of ImageNet's: name folders by WordNet id (n01440764) or number, 0 to 999"
            )
    return [known[kind] for kind in kinds]


class _Folders:
    """A folder of pictures for every class."""

    def __init__(self, folder: Path, numbers: dict[str, int]):
        self.paths: list[Path] = []
        self.labels: list[int] = []
        for kind, number in numbers.items():
            found = (path for path in (folder / kind).rglob("*") if path.suffix[1:].lower() in PICTURES)
            files = sorted(path for path in found if path.is_file())
            self.paths += files
            self.labels += [number] * len(files)

    def data(self, place: int) -> bytes:
        try:
            return self.paths[place].read_bytes()
        except OSError as error:
            raise RunError(f"{self.paths[place]} cannot be read: {error.strerror}") from None

    def name(self, place: int) -> str:
        return str(self.paths[place])


class _Tars:
    """Shards whose samples have the number of their class in ``.cls``."""

    def __init__(self, tars: Sequence[Path], classes: int):
        named = expand([str(path) for path in tars])
        self.shards = Shards(open_index(named, fetching=Files(0), progress=bar))
        self.classes = classes
        self.labels = [self._label(number) for number in range(len(self.shards))]

    def _label(self, number: int) -> int:
        try:
            told = self.shards.read(number).get("cls", b"").strip()
        except Undecodable:
            told = b""
        if not told.isdigit() or int(told) >= self.classes:
            held = repr(told[:20].decode(errors="replace")) if told else "none"
            raise UserError(
                f"{self.shards.name(number)} has no usable .cls member, got {held}: needed is the number of one of "
                f"the {self.classes} classes, 0 to {self.classes - 1}"
            )
        return int(told)

    def data(self, place: int) -> bytes:
        return self.shards.picture(place)

    def name(self, place: int) -> str:
        return self.shards.name(place)
