"""A table that is built once and shown in the terminal, in Markdown and in a report."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

PLUS_MINUS = "\u00b1"
MINUS = "\u2212"
MISSING = "\u2013"

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
    """A table that does not know yet where it is shown."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def to_rich(grid: Grid) -> Table:
    """For the terminal. Names are plain text: square brackets in them are no markup."""
    table = Table(
        title=Text(grid.title, style="bold"),
        caption=Text(grid.note, style="dim") if grid.note else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for place, column in enumerate(grid.columns):
        # Where the terminal is narrow, headings break between words and numbers do not break at all.
        whole = column.name.split() + [row[place].text for row in grid.rows] * (column.number or place == 0)
        table.add_column(
            Text(column.name),
            justify="right" if column.number else "left",
            overflow="fold",
            min_width=max(map(len, whole)),
            no_wrap=place == 0,  # names of arms
        )
    for row in grid.rows:
        table.add_row(*(Text(cell.text, style=_STYLES[cell.tone]) for cell in row))
    return table


def to_markdown(grid: Grid) -> str:
    """For a README or a notebook; the best is bold."""
    lines = [
        _line(column.name for column in grid.columns),
        _line("---:" if column.number else "---" for column in grid.columns),
        *(_line(_bold(cell) for cell in row) for row in grid.rows),
    ]
    return "\n".join([f"**{grid.title}**", "", *lines, *(["", grid.note] if grid.note else [])]) + "\n"


def _bold(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.tone == "best" else cell.text


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
