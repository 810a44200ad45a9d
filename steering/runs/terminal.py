"""The end of a run in the terminal: tables, what they say in words, and what to be careful about."""

from rich.console import Console

from steering.reports.grid import to_rich
from steering.runs.report import sentences
from steering.runs.summary import Summary
from steering.runs.table import tables


def show(summary: Summary, console: Console) -> None:
    """Prints the tables of a run, then its sentences and cautions."""
    console.print()
    for grid in tables(summary):
        console.print(to_rich(grid))
        console.print()
    for sentence in sentences(summary):
        console.print(sentence, markup=False, highlight=False)
    for caution in summary.cautions:
        console.print(f"caution: {caution}", markup=False, highlight=False, style="yellow")
    for reason, count in summary.skipped.items():
        console.print(f"skipped: {reason}, {count} times", markup=False, highlight=False, style="yellow")
