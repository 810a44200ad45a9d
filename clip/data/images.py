"""From bytes to a picture, or to the reason why there is none."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

# By name, because Pillow also knows formats that start other programs (EPS runs Ghostscript), that call a handler of
# someone else's (WMF, GRIB, HDF5, BUFR), or that only science, games and old editors write.
Image.init()
_SAFE = "JPEG PNG WEBP AVIF BMP DIB GIF TIFF JPEG2000 PPM TGA ICO ICNS PCX SGI SUN QOI DDS PSD MSP XBM XPM"
FORMATS = tuple(form for form in _SAFE.split() if form in Image.OPEN)  # an older Pillow, or another build, lacks some
_EXTENSIONS = [(form, kind[1:]) for kind, form in Image.registered_extensions().items()]
# Extensions of pictures; of a sample with several the first is used. MPO is a JPEG with a second picture behind it.
PICTURES = tuple(kind for form in ("JPEG", "MPO", *FORMATS[1:]) for name, kind in _EXTENSIONS if name == form)
COMMON = tuple(kind for kind in ("jpg", "png", "webp", "avif", "bmp", "dib", "gif", "tif") if kind in PICTURES)
MOST_PIXELS = 89_478_485  # where Pillow starts to warn: 256 MB of RGB
MOST_NARROW = 100  # times as long as wide: scaled to a model's size by its shorter side, it would be huge
UNREADABLE, NO_FILE = "shard unreadable", "file unreadable"
POINTERS = (b"version https://git-lfs", b"/annex/objects/")  # how files begin that stand for others, of LFS and annex
REASONS = (
    "no picture",
    "empty picture",
    "not a picture",
    "broken picture",
    "too many pixels",
    "too narrow",
    "no caption",
    "caption not in UTF-8",
    "broken JSON",
    "not in its shard",
    UNREADABLE,
    "Git LFS pointer",
    "numbers that are no colours",
    "member twice",
    "too many bytes",
    NO_FILE,
)


class Undecodable(Exception):
    """A sample cannot be used, for one of ``REASONS``."""


def decode(data: bytes) -> Image.Image:
    """The picture in ``data``, the first one of an animation.

    Args:
        data: a file in one of ``FORMATS``.

    Returns:
        RGBA when the picture has an alpha channel or a transparent colour, else RGB. EXIF is not read.

    Raises:
        Undecodable: for anything that is not a whole picture of a sensible size.
    """
    if not data:
        raise Undecodable("empty picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken EXIF, which is not read, and of sizes checked below
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:  # someone may have lifted Pillow's own limit
                    raise Undecodable("too many pixels")
                if max(image.size) > MOST_NARROW * min(image.size):
                    raise Undecodable("too narrow")
                image.load()
                return _colours(image)
    except Image.DecompressionBombError:
        raise Undecodable("too many pixels") from None
    except UnidentifiedImageError:
        raise Undecodable("Git LFS pointer" if data.startswith(POINTERS) else "not a picture") from None
    except (Undecodable, MemoryError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error and more
        raise Undecodable("broken picture") from error


def flatten(image: Image.Image) -> Image.Image:
    """The picture in RGB, transparent parts white: open_clip would show what colour hides under them."""
    if image.mode == "RGB":
        return image
    image = image.convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A"))
    return page


def _colours(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):  # numbers of any range, which convert() would clip at 255
        values = np.asarray(image, dtype=np.float64)
        white = next((most for most in (1, 255, 65_535) if values.max() <= most), 2**31 - 1)
        if not 0 <= values.min() <= values.max() <= white:  # NaN neither
            raise Undecodable("numbers that are no colours")
        if image.mode == "F" or white > 65_535:
            return Image.fromarray((values * (255 / white)).round().astype(np.uint8)).convert("RGB")
    if image.mode.startswith("I"):  # 16 bits of grey
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("RGB")
