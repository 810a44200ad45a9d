"""The report of a check: one answer, with the numbers, figures and methods behind it, in every usual form."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from steering import atomic_files
from steering.errors import UserError
from steering.reports.environment import environment
from steering.reports.figures import Plot
from steering.reports.grid import Cell, Column, Grid, to_markdown, to_rich
from steering.reports.page import facts, page


@dataclass(frozen=True)
class Report:
    """What a check found out. All texts are plain, without markup.

    Attributes:
        title: a few words.
        question: what was asked, one or two sentences.
        verdict: the answer in one sentence.
        command: what makes this report again.
        findings: further sentences, the most important first.
        cautions: what to be careful about in these very numbers.
        grids: tables.
        plots: figures.
        method: paragraphs on data, seeds, intervals and definitions, with their source.
        limits: what a check of this kind cannot tell.
        numbers: all that a program may want: dicts, lists, strings, numbers and None.
    """

    title: str
    question: str
    verdict: str
    command: str
    findings: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    method: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)


def write(report: Report, folder: Path) -> Path:
    """Writes ``report.html``, ``report.md``, ``report.json`` and ``plots/``; each is whole or as it was.

    Returns:
        The path of the page.

    Raises:
        RunError: the disk is full or read-only.
    """
    machine = environment()
    for plot in report.plots:
        atomic_files.write(folder / "plots" / f"{plot.name}.png", plot.png)
    atomic_files.write(folder / "report.md", markdown(report))
    atomic_files.write(
        folder / "report.json", json.dumps(_plain(as_json(report) | {"environment": machine}), indent=1) + "\n"
    )
    template = Path(__file__).parent / "findings.html"
    return atomic_files.write(folder / "report.html", page(template, report=report, machine=facts(machine)))


def show(report: Report, console: Console) -> None:
    """Prints the tables, then the answer and what to be careful about."""
    console.print()
    for grid in report.grids:
        console.print(to_rich(grid))
        console.print()
    for sentence in (report.verdict, *report.findings):
        console.print(sentence, markup=False, highlight=False)
    for caution in report.cautions:
        console.print(f"caution: {caution}", markup=False, highlight=False, style="yellow")


def markdown(report: Report) -> str:
    """The report for a README or a notebook; figures are linked from ``plots/``."""
    blocks = [f"# {report.title}", report.question, f"**{report.verdict}**", *report.findings]
    blocks += [_list("Read with care:", report.cautions)] if report.cautions else []
    blocks += [to_markdown(grid).strip() for grid in report.grids]
    blocks += [f"![{plot.title}](plots/{plot.name}.png)\n\n*{plot.caption}*" for plot in report.plots]
    blocks += ["## How it was measured", *report.method] if report.method else []
    blocks += ["## What this cannot tell", _list("", report.limits)] if report.limits else []
    blocks += [f"    {report.command}"]
    return "\n\n".join(block for block in blocks if block) + "\n"


def as_json(report: Report) -> dict[str, Any]:
    """The words and numbers of a report, without its figures."""
    names = ("title", "question", "verdict", "findings", "cautions", "command", "method", "limits", "numbers")
    plots = [{"name": plot.name, "title": plot.title, "caption": plot.caption} for plot in report.plots]
    return {name: getattr(report, name) for name in names} | {"grids": list(map(asdict, report.grids)), "plots": plots}


def read(folder: Path) -> Report:
    """The report that ``write`` put into a folder.

    Raises:
        UserError: there is none, or its files do not belong together.
    """
    try:
        found = json.loads((folder / "report.json").read_text())
        grids = [
            Grid(
                grid["title"],
                tuple(Column(**column) for column in grid["columns"]),
                tuple(tuple(Cell(**cell) for cell in row) for row in grid["rows"]),
                grid["note"],
            )
            for grid in found.pop("grids")
        ]
        plots = [Plot(**plot, png=_picture(folder, plot["name"]).read_bytes()) for plot in found.pop("plots")]
        del found["environment"]
        return Report(**found, grids=grids, plots=plots)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no whole report (report.json and plots): {error}") from None


def _picture(folder: Path, name: str) -> Path:
    """The file of a plot, which no report can have outside its folder."""
    if Path(name).name != name:
        raise ValueError(f"a plot named {name!r}")
    return folder / "plots" / f"{name}.png"


def join(reports: list[Report], title: str, command: str, folder: Path) -> Path:
    """Writes several reports as one: ``report.html``, ``report.md``, ``report.json`` and ``plots/``.

    Returns:
        The path of the page.
    """
    for place, report in enumerate(reports, start=1):
        for plot in report.plots:
            atomic_files.write(folder / "plots" / f"{place}-{plot.name}.png", plot.png)
    renamed = [
        replace(report, plots=[plot._replace(name=f"{place}-{plot.name}") for plot in report.plots])
        for place, report in enumerate(reports, start=1)
    ]
    atomic_files.write(
        folder / "report.md", "\n".join([f"# {title}\n", *(f"#{markdown(report)}" for report in renamed)])
    )
    content = {"title": title, "command": command, "reports": [as_json(report) for report in renamed]}
    atomic_files.write(folder / "report.json", json.dumps(_plain(content), indent=1) + "\n")
    template = Path(__file__).parent / "joined.html"
    return atomic_files.write(folder / "report.html", page(template, reports=reports, title=title, command=command))


def _list(head: str, lines: list[str]) -> str:
    return "\n".join([head, *[""] * bool(head), *(f"- {line}" for line in lines)]).strip()


def _plain(value: Any) -> Any:
    """The same with words for numbers that JSON has none for."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # of numpy or torch
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
