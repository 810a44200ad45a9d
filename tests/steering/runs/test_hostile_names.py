"""Whatever a caption, a class or a file name holds: the report is drawn, and no picture costs it."""

import io
import math

import pytest
from PIL import Image
from rich.console import Console

from steering.errors import clean
from steering.reports.figures import figure, name_rows, plot, styled
from steering.reports.grid import Grid
from steering.reports.report import Plot, Report, read, show, write
from steering.runs.plots import draw
from steering.runs.report import as_report, write_report
from steering.settings import Metric
from steering.task import Exhibit

NAMES = [
    "[red]bold[/red]", "[/]", "[link=file:///etc]x[/link]", ":smiley:",  # rich
    "$\\frac{", "$x_{$", "a_b^c\\", "$" * 99,  # matplotlib
    "<script>alert(1)</script>", "<img src=x onerror=y>", "</table>", "&lt;", "\"'><",  # HTML
    "{{ 7 * 7 }}", "{% raw %}",
    "|", "a\nb", "`", "# x", "](x)", "\r\n\r\n", "%s %(x)s {0}",  # Markdown, formats
    "\x1b[2J\x1b]0;x\x07", "\0", "\x7f\x85", "\u202egnp.exe", "\u2066\u200f", "\ufeff",  # control and bidi
    "\ud800", "\udfff\ud800", "\U000e0001", "\uffff", "\U0001f468\u200d\U0001f4bb", "\u732b", "\u0627",
    "e" + "\u0301" * 999,
    "", " ", "\t", "a" * 100_000, "a " * 50_000, "/../" * 99, "..", "nan",
]  # fmt: skip


def harmless(text: str) -> bool:
    """Whether a terminal or a browser shows it as it stands there."""
    return text == clean(text)


def seen(report: Report) -> str:
    out = io.StringIO()
    show(report, Console(file=out, width=80, force_terminal=False, color_system=None))
    return out.getvalue()


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_report_is_complete_whatever_its_names_hold(name, run, arm, tmp_path):
    summary = run(
        {"erm": arm([0.5, 0.6]), name or "x": arm([0.7, 0.9], rule=name, subtract=True)},
        {"accuracy": Metric(label=name)},
        task=name,
        command=name,
        skipped={name: 2},
        cautions=[name],
    )
    exhibits = [Exhibit(name, name, b"\x89PNG")]
    page = write_report(tmp_path, summary, [], exhibits).read_text()
    assert harmless(page) and page.count("<img") == 2 and "<script" not in page and "onerror=y>" not in page
    assert "are missing" not in page and "No picture" not in page
    report = as_report(summary)
    text = seen(report)
    assert harmless(text) and len(text) < 300_000 and "0.80" in text
    write(report, tmp_path / "written")
    again = read(tmp_path / "written")
    assert again.grids == report.grids and seen(again) == text
    assert harmless((tmp_path / "written" / "report.md").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_every_plot_is_drawn_whatever_its_names_hold(name, run, arm, records):
    lines = [line | {"arm": name or "x" if line["arm"] == "kl" else "erm"} for line in records]
    lines = [line | {"facts": {name: 0.3}} if "facts" in line else line for line in lines]
    arms = {"erm": arm([0.5, 0.6]), name or "x": arm([0.7, 0.9], rule=name, subtract=True)}
    plots = draw(run(arms, {"accuracy": Metric(label=name)}), lines)
    assert [made.name for made in plots][:3] == ["final", "learning", "concentration"] and len(plots) == 4
    assert all(len(made.name) < 70 and Image.open(io.BytesIO(made.png)).height < 4000 for made in plots)


@styled
def _broken(values) -> Plot:
    made, ((axes,),) = figure(2.0)
    axes.set_xlim(0, math.nan)
    name_rows(axes, values)
    return plot(made, [], "broken", "Broken", "Nothing")


@styled
def _picture() -> bytes:
    raise RuntimeError("\x1b[2J$\\frac{")


def test_a_plot_that_fails_is_a_picture_that_says_so_and_the_rest_is_as_it_would_be(tmp_path):
    with pytest.warns(RuntimeWarning, match="broken could not be drawn: ValueError: Axis limits cannot be NaN"):
        made = _broken(["a"])
    with pytest.warns(RuntimeWarning, match="picture could not be drawn: RuntimeError"):
        assert Image.open(io.BytesIO(_picture())).width == 1400
    assert Image.open(io.BytesIO(made.png)).width == 1400 and made.title == "No picture"
    report = Report("t", "q", "v", "c", plots=[made], grids=[Grid.of("g", ["a"], [], [["b"]])])
    assert "could not be drawn" in write(report, tmp_path).read_text()


def test_pictures_of_a_task_that_fail_cost_no_report(run, arm, tmp_path):
    def exhibits():
        yield Exhibit("first", "text", b"\x89PNG")
        raise ValueError("a caption of $\\frac{")

    page = write_report(tmp_path, run({"erm": arm([0.5])}), [], exhibits()).read_text()
    assert "the exhibits are missing: ValueError: a caption of" in page and "Arms, one seed" in page


def test_plots_that_cannot_even_begin_cost_no_report(run, arm, tmp_path):
    broken = [{"arm": "erm", "seed": [], "step": None, "loss": "x", "facts": 5, "effective": "much"}]
    page = write_report(tmp_path, run({"erm": arm([0.5])}), broken).read_text()
    assert "the plots are missing" in page and "Arms, one seed" in page
