"""Points of error against compute: the published ones, and subsets of any."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from steering.errors import UserError

SIX, ALL = "published-six", "all"
_SUBSETS = {SIX: ("model=ViT-B/32,ViT-B/16", "samples>=6e8"), ALL: ()}
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|=)\s*(.+?)\s*$")


@dataclass(frozen=True)
class Point:
    """One model that was trained and evaluated."""

    method: str  # how it was trained
    compute: float  # in any unit, the same for all points
    error: float  # above zero; a share or percent, the same for all points
    model: str | None = None  # its size, by name
    samples: float | None = None  # seen in training
    run: str | None = None  # repetition it belongs to; points of one run are drawn together by the bootstrap

    @property
    def unit(self) -> str:
        """What the bootstrap draws: the run, or the setting that all methods share."""
        return self.run if self.run is not None else f"{self.model}, {self.samples}, {self.compute:g}"


FIELDS = tuple(field.name for field in fields(Point))

# Forward passes of a pair in billions of operations, as open_clip counts them.
GFLOPS = {"ViT-B/32": 14.78, "ViT-B/16": 41.09, "ViT-L/14": 175.33}
BILLIONS = (0.32, 0.64, 1.28, 2.56)

# ImageNet error in percent after 0.32, 0.64, 1.28 and 2.56 billion samples, read off the scaling figure of Wei et al.
# (2025, DRRho risk minimisation; reference OpenAI ViT-B/32). ViT-L/14 was trained to 1.28 billion only.
_READ = {
    "OpenCLIP": {
        "ViT-B/32": (46.1, 40.0, 36.3, 33.6),
        "ViT-B/16": (41.2, 35.9, 32.5, 30.3),
        "ViT-L/14": (37.9, 32.9, 29.5),
    },
    "DRRho-CLIP": {
        "ViT-B/32": (44.1, 38.6, 35.1, 32.6),
        "ViT-B/16": (39.3, 34.1, 30.7, 28.5),
        "ViT-L/14": (34.9, 30.3, 27.6),
    },
}
READING_ERROR = 0.003  # standard deviation of a point; the readings are good to 0.3 to 0.6 percentage points
PUBLISHED_FITS = {"OpenCLIP": (5.77, 0.116), "DRRho-CLIP": (7.15, 0.127)}  # A and b as printed in the figure


def published() -> list[Point]:
    """The 22 points of the paper's scaling figure: error as a share, compute in billions of operations."""
    return [
        Point(method, GFLOPS[model] * billions * 1e9, error / 100, model, billions * 1e9)
        for method, models in _READ.items()
        for model, errors in models.items()
        for billions, error in zip(BILLIONS, errors, strict=False)
    ]


def named(points: Sequence[Point], name: str) -> list[Point]:
    """A subset of the published points by name.

    ``published-six`` is ViT-B/32 and ViT-B/16 from 0.64 billion samples on: of all common subsets of at least four
    points the one whose fits come closest to both printed ones. The paper does not say which points it fitted.

    Raises:
        UserError: no such subset.
    """
    if name not in _SUBSETS:
        raise UserError(f"there is no subset {name!r} of the published points; there are {SIX} and {ALL}")
    return where(points, _SUBSETS[name])


def where(points: Sequence[Point], conditions: Sequence[str]) -> list[Point]:
    """The points that meet all conditions: ``model=ViT-B/32,ViT-B/16``, ``samples>=6e8``, ``compute<=1e11``.

    Raises:
        UserError: a condition that cannot be read, or a column that there is not.
    """
    kept = list(points)
    for condition in conditions:
        match = _CONDITION.match(condition)
        if not match or match[1] not in FIELDS:
            raise UserError(
                f"--where takes COLUMN=VALUE,VALUE or COLUMN>=NUMBER, columns {', '.join(FIELDS)}; got {condition!r}"
            )
        kept = [point for point in kept if _meets(getattr(point, match[1]), match[2], match[3], condition)]
    return kept


def _meets(value: str | float | None, sign: str, operand: str, condition: str) -> bool:
    if sign == "=":
        options = [option.strip() for option in operand.split(",")]
        return str(value) in options or (isinstance(value, float) and value in map(_number, options))
    bound = _number(operand)
    if bound is None or not isinstance(value, float):
        raise UserError(f"--where {condition}: {sign} compares numbers, and this is none")
    return value <= bound if sign == "<=" else value >= bound


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
