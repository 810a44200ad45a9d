"""Pictures with a class each: folders of pictures, one a class, or shards with ``.cls`` members."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
from PIL import Image

from steering.clip.data.images import PICTURES, Undecodable, decode, flatten
from steering.clip.data.index import open_index
from steering.clip.data.shard_files import ShardFiles
from steering.clip.data.shards import Shards
from steering.clip.data.sources import expand
from steering.clip.evaluation.embedding import PairPictures, Pictures
from steering.errors import RunError, UserError

NAMES = "classnames.txt"
TEMPLATES = ("templates.txt", "zeroshot_classification_templates.txt")
IMAGENET = "imagenet:"
PLAIN = ("a photo of a {}.",)


@dataclass(frozen=True)
class Classes:
    """Pictures, the number of each one's class, the names of the classes by number, and sentences for these.

    In ``templates``, ``{}`` or ``{c}`` stands for a name.
    """

    pictures: Pictures
    labels: Sequence[int]
    names: Sequence[str]
    templates: Sequence[str]

    @property
    def prompts(self) -> list[list[str]]:
        """Every class in every sentence."""
        # Not by str.format: a template is data, and a name may hold braces.
        return [[re.sub(r"\{c?\}", lambda _, n=name: n, t) for t in self.templates] for name in self.names]


def read_classes(source: str) -> Classes:
    """Finds pictures, their classes, and names and sentences for these.

    Args:
        source: a folder, or ``imagenet:`` and a folder whose classes are ImageNet's. Either it has a folder of
            pictures for every class (named as the class unless there is a ``classnames.txt``, whose lines are in
            the sorted order of the folders), or it has tars, itself or in ``test/``, with the number of the class in
            ``.cls``; then ``classnames.txt`` has a line for every number. ``templates.txt`` has a sentence a line,
            ``{}`` for the name.

    Raises:
        UserError: no such folder, nothing in it, or names that do not fit the classes.
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
        shards = Shards(open_index(expand([str(path) for path in tars]), files=ShardFiles(0)))
        pictures: Pictures = PairPictures(shards, range(len(shards)), captions=False)
        labels = [_label(shards, number, len(names)) for number in range(len(shards))]
    else:
        kinds = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        numbers = _imagenet_numbers(kinds, folder) if imagenet else range(len(kinds))
        names = names or [kind.replace("_", " ") for kind in kinds]
        if not imagenet and len(names) != len(kinds):
            raise UserError(f"{folder} has {len(kinds)} folders of pictures, but {NAMES} has {len(names)} lines")
        pictures, labels = _Files([]), []
        for kind, number in zip(kinds, numbers, strict=True):
            files = (path for path in (folder / kind).rglob("*") if path.suffix[1:].lower() in PICTURES)
            pictures.paths.extend(sorted(path for path in files if path.is_file()))
            labels += [number] * (len(pictures) - len(labels))
    if not labels:
        raise UserError(f"{folder} has no pictures: put them in a folder for every class, or in tars with .cls members")
    return Classes(pictures, labels, names, _templates(folder, imagenet))


def _templates(folder: Path, imagenet: bool) -> Sequence[str]:
    for name in TEMPLATES:
        if lines := _read(folder / name):
            for line in lines:
                if "{}" not in line and "{c}" not in line:
                    raise UserError(f"{folder / name} has a line without {{}}, where the name goes: {line!r}")
            return lines
    return [make("{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES] if imagenet else PLAIN


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

    numbers = {name: number for number, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    numbers |= {str(number): number for number in range(len(numbers))}
    if len(kinds) == len(open_clip.IMAGENET_CLASSNAMES) and not all(kind in numbers for kind in kinds):
        return list(range(len(kinds)))
    if unknown := next((kind for kind in kinds if kind not in numbers), None):
        raise UserError(
            f"{folder / unknown} is no class of ImageNet's: name folders by WordNet id (n01440764) or number, 0 to 999"
        )
    return [numbers[kind] for kind in kinds]


@dataclass(frozen=True)
class _Files:
    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        try:
            return flatten(decode(self.paths[index].read_bytes()))
        except OSError as error:
            raise RunError(f"{self.paths[index]} cannot be read: {error.strerror}") from None

    def name(self, index: int) -> str:
        return str(self.paths[index])


def _label(shards: Shards, number: int, classes: int) -> int:
    try:
        content = shards.read(number).get("cls", b"").strip()
    except Undecodable:
        content = b""
    if not content.isdigit() or int(content) >= classes:
        got = repr(content[:20].decode(errors="replace")) if content else "none"
        raise UserError(
            f"{shards.name(number)} has no usable .cls member, got {got}: needed is the number of one of "
            f"the {classes} classes, 0 to {classes - 1}"
        )
    return int(content)
