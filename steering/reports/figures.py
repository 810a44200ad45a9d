"""How figures look here: one style, no pyplot, PNG bytes."""

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, TypeVar, cast

import matplotlib as mpl
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from steering.errors import clean, explained
from steering.reports.report import Plot

WIDTH = 7.0  # inches; at 200 dots an inch that is sharp at 700 px, where one point is 1.4 px
DPI = 200
LONGEST = 300  # characters of a text in a picture

GREY = "#777777"
INK = "#222222"
BASE = "#444444"  # of what all else is compared with
# The last two come late because they are close to the second.
PALETTE = [sns.color_palette("colorblind").as_hex()[index] for index in (0, 1, 2, 4, 9, 3, 5)]
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5))]
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
Drawing = TypeVar("Drawing", bound=Callable[..., Any])


def styled(draw: Drawing) -> Drawing:
    """Decorates a function that draws a Plot or PNG bytes: in this style, and what cannot be drawn costs no report.

    Names and captions of users may hold anything, and numbers be anything: in place of a picture that fails stands one
    that says so, with a warning.
    """

    @wraps(draw)
    def drawn(*args: Any, **options: Any) -> Any:
        try:
            with mpl.rc_context(STYLE):
                return draw(*args, **options)
        except Exception as error:  # whatever matplotlib makes of them
            name = draw.__name__.strip("_")
            reason = f"{name} could not be drawn: {explained(error)}"
            warnings.warn(reason, RuntimeWarning, stacklevel=2)
            made, ((axes,),) = figure(height=0.6)
            axes.set_axis_off()
            axes.text(0, 0.5, textwrap.shorten(reason, 100))
            picture = png(made)
            return picture if draw.__annotations__["return"] is bytes else Plot(name, "No picture", reason, picture)

    return cast(Drawing, drawn)


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
    """The picture; of what users named, no formula and nothing that has no shape or no end is drawn."""
    for text in made.findobj(Text):
        cast(Text, text).set(text=clean(cast(Text, text).get_text(), LONGEST), parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that the font lacks, and of room for long ones
        made.savefig(out := io.BytesIO(), format="png", metadata={"Software": None})
    return out.getvalue()


def plot(made: Figure, handles: Sequence[Artist], name: str, title: str, caption: str) -> Plot:
    """The finished plot of a figure, with a legend of the handles above it."""
    legend(made, handles)
    return Plot(name, title, caption, png(made))


def key(label: str, color: Any = GREY, **style: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=color, label=label, **style)


def appearance(index: int) -> dict[str, Any]:
    """Colour and dash of a curve: seven colours and four dashes make 28 that can be told apart."""
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index % len(DASHES)]}


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """One row for every name, the first on top."""
    axes.set_yticks(range(len(names)), [textwrap.fill(clean(name, LONGEST // 2), 28) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)


def logarithmic(axes: Axes, which: Literal["x", "y"], at: Sequence[float] = ()) -> None:
    """A logarithmic axis in plain numbers.

    Marks are where ``at`` says; otherwise at 1, 2 and 5 times powers of ten, or at these powers alone where the axis
    spans more than three decades.
    """
    axis = _logarithmic(axes, which)
    low, high = axis.get_view_interval()
    subs = (1,) if high > 1e3 * low else (1, 2, 5)
    axis.set_major_locator(FixedLocator(list(at)) if len(at) else LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def powers_of_ten(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis marked 10^k; the style reads no formulas."""
    axis = _logarithmic(axes, which)
    raised = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
    axis.set_major_formatter(FuncFormatter(lambda value, _: "10" + f"{math.log10(value):.0f}".translate(raised)))
    axis.set_minor_formatter(NullFormatter())


def _logarithmic(axes: Axes, which: Literal["x", "y"]) -> Axis:
    axes.set(**{f"{which}scale": "log"})
    return axes.xaxis if which == "x" else axes.yaxis
