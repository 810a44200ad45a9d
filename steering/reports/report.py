"""Reports: what a run, a check or a study has to say as data, and the one place that draws it.

The terminal shows tables and sentences, a page (HTML that needs nothing else, neither network nor script) everything,
Markdown all but pictures of models, JSON what a program may want.
"""

import base64
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from steering import atomic_files
from steering.errors import UserError, clean, explained
from steering.registry import explain
from steering.reports.grid import Grid, to_markdown, to_rich

LONGEST = 5000  # characters of a sentence in a terminal
Made = TypeVar("Made")


class Plot(NamedTuple):
    """One picture."""

    name: str  # file name without its ending
    title: str  # a few words
    caption: str  # what is drawn, for whoever cannot see it too
    png: bytes  # the image


@dataclass(frozen=True)
class Report:
    """What a run or a check says. All texts are plain, without markup."""

    title: str  # a few words
    question: str  # what was asked or run, one or two sentences
    verdict: str  # the answer in one sentence
    command: str  # what makes this report again
    findings: list[str] = field(default_factory=list)  # further sentences, the most important first
    cautions: list[str] = field(default_factory=list)  # what to be careful about in these very numbers
    grids: list[Grid] = field(default_factory=list)  # tables
    plots: list[Plot] = field(default_factory=list)  # drawings of numbers
    exhibits: list[Plot] = field(default_factory=list)  # pictures of what models do, for the page alone
    details: list[Grid] = field(default_factory=list)  # tables that the terminal leaves out, behind the plots
    method: list[str] = field(default_factory=list)  # on data, seeds, intervals and definitions, with their source
    limits: list[str] = field(default_factory=list)  # what a check of this kind cannot tell
    numbers: dict[str, Any] = field(default_factory=dict)  # of dicts, lists, dataclasses, arrays, texts and None
    config: str = ""  # settings as text
    environment: dict[str, Any] = field(default_factory=dict)  # versions and hardware; if none, of the writing process


def environment() -> dict[str, Any]:
    """Versions and hardware; no names of machines or people."""
    import torch  # which showing a finished report does not need

    return {
        "model-steering": version("model-steering"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": dict(sorted({(d.metadata["Name"] or "?").lower(): d.version for d in distributions()}.items())),
    }


def write(report: Report, folder: Path) -> Path:
    """Writes ``report.html``, ``report.md``, ``report.json`` and ``plots/``; each is complete or as it was.

    Returns:
        The path of the page.

    Raises:
        RunError: the disk is full or read-only.
    """
    report = report if report.environment else replace(report, environment=environment())
    _write_data(folder, markdown(report), as_json(report))
    return write_page([report], folder, report.title, report.question)


def write_page(reports: Sequence[Report], folder: Path, title: str, about: str) -> Path:
    """Writes ``report.html`` and ``plots/`` alone, as of a run; otherwise like ``write``."""
    for plot in (plot for report in reports for plot in report.plots):
        atomic_files.write(folder / "plots" / f"{plot.name}.png", plot.png)
    return atomic_files.write(folder / "report.html", page(reports, title, about))


def read(folder: Path) -> Report:
    """The report that ``write`` put into a folder.

    Raises:
        UserError: there is none, or its files do not belong together.
    """
    try:
        content = atomic_files.read_json(folder / "report.json")
        content["plots"] = [Plot(**plot, png=_picture(folder, plot["name"])) for plot in content["plots"]]
        return TypeAdapter(Report).validate_python(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else error
        raise UserError(f"{folder} holds no complete report (report.json and plots): {reason}") from None


def join(reports: list[Report], title: str, command: str, folder: Path) -> Path:
    """Writes several reports as one, as ``write`` does.

    Returns:
        The path of the page.
    """
    numbered = [
        replace(report, plots=[plot._replace(name=f"{number}-{plot.name}") for plot in report.plots])
        for number, report in enumerate(reports, start=1)
    ]
    texts = [f"# {title}\n", *(f"#{markdown(report)}" for report in numbered)]
    content = {"title": title, "command": command, "reports": list(map(as_json, numbered))}
    _write_data(folder, "\n".join(texts), content)
    return write_page(numbered, folder, title, f"{len(reports)} reports, made by {command}")


def _write_data(folder: Path, text: str, content: dict[str, Any]) -> None:
    atomic_files.write(folder / "report.md", text)
    atomic_files.write(folder / "report.json", json.dumps(_plain(content), indent=1) + "\n")


def attempted(what: str, make: Callable[[], Iterable[Made]], cautions: list[str]) -> list[Made]:
    """What ``make`` gives, or nothing and a caution: no picture is worth the report.

    Args:
        what: it makes, in the plural.
        make: draws.
        cautions: to which a sentence is added where that fails.
    """
    try:
        return list(make())
    except Exception as error:  # whatever names, numbers and a task's own code make of it
        cautions.append(f"{what} are missing: {explained(error)}")
        return []


def show(report: Report, console: Console, page: Path | None = None) -> None:
    """Prints the tables, then the answer and what to be careful about, and where the page is."""
    console.print()
    for grid in report.grids:
        console.print(to_rich(grid))
        console.print()
    for sentence in (report.verdict, *report.findings):
        console.print(clean(sentence, LONGEST), markup=False, highlight=False)
    for caution in report.cautions:
        console.print(f"caution: {clean(caution, LONGEST)}", markup=False, highlight=False, style="yellow")
    if page is not None:
        console.print(f"report: {page}", markup=False, highlight=False)


def page(reports: Sequence[Report], title: str, about: str) -> str:
    """One HTML page; several reports get a table of what they say and a part each."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    loader = FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": select_autoescape(), "undefined": StrictUndefined, "finalize": _printable}
    templates = Environment(loader=loader, **options)
    templates.filters["image"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    templates.filters["flat"] = _flat
    return templates.get_template("report.html").render(reports=reports, title=title, about=about)


def markdown(report: Report) -> str:
    """The report for a README or a notebook; plots are linked from ``plots/``."""
    blocks = [f"# {report.title}", report.question, f"**{report.verdict}**", *report.findings]
    blocks += ["Read with care:", _items(report.cautions)] if report.cautions else []
    blocks += [to_markdown(grid).strip() for grid in report.grids]
    blocks += [f"![{plot.title}](plots/{plot.name}.png)\n\n*{plot.caption}*" for plot in report.plots]
    blocks += [to_markdown(grid).strip() for grid in report.details]
    blocks += ["## How it was measured", *report.method] if report.method else []
    blocks += ["## What this cannot tell", _items(report.limits)] if report.limits else []
    text = "\n\n".join(block for block in blocks if block)
    text = re.sub(r"<(?=[a-zA-Z/!?])", r"\\<", clean(text))  # names are no HTML either
    return f"{text}\n\n    {clean(report.command)}\n"


def as_json(report: Report) -> dict[str, Any]:
    """The words and numbers of a report, without its pictures."""
    content = asdict(report)
    del content["exhibits"]
    return content | {"plots": [{"name": p.name, "title": p.title, "caption": p.caption} for p in report.plots]}


def _printable(value: Any) -> Any:
    """A text of the page, whatever names it holds; what is marked as safe stays so."""
    return type(value)(clean(value)) if isinstance(value, str) else value


def _flat(value: Any) -> str:
    """Something known of a machine in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _items(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _picture(folder: Path, name: str) -> bytes:
    """The file of a plot, which no report can have outside its folder."""
    if Path(name).name != name:
        raise ValueError(f"a plot named {name!r}")
    return atomic_files.read_bytes(folder / "plots" / f"{name}.png")


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
