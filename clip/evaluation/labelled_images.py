"""Pictures with a class each: folders of pictures, one a class, or shards with ``.cls`` members."""

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from steering.clip.data.images import NO_FILE, PICTURES, Undecodable, decode, flatten
from steering.clip.data.index import open_index
from steering.clip.data.shard_files import ShardFiles, read_file
from steering.clip.data.shards import MOST_BYTES, MOST_TEXT, Shards
from steering.clip.data.sources import expand, natural, several
from steering.clip.evaluation.embedding import PairPictures, Pictures
from steering.clip.models import one_line
from steering.errors import UserError

NAMES = "classnames.txt"
TEMPLATES = ("templates.txt", "zeroshot_classification_templates.txt")
IMAGENET = "imagenet:"
PLAIN = ("a photo of a {}.",)
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval", "trainval"}


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
            the order of the folders, 2 before 10), or it has tars, itself or in ``test/``, with the number of the class
            in ``.cls``; then ``classnames.txt`` has a line for every number. ``templates.txt`` has a sentence a line,
            ``{}`` for the name.

    Raises:
        UserError: no such folder, nothing in it, or names that do not fit the classes.
    """
    imagenet = source.startswith(IMAGENET)
    folder = Path(os.path.expanduser(source.removeprefix(IMAGENET)))
    if not os.path.isdir(folder):
        raise UserError(f"zeroshot takes a folder, or imagenet:FOLDER, and {one_line(folder)!r} is none")
    names = list(open_clip.IMAGENET_CLASSNAMES) if imagenet else _read(folder / NAMES)
    tars = sorted(folder.glob("*.tar")) or sorted(folder.glob("test/*.tar"))
    if tars:
        if not names:
            raise UserError(f"{folder} has shards but no {NAMES}: write one, the name of a class a line, 0 first")
        shards = Shards(open_index(expand([str(path) for path in tars]), files=ShardFiles(0)))
        pictures: Pictures = PairPictures(shards, range(len(shards)), captions=False)
        labels = [_label(shards, number, len(names)) for number in range(len(shards))]
        if imagenet:
            _check_ids(shards, labels)
    else:
        kinds = _kinds(folder)
        numbers = _imagenet_numbers(kinds, folder) if imagenet else range(len(kinds))
        if names and not imagenet and kinds != sorted(kinds) and not all(map(str.isdecimal, kinds)):
            raise UserError(
                f"{NAMES} in {folder} may be in the order of {several(kinds, 3)} or of {several(sorted(kinds), 3)}: "
                "write the numbers with zeros in front, or name the folders as the classes and delete it"
            )
        names = names or [kind.replace("_", " ") for kind in kinds]
        if not imagenet and len(names) != len(kinds):
            raise UserError(f"{folder} has {len(kinds)} folders of pictures, but {NAMES} has {len(names)} lines")
        pictures, labels = _Files([]), []
        for kind, number in zip(kinds, numbers, strict=True):
            files = (path for path in (folder / kind).rglob("*") if path.suffix[1:].lower() in PICTURES)
            pictures.paths.extend(sorted(path for path in files if path.is_file() and not _of_system(path)))
            labels += [number] * (len(pictures) - len(labels))
    if not labels:
        raise UserError(f"{folder} has no pictures: put them in a folder for every class, or in tars with .cls members")
    return Classes(pictures, labels, names, _templates(folder, imagenet))


def _templates(folder: Path, imagenet: bool) -> Sequence[str]:
    for name in TEMPLATES:
        if lines := _read(folder / name):
            for line in lines:
                if "{}" not in line and "{c}" not in line:
                    raise UserError(
                        f"{folder / name} has a line without {{}}, where the name goes: {one_line(line, 80)!r}"
                    )
            return lines
    return [make("{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES] if imagenet else PLAIN


def _read(path: Path) -> list[str]:
    """The lines of a text that are not empty; none if there is no such file."""
    if not path.is_file():
        return []
    try:
        lines = read_file(path, MOST_TEXT).decode("utf-8-sig").splitlines()
        return [line.strip() for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None


def _kinds(folder: Path) -> list[str]:
    """The folders of classes, 2 before 10; refuses those of the parts of a data set, which are no classes."""
    paths = sorted((path for path in folder.iterdir() if path.is_dir() and not _of_system(path)), key=natural)
    parts = [path for path in paths if path.name.lower() in PARTS]
    nested = [path for path in paths if _is_nested(path)]
    if len(parts) > 1 or set(parts) & set(nested) or (nested and len(nested) == len(paths)):
        odd = (nested or parts)[0]
        raise UserError(
            f"{several([path.name for path in paths], 3)} in {folder} are parts of a data set and no classes: name the "
            f"folder whose folders are the classes, {odd} say"
        )
    return [path.name for path in paths]


def _of_system(path: Path) -> bool:
    """Whether it is what file managers leave behind, ``._0.jpg`` and ``__MACOSX`` say."""
    return path.name.startswith((".", "__MACOSX", "@eaDir", "lost+found"))


def _is_nested(folder: Path) -> bool:
    """Whether it holds several folders and no picture."""
    entries = list(folder.iterdir())
    pictures = any(path.suffix[1:].lower() in PICTURES for path in entries if not path.is_dir())
    return not pictures and sum(path.is_dir() for path in entries) > 1


def _imagenet_numbers(kinds: Sequence[str], folder: Path) -> list[int]:
    """ImageNet's numbers of folders that are named by WordNet id, by number, or by the classes' names."""
    ids = ImageNetInfo("imagenet-1k").label_names()
    if all(map(str.isdecimal, kinds)):
        numbers = {kind: int(kind) for kind in kinds if int(kind) < len(ids)}
    else:
        classes = open_clip.IMAGENET_CLASSNAMES
        numbers = {name.replace(" ", "_"): n for n, name in enumerate(classes) if classes.count(name) == 1}
        numbers |= {name.replace("_", " "): number for name, number in numbers.items()} | {
            n: i for i, n in enumerate(ids)
        }
    if unknown := next((kind for kind in kinds if kind not in numbers), None):
        raise UserError(
            f"{folder / unknown} is no class of ImageNet's: name folders by WordNet id (n01440764) or number, 0 to 999 "
            "in the order of these ids"
        )
    return [numbers[kind] for kind in kinds]


def _check_ids(shards: Shards, labels: Sequence[int]) -> None:
    """Compares ImageNet's numbers with the WordNet ids in the keys of the samples, if there are any."""
    ids = ImageNetInfo("imagenet-1k").label_names()
    for number, label in enumerate(labels):
        named = re.search(r"n[0-9]{8}", shards.name(number).partition(" in ")[0])
        if named and named[0] in ids and ids[label] != named[0]:
            raise UserError(
                f"{shards.name(number)} has the number {label} in .cls, of {ids[label]} in the order of ImageNet's "
                f"WordNet ids: another numbering; write {ids.index(named[0])}, 0 to 999 in the order of the ids"
            )


@dataclass(frozen=True)
class _Files:
    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        try:
            return flatten(decode(read_file(self.paths[index], MOST_BYTES)))
        except OSError as error:  # gone by now, or larger than a picture can be
            raise Undecodable("too many bytes" if error.errno == errno.EFBIG else NO_FILE) from None

    def name(self, index: int) -> str:
        return one_line(self.paths[index])


def _label(shards: Shards, number: int, classes: int) -> int:
    try:
        content = shards.read(number).get("cls", b"").strip()
    except Undecodable:
        content = b""
    if not re.fullmatch(rb"[0-9]{1,9}", content) or int(content) >= classes:
        got = repr(content[:20].decode(errors="replace")) if content else "none"
        raise UserError(
            f"{shards.name(number)} has no usable .cls member, got {got}: needed is the number of one of "
            f"the {classes} classes, 0 to {classes - 1}"
        )
    return int(content)
