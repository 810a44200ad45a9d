"""The script that made the bundled emoji: captions, sheets, and what it says where a package is missing."""

import importlib.util
import io
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_emoji.py"
if not SCRIPT.exists():
    pytest.skip("the scripts are not installed with the package", allow_module_level=True)
spec = importlib.util.spec_from_file_location("build_emoji", SCRIPT)
assert spec and spec.loader
build_emoji = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_emoji)


def test_a_keyword_becomes_plain_text_or_nothing():
    arguments = ["\u00c5land_islands", "o\u2019clock", "\u201cfree", "10:00", ":D"]
    assert [build_emoji.plain(word) for word in arguments] == ["aland islands", "o'clock", "free", "10:00", ""]


def test_four_captions_differ_even_without_a_keyword():
    captions = build_emoji.captions({"name": "red circle", "subcategory": "geometric"}, ["red", "", "geometric"])
    assert captions[:2] == ["red circle", "an emoji of red circle, geometric"]
    assert captions[2:] == ["red circle, geometric", "geometric: red"]
    assert build_emoji.captions({"name": "fork", "subcategory": "tool"}, [])[3] == "tool: fork"


def test_a_missing_tarball_is_named_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(SystemExit, match=r"emojilib-4.0.3.tgz is not there.*npm pack emojilib@4.0.3"):
        build_emoji.read_package(tmp_path, "emojilib@4.0.3")


def test_a_sheet_keeps_every_picture_in_its_place(tmp_path):
    """45 pictures fill one row of 44 and begin a second."""
    colours = [(5 * n, 255 - 5 * n, 7, 255) for n in range(45)]
    pictures = []
    for colour in colours:
        stream = io.BytesIO()
        Image.new("RGBA", (64, 64), colour).save(stream, "PNG")
        pictures.append(stream.getvalue())
    build_emoji.write_sheet(tmp_path / "sheet.webp", pictures)
    sheet = Image.open(tmp_path / "sheet.webp")
    assert sheet.size == (44 * 32, 2 * 32)
    assert [sheet.getpixel((n % 44 * 32 + 16, n // 44 * 32 + 16)) for n in range(45)] == colours
