"""Pictures from bytes: colours kept, faults named, and no run that ends by one bad file or goes on with many."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from steering.clip.data.images import FORMATS, MOST_PIXELS, PICTURES, REASONS, Undecodable, decode, flatten
from steering.clip.data.skipped_samples import Skips
from steering.errors import RunError


def encode(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(mode="RGB", size=(40, 30)):
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def png_header(width, height):
    """A PNG that promises a size, followed by next to no pixels."""
    chunks = b""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP", "JPEG2000"])
def test_lossless_pictures_come_back_pixel_by_pixel(form):
    picture = noise()
    options = {"lossless": True} if form == "WEBP" else {}
    assert decode(encode(picture, form, **options)).tobytes() == picture.tobytes()


def test_lossy_and_animated_pictures_decode():
    assert decode(encode(Image.new("RGB", (9, 8), "red"), "JPEG", quality=95)).size == (9, 8)
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    moving = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(moving).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["AVIF", "ICO", "MPO"])
def test_every_format_that_this_pillow_writes_decodes(form):
    if form not in Image.SAVE or (form in Image.OPEN and form not in FORMATS and form != "MPO"):
        pytest.skip(f"this Pillow does not write {form}")
    assert decode(encode(Image.new("RGB", (64, 64), (200, 30, 10)), form)).size == (64, 64)


def test_kinds_of_files_are_those_of_formats_that_are_decoded():
    assert {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"} <= set(PICTURES)
    assert not {"eps", "ps", "wmf", "emf", "grib", "h5", "mpg", "pdf"} & set(PICTURES)
    assert len(set(PICTURES)) == len(PICTURES)


def test_only_pictures_with_transparency_keep_alpha():
    clear = Image.new("P", (4, 4))
    assert decode(encode(noise("RGBA"), "PNG")).mode == "RGBA"
    assert decode(encode(noise("L"), "PNG")).mode == "RGB"
    assert decode(encode(clear, "PNG", transparency=0)).getpixel((0, 0)) == (0, 0, 0, 0)
    assert decode(encode(clear, "PNG")).mode == "RGB"
    assert decode(encode(Image.new("LA", (4, 4), (9, 7)), "PNG")).getpixel((0, 0)) == (9, 9, 9, 7)
    assert decode(encode(Image.new("CMYK", (4, 4)), "JPEG")).mode == "RGB"


def test_sixteen_bits_of_grey_are_scaled_not_clipped():
    grey = Image.fromarray(np.array([[0, 0x4040, 0x8080, 0xFFFF]], dtype=np.uint16))
    assert np.asarray(decode(encode(grey, "PNG")))[0, :, 0].tolist() == [0, 0x40, 0x80, 255]


def test_flattened_pictures_are_white_where_they_were_clear():
    """Half of black over white is 128 (rounded up); what hides under full transparency does not show."""
    image = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(9, 9, 9, 0), (0, 0, 0, 127), (1, 2, 3, 255)]):
        image.putpixel((x, 0), pixel)
    flat = flatten(image)
    assert [flat.getpixel((x, 0)) for x in range(3)] == [(255,) * 3, (128,) * 3, (1, 2, 3)]


def reason(data):
    with pytest.raises(Undecodable) as error:
        decode(data)
    assert str(error.value) in REASONS
    return str(error.value)


def test_every_fault_has_its_name():
    assert reason(b"") == "empty picture"
    assert reason(b"<html>404 not found</html>") == "not a picture"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not a picture"
    assert reason(png_header(60_000, 60_000)) == "too many pixels"
    assert reason(png_header(1, 101)) == "too narrow"
    assert reason(encode(noise(), "JPEG")[:600]) == "broken picture"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_a_picture_cut_in_half_is_broken(form):
    data = encode(noise(), form)
    assert reason(data[: len(data) // 2]) in ("broken picture", "not a picture")


def test_flipped_bytes_never_raise_anything_else():
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        data = encode(noise(size=(16, 16)), form)
        for index in range(0, len(data), max(1, len(data) // 60)):
            try:
                decode(data[:index] + bytes([data[index] ^ 0x55]) + data[index + 1 :])
            except Undecodable as error:
                assert str(error) in REASONS


def test_a_bomb_is_refused_even_where_pillow_lets_it_pass(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert reason(png_header(MOST_PIXELS // 9000 + 1, 9000)) == "too many pixels"


def test_decoding_warns_of_nothing_and_leaves_the_filters_alone():
    before = list(warnings.filters)
    reason(png_header(10_000, 10_000))
    assert warnings.filters == before


def test_few_bad_samples_pass_and_many_end_the_run():
    """The limit is 1 %: 10 of 1,000 pass, the 11th does not; fewer than 10 say nothing whatever their share."""
    skips = Skips(seen=9)
    for i in range(9):
        skips.add("broken picture", f"{i} in a.tar")
    skips.check(0.01)
    skips.seen = 1000
    skips.add("no caption", "9 in a.tar")
    skips.check(0.01)
    skips.add("no caption", "10 in a.tar")
    with pytest.raises(RunError) as error:
        skips.check(0.01)
    needed = "11 of 1,000 samples cannot be used (9 broken picture, 2 no caption), more than the 1.0% allowed; for "
    assert str(error.value).startswith(needed + "example 0 in a.tar, 1 in a.tar, 2 in a.tar. Write these shards again")
    assert "\n" not in str(error.value)
    skips.check(0.02)


def test_a_limit_of_none_ends_the_run_at_the_first():
    skips = Skips(seen=1000)
    skips.check(0)
    skips.add("no picture", "a in a.tar")
    with pytest.raises(RunError, match="1 of 1,000"):
        skips.check(0)
