"""How figures look here: one style, no pyplot, PNG bytes."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDTH = 7.0  # inches; at 200 dots an inch that is sharp at 700 px, where one point is 1.4 px
DPI = 200

GREY = "#777777"
INK = "#222222"
BASE = "#444444"  # of what all else is compared with
PALETTE = [sns.color_palette("colorblind")[place] for place in (0, 1, 2, 4, 9, 3, 5)]
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar sign in the name of an arm is no formula
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
}


class Plot(NamedTuple):
    """One figure.

    Attributes:
        name: file name without its ending.
        title: a few words.
        caption: what is drawn, for whoever cannot see it too.
        png: the image.
    """

    name: str
    title: str
    caption: str
    png: bytes


def figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure without pyplot: nothing global to close, and safe beside a user's own figures.

    Args:
        height: in inches; the width is always that of a report's column.
        rows, columns: of axes.
        options: as of ``Figure.subplots``, ``sharex=True`` say.

    Returns:
        The figure and its axes, row by row.
    """
    made = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(made)
    return made, [list(row) for row in made.subplots(rows, columns, squeeze=False, **options)]


def legend(made: Figure, handles: Sequence[Artist]) -> None:
    """Above the axes, where it hides nothing."""
    labels = [textwrap.shorten(str(handle.get_label()), 40, placeholder="...") for handle in handles]
    if labels:
        columns = max(1, min(len(labels), 82 // (max(map(len, labels)) + 6)))
        made.legend(handles, labels, loc="outside upper left", ncols=columns, columnspacing=1.6)


def png(made: Figure) -> bytes:
    out = io.BytesIO()
    made.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
