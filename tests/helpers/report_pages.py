"""A report as a reader of its page gets it."""

from html import unescape

from steering.reports.report import Report, page


def shown(report: Report) -> str:
    """The page without its markup of breaks and special characters.

    Raises:
        AssertionError: it lacks a cell of a table, a sentence or a picture.
    """
    text = unescape(page([report], report.title, report.question)).replace("<wbr>", "").replace("\u00a0%", " %")
    grids = (*report.grids, *report.details)
    cells = [cell.text for grid in grids for row in grid.rows for cell in row]
    sentences = [report.verdict, *report.findings, *report.cautions, *report.method, *report.limits]
    missing = [part for part in (*cells, *sentences) if part not in text]
    assert not missing, f"not on the page: {missing}"
    assert text.count("data:image/png;base64,") == len(report.plots) + len(report.exhibits)
    return text
