"""From bytes to a picture, and an account of the samples that could not be used."""

import io
import warnings
from collections import Counter
from dataclasses import dataclass, field

from PIL import Image, UnidentifiedImageError

from steering.errors import RunError

# By name, because Pillow also knows formats that start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MOST_PIXELS = 89_478_485  # where Pillow starts to warn: 256 MB of RGB
MOST_NARROW = 100  # times as long as wide: scaled to a model's size by its shorter side, it would be huge

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
)


class Undecodable(Exception):
    """A sample cannot be used, for one of ``REASONS``."""


def decode(data: bytes) -> Image.Image:
    """The picture in ``data``, the first one of an animation.

    Args:
        data: a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file.

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
    """

    seen: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        return self.reasons.total()

    def add(self, reason: str, example: str) -> None:
        """Notes one skipped sample; ``seen`` is counted by the caller, who sees the good ones as well."""
        self.reasons[reason] += 1
        if len(self.examples) < 3:
            self.examples.append(example)

    def check(self, share_limit: float = 0.01, least: int = 10) -> None:
        """Ends the run when too many samples are bad.

        Args:
            share_limit: share of the samples seen that may be skipped, 0 to 1.
            least: skipped samples below which a share says little; a limit of 0 means none at all.

        Raises:
            RunError: more than that share was skipped, and at least ``least`` samples.
        """
        skipped, enough = self.skipped, least if share_limit > 0 else 1
        if skipped < enough or skipped <= share_limit * self.seen:
            return
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
        raise RunError(
            f"{skipped:,} of {self.seen:,} samples cannot be used ({reasons}), more than the {share_limit:.1%} "
            f"allowed; for example {', '.join(self.examples)}. Write these shards again, leave them out, or "
            "allow a larger share (bad_share)"
        )
