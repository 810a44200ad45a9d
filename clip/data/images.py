"""From bytes to a picture, or to the reason why there is none."""

import io
import warnings

from PIL import Image, UnidentifiedImageError

# By name, because Pillow also knows formats that start other programs (EPS runs Ghostscript), that call a handler of
# someone else's (WMF, GRIB, HDF5, BUFR), or that only science, games and old editors write.
_KNOWN = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "AVIF": ("avif",),
    "BMP": ("bmp",),
    "DIB": ("dib",),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
    "JPEG2000": ("jp2", "j2k", "jpx", "j2c", "jpc", "jpf"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "TGA": ("tga",),
    "ICO": ("ico",),
    "ICNS": ("icns",),
    "PCX": ("pcx",),
    "SGI": ("sgi", "rgb"),
    "SUN": ("ras",),
    "QOI": ("qoi",),
    "DDS": ("dds",),
    "PSD": ("psd",),
    "MSP": ("msp",),
    "XBM": ("xbm",),
    "XPM": ("xpm",),
}
Image.init()
FORMATS = tuple(form for form in _KNOWN if form in Image.OPEN)  # an older Pillow, or another build, lacks some
PICTURES = tuple(kind for form in FORMATS for kind in _KNOWN[form])  # the first that a sample has
COMMON = tuple(_KNOWN[form][0] for form in FORMATS[:8])
MOST_PIXELS = 89_478_485  # where Pillow starts to warn: 256 MB of RGB
MOST_NARROW = 100  # times as long as wide: scaled to a model's size by its shorter side, it would be huge
UNREADABLE = "shard unreadable"
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
        raise Undecodable("not a picture") from None
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
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip at 255
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")
