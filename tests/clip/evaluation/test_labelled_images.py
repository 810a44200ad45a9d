"""Zero-shot classification: where pictures, classes and words come from, and what is counted."""

import os
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image, ImageStat
from webdataset.writer import TarWriter

from steering import UserError
from steering.clip.data.images import Undecodable
from steering.clip.data.shards import Shards
from steering.clip.evaluation.labelled_images import read_classes
from steering.clip.evaluation.suites import ZeroShotSuite
from steering.clip.models import EMOJI, Towers, build


class Told(Towers):
    """Knows the class of a picture by its mean colour channel, and of a text by the colour it names."""

    COLOURS = ("red", "green", "blue")

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.preprocessing: Any = "mean colour"
        self.preprocess = mean_colour

    def encode_images(self, images):
        return torch.nn.functional.one_hot(images.argmax(1), 3).float()

    def tokenize(self, texts):
        return torch.tensor([[colour in text for colour in self.COLOURS] for text in texts])

    def encode_texts(self, tokens):
        return torch.nn.functional.normalize(tokens.float() + 0.01, dim=-1)


def mean_colour(image):
    return torch.tensor(ImageStat.Stat(image).mean)


@pytest.fixture
def painted(tmp_path):
    """Makes a folder of one-coloured pictures for every class."""

    def make(root: str = "kinds", **kinds: list[str]) -> str:
        for kind, colours in kinds.items():
            (tmp_path / root / kind).mkdir(parents=True)
            for number, colour in enumerate(colours):
                paint = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}[colour]
                Image.new("RGB", (4, 4), paint).save(tmp_path / root / kind / f"{number}.png")
        return str(tmp_path / root)

    return make


def test_a_picture_belongs_to_the_class_whose_words_are_closest(painted):
    source = painted(red=["red", "red", "blue"], green=["green"], blue=["blue", "red"])
    result = ZeroShotSuite(source).measure(Told())
    assert result["top1"].value == pytest.approx(4 / 6)
    assert result["class_recall"].value == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert "top5" not in result  # of three classes


def test_a_class_without_pictures_competes_but_does_not_count(painted):
    suite = ZeroShotSuite(painted(red=["red", "blue"], green=["green"], blue=[]))
    result = suite.measure(Told())
    assert result["top1"].value == pytest.approx(2 / 3)
    assert result["class_recall"].value == pytest.approx(3 / 4)
    assert suite.metrics["top1"].chance == pytest.approx(1 / 3)


def test_a_picture_that_cannot_be_read_is_left_out_and_counted(painted, tmp_path):
    source = painted(red=["red"], green=["green"])
    (tmp_path / "kinds" / "red" / "broken.jpg").write_bytes(b"no picture")
    suite = ZeroShotSuite(source)
    assert suite.measure(Told())["top1"].value == 1.0
    assert dict(suite.skips.reasons) == {"not a picture": 1}


def test_names_and_sentences_can_be_given(painted, tmp_path):
    source = painted(a=["red"], b=["blue"])
    assert read_classes(source).prompts == [["a photo of a a."], ["a photo of a b."]]
    (tmp_path / "kinds" / "classnames.txt").write_text("red {c} one\nblue\n")
    (tmp_path / "kinds" / "templates.txt").write_text("see {}\n{c}!\n")
    classes = read_classes(source)
    assert classes.prompts == [["see red {c} one", "red {c} one!"], ["see blue", "blue!"]]
    assert classes.labels == [0, 1]
    assert ZeroShotSuite(source).measure(Told())["top1"].value == 1.0


@pytest.fixture
def benchmark(tars, tmp_path):
    """Makes a folder as benchmarks lay it out, with these ``.cls`` members."""

    def make(*labels: str) -> str:
        picture = Shards.open(tars(1)).picture(0)
        (tmp_path / "set" / "test").mkdir(parents=True)
        with TarWriter(str(tmp_path / "set" / "test" / "0.tar")) as tar:
            for number, label in enumerate(labels):
                tar.write({"__key__": f"{number}", "jpg": picture} | ({"cls": label.encode()} if label else {}))
        (tmp_path / "set" / "classnames.txt").write_text("red\ngreen\n")
        (tmp_path / "set" / "zeroshot_classification_templates.txt").write_text("a {c}.\n")
        return str(tmp_path / "set")

    return make


def test_shards_say_the_class_of_each_picture(benchmark):
    source = benchmark("1", "0\n", "1")
    classes = read_classes(source)
    assert classes.labels == [1, 0, 1]
    assert classes.prompts == [["a red."], ["a green."]]
    assert ZeroShotSuite(source).measure(Told())["top1"].value == pytest.approx(1 / 3)  # all are red


@pytest.mark.parametrize(("label", "got"), [("2", "'2'"), ("", "none"), ("-1", "'-1'"), ("cat", "'cat'")])
def test_a_class_that_there_is_not_is_refused(benchmark, label, got):
    with pytest.raises(UserError, match=rf"1 in .*0.tar has no usable .cls member, got {got}: .* 2 classes, 0 to 1"):
        read_classes(benchmark("0", label))


def test_imagenet_has_its_own_names_and_sentences(painted):
    source = painted(n01443537=["red"], n02123394=["green", "blue"])
    classes = read_classes(f"imagenet:{source}")
    assert [classes.names[label] for label in classes.labels] == ["goldfish", "Persian cat", "Persian cat"]
    assert classes.names == list(open_clip.IMAGENET_CLASSNAMES)
    needed = [make("goldfish") for make in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert classes.prompts[1] == needed and len(needed) == 80


def test_imagenet_folders_may_have_numbers_for_names(painted):
    source = painted(**{"1": ["red"], "283": ["green"]})
    assert read_classes(f"imagenet:{source}").labels == [1, 283]


def refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_classes(source)


def test_what_is_no_set_of_classes_is_refused_in_one_line(painted, tmp_path, benchmark):
    refused("nowhere", "zeroshot takes a folder, or imagenet:FOLDER, and 'nowhere' is none")
    source = painted(red=["red"], green=["green"])
    refused(f"imagenet:{source}", "green is no class of ImageNet's: name folders by WordNet id")
    (tmp_path / "kinds" / "templates.txt").write_text("a photo\n")
    refused(source, r"templates.txt has a line without \{\}, where the name goes: 'a photo'")
    (tmp_path / "kinds" / "classnames.txt").write_text("red\n")
    refused(source, "has 2 folders of pictures, but classnames.txt has 1 lines")
    (tmp_path / "empty" / "red").mkdir(parents=True)
    refused(str(tmp_path / "empty"), "empty has no pictures: put them in a folder for every class")
    source = benchmark("0")
    (tmp_path / "set" / "classnames.txt").unlink()
    refused(source, "set has shards but no classnames.txt")


@pytest.mark.parametrize(
    ("kinds", "colours"),
    [
        ([str(number) for number in range(12)], [str(number) for number in range(12)]),
        ([str(number) for number in range(1, 13)], [str(number) for number in range(12)]),
        (["1", "2", "10"], ["0", "1", "2"]),
        (["class 01", "class 02", "class 10"], ["0", "1", "2"]),
    ],
)
def test_lines_of_names_belong_to_numbered_folders_in_the_order_of_numbers(painted, tmp_path, kinds, colours):
    source = painted(**{kind: ["red"] for kind in kinds})
    (tmp_path / "kinds" / "classnames.txt").write_text("\n".join(f"name {colour}" for colour in colours))
    classes = read_classes(source)
    pictures: Any = classes.pictures
    named = {pictures.paths[i].parent.name: classes.names[label] for i, label in enumerate(classes.labels)}
    assert named == {kind: f"name {colour}" for kind, colour in zip(kinds, colours, strict=True)}


def test_names_that_may_be_in_two_orders_are_refused(painted, tmp_path):
    source = painted(**{f"class_{number}": ["red"] for number in (1, 2, 10)})
    assert len(read_classes(source).names) == 3, "without a list nothing is ambiguous"
    (tmp_path / "kinds" / "classnames.txt").write_text("a\nb\nc")
    refused(source, "may be in the order of class_1, class_2, class_10 or of class_1, class_10, class_2: write")


PARTED = [["train/a", "train/b", "val/a", "val/b"], ["train", "val"], ["Train", "Test"], ["test/a", "test/b", "cat"]]
PARTED += [["images/a", "images/b"], ["photo/a", "photo/b", "sketch/a", "sketch/b"]]


@pytest.mark.parametrize("kinds", PARTED)
def test_parts_of_a_data_set_are_no_classes(painted, kinds):
    source = painted(**{kind: ["red"] for kind in kinds})
    refused(source, "are parts of a data set and no classes: name the folder whose folders are the classes, .*say")


@pytest.mark.parametrize("kinds", [["train", "bus"], ["a/images", "b/images"], ["a/x", "a/y", "b"]])
def test_a_class_may_be_called_train_and_have_folders(painted, kinds):
    assert len(read_classes(painted(**{kind: ["red"] for kind in kinds})).labels) == len(kinds)


@pytest.mark.parametrize(
    "kinds",
    [
        [str(number) for number in range(1, 1001)],
        [f"{number:04d}" for number in range(1, 1001)],
        [f"class{number}" for number in range(1000)],
        ["n01443537", "n99999999"],
        ["1", "1000"],
        ["1", "n01443537"],
        ["missile", "tench"],  # of two classes with that name
    ],
)
def test_ids_of_another_numbering_are_none_of_imagenets(tmp_path, kinds):
    for kind in kinds:
        (tmp_path / kind).mkdir()
    refused(f"imagenet:{tmp_path}", "is no class of ImageNet's: name folders by WordNet id .* or number, 0 to 999")


@pytest.mark.parametrize(
    "kinds", [["n01443537", "n02123394"], ["1", "283"], ["goldfish", "Persian_cat"], ["001", "283"]]
)
def test_imagenets_classes_may_be_named_in_several_ways(painted, kinds):
    source = painted(**{kind: ["red"] for kind in kinds})
    assert sorted(read_classes(f"imagenet:{source}").labels) == [1, 283]


@pytest.mark.parametrize(
    ("label", "refusal"), [("1", ""), ("2", "2 in .cls, of n01484850 .* another numbering; write 1,")]
)
def test_the_ids_in_the_keys_of_imagenets_shards_are_compared(tars, tmp_path, label, refusal):
    (tmp_path / "set").mkdir()
    with TarWriter(str(tmp_path / "set" / "0.tar")) as tar:
        tar.write({"__key__": "n01443537_10007", "jpg": Shards.open(tars(1)).picture(0), "cls": label.encode()})
    if refusal:
        refused(f"imagenet:{tmp_path}/set", refusal)
    else:
        assert read_classes(f"imagenet:{tmp_path}/set").labels == [1]


def test_a_picture_of_40_gb_and_a_list_of_40_gb_are_not_read(painted, tmp_path):
    source = painted(red=["red"], green=["green"])
    (tmp_path / "kinds/red/x.png").touch()
    os.truncate(tmp_path / "kinds/red/x.png", 40 << 30)
    classes = read_classes(source)
    with pytest.raises(Undecodable, match="too many bytes"):
        classes.pictures.load(classes.labels.index(1) + 1)
    (tmp_path / "kinds/classnames.txt").touch()
    os.truncate(tmp_path / "kinds/classnames.txt", 40 << 30)
    refused(source, "classnames.txt cannot be read as UTF-8 text: .*more than")


def test_files_of_any_names_and_kinds_cost_themselves_alone(tars, tmp_path):
    """Class names hold what no text may; pictures go, or are no files, or have no end."""
    picture, folder = Shards.open(tars(1)).picture(0), tmp_path / "kinds"
    names = ["\u202eodd [red]", os.fsdecode(b"\xff\xfe"), "$\\frac{1}{$", "a\nb", "w" * 200]
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "\ud800.jpg".encode("utf-8", "replace").decode()).write_bytes(picture)
    for name in ("gone.jpg", "sparse.jpg"):
        (folder / names[0] / name).write_bytes(picture)
    os.mkfifo(folder / names[0] / "pipe.jpg")
    (folder / names[0] / "zero.jpg").symlink_to("/dev/zero")
    suite = ZeroShotSuite(str(folder), bad_share=1)
    os.truncate(folder / names[0] / "sparse.jpg", 10**12)
    (folder / names[0] / "gone.jpg").unlink()
    assert suite.measure(build(EMOJI).eval())["top1"].trials == 5
    assert dict(suite.skips.reasons) == {"file unreadable": 1, "too many bytes": 1}
    assert all(example.isprintable() for example in suite.skips.examples)


@pytest.mark.parametrize("content", [b"9" * 5000, b"-1", b"1e3", "\u0661".encode(), b"\x00", b""])
def test_a_class_that_is_no_number_is_refused_in_one_line(tars, tmp_path, content):
    with TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": "0", "jpg": Shards.open(tars(1)).picture(0), "cls": content})
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"has no usable .cls member") as caught:
        ZeroShotSuite(str(tmp_path))
    assert str(caught.value).isprintable()


def test_what_file_managers_leave_behind_is_no_class_and_no_picture(painted, tmp_path):
    source = painted(red=["red"], green=["green"], **{name: ["red"] for name in ("__MACOSX", ".git", "@eaDir")})
    (tmp_path / "kinds/red/._0.png").write_bytes(b"\0\5\26\7")
    classes = read_classes(source)
    assert classes.names == ["green", "red"] and classes.labels == [0, 1]
