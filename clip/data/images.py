"""From bytes to a picture, and an account of the samples that could not be used."""

import io
import warnings
from collections import Counter
from dataclasses import dataclass, field

from PIL import Image, UnidentifiedImageError

from steering.errors import RunError

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


@dataclass
class Skips:
    """How many samples were looked at, and why some were skipped.

    Attributes:
        seen: samples looked at.
        reasons: skipped samples by reason.
        examples: the first few of them, for the message.
        stand_ins: how often another sample took the place of one that was skipped.
    """

    seen: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    stand_ins: int = 0

    @property
    def skipped(self) -> int:
        return self.reasons.total()

    def add(self, reason: str, example: str) -> None:
        """Notes one skipped sample; ``seen`` is counted by the caller, who sees the good ones as well."""
        self.reasons[reason] += 1
        if len(self.examples) < 3:
            self.examples.append(example)

    def too_many(self, share_limit: float, least: int = 10) -> bool:
        """Whether ``check`` would end the run."""
        enough = least if share_limit > 0 else 1
        return self.skipped >= enough and self.skipped > share_limit * self.seen

    def check(self, share_limit: float = 0.01, least: int = 10) -> None:
        """Ends the run when too many samples are bad.

        Args:
            share_limit: share of the samples seen that may be skipped, 0 to 1.
            least: skipped samples below which a share says little; a limit of 0 means none at all.

        Raises:
            RunError: more than that share was skipped, and at least ``least`` samples.
        """
        if not self.too_many(share_limit, least):
            return
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
        raise RunError(
            f"{self.skipped:,} of {self.seen:,} samples cannot be used ({reasons}), more than the {share_limit:.1%} "
            f"allowed; for example {', '.join(self.examples)}. Write these shards again, leave them out, or "
            "allow a larger share (bad_share)"
        )
