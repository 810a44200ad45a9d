"""Tables that are built once and shown in the terminal, in Markdown and on a page, and the numbers in their cells."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from steering.errors import clean

PLUS_MINUS = "\u00b1"
MINUS = "\u2212"
MISSING = "\u2013"
LONGEST = 200  # characters of a cell

Tone = Literal["", "best", "better", "worse", "undecided", "quiet"]
_STYLES = {"": "", "best": "bold", "better": "green", "worse": "red", "undecided": "yellow", "quiet": "dim"}


@dataclass(frozen=True)
class Column:
    """A heading; numbers are aligned to the right."""

    name: str
    number: bool = True


@dataclass(frozen=True)
class Cell:
    """What is shown, and in which tone."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Grid:
    """A table as data, for whatever draws it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @classmethod
    def of(
        cls,
        title: str,
        texts: Iterable[str],
        numbers: Iterable[str],
        rows: Iterable[Iterable[Cell | str]],
        note: str = "",
    ) -> "Grid":
        """A table whose columns of text come before those of numbers; text is a cell without a tone.

        >>> Grid.of("Slopes", ["method"], ["slope"], [["ERM", "0.5"], ["DRRho", Cell("1.0", "best")]]).rows[0]
        (Cell(text='ERM', tone=''), Cell(text='0.5', tone=''))
        """
        columns = (*(Column(name, number=False) for name in texts), *map(Column, numbers))
        cells = (tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
        return cls(title, columns, tuple(cells), note)


def number(value: float, decimals: int = 2, sign: bool = False) -> str:
    """A number with a typographic minus.

    >>> number(1234.5, 1), number(-0.001), number(0.5, 1, sign=True)
    ('1,234.5', '0.00', '+0.5')
    """
    if not math.isfinite(value):
        return str(value).replace("-", MINUS)
    return format(value, f"{'+' if sign else ''}z,.{decimals}f").replace("-", MINUS)


def span(estimate: Any, decimals: int = 2) -> str:
    """``0.81 [0.70, 0.98]``, of what has value, low and high; a zero keeps its sign, which verdicts hang on."""
    value, low, high = (f"{x:.{decimals}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]".replace("-", MINUS)


def _printable(grid: Grid) -> Grid:
    """The table with texts of names that may hold anything, as a terminal can show them."""
    columns = (replace(column, name=clean(column.name, LONGEST)) for column in grid.columns)
    rows = (tuple(replace(cell, text=clean(cell.text, LONGEST)) for cell in row) for row in grid.rows)
    return Grid(clean(grid.title, LONGEST), tuple(columns), tuple(rows), clean(grid.note))


def to_rich(grid: Grid) -> Table:
    """For the terminal. Names are plain text: square brackets in them are no markup."""
    grid = _printable(grid)
    table = Table(
        title=Text(grid.title, style="bold"),
        caption=Text(grid.note, style="dim") if grid.note else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, column in enumerate(grid.columns):
        # Where the terminal is narrow, headings break between words and numbers do not break at all.
        unbroken = column.name.split() + [row[index].text for row in grid.rows] * (column.number or index == 0)
        table.add_column(
            Text(column.name),
            justify="right" if column.number else "left",
            overflow="fold",
            min_width=max(map(len, unbroken)),
            no_wrap=index == 0,  # names of arms
        )
    for row in grid.rows:
        table.add_row(*(Text(cell.text, style=_STYLES[cell.tone]) for cell in row))
    return table


def to_markdown(grid: Grid) -> str:
    """For a README or a notebook; the best is bold."""
    grid = _printable(grid)
    lines = [[column.name for column in grid.columns], ["---:" if column.number else "---" for column in grid.columns]]
    lines += [[f"**{cell.text}**" if cell.tone == "best" else cell.text for cell in row] for row in grid.rows]
    escaped = (" | ".join(text.replace("|", "\\|").replace("\n", " ") for text in line) for line in lines)
    return f"**{grid.title}**\n\n" + "".join(f"| {line} |\n" for line in escaped) + (grid.note and f"\n{grid.note}\n")
