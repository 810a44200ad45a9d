"""A report says the same in every form, and needs nothing but itself."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from steering import UserError
from steering.reports.figures import figure, plot, styled
from steering.reports.grid import Grid
from steering.reports.report import Plot, Report, join, read, show, write


@styled
def drawn() -> Plot:
    made, ((left, right),) = figure(2.0, columns=2)
    lines = [axes.plot([0, 1], [0, 1], label=name)[0] for name, axes in (("a", left), ("b", right))]
    return plot(made, lines, "ratio", "Ratios", "What is drawn.")


@pytest.fixture(scope="module")
def report() -> Report:
    return Report(
        title="Variance of blobs",
        question="Does the loss vary less?",
        verdict="It varies less & more.",
        findings=["First."],
        cautions=["Few samples."],
        grids=[Grid.of("Ratios", ["reference"], ["ratio"], [["a<b>", "0.5"]])],
        details=[Grid.of("Settings", ["arm"], [], [["kl"]])],
        plots=[drawn()],
        method=["By measuring."],
        limits=["The future."],
        numbers={"ratio": np.float64(0.5), "all": np.arange(2), "nothing": None, "none": math.nan},
        command="steer variance blobs",
    )


def test_every_part_is_in_every_form_and_the_page_fetches_nothing(report, tmp_path):
    write(report, tmp_path)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for part in (report.title, report.question, "First.", "Few samples.", "By measuring.", "The future.", "0.5", "kl"):
        assert part in page and part in text
    assert "It varies less &amp; more." in page and "It varies less & more." in text
    assert "a&lt;b&gt;" in page, "names are no markup"
    assert "plots/ratio.png" in text and (tmp_path / "plots" / "ratio.png").read_bytes() == report.plots[0].png
    assert not re.findall(r"https?://|<script|<link", page)
    assert page.count("data:image/png;base64,") == 1


def test_numbers_are_plain_json(report, tmp_path):
    write(report, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert content["numbers"] == {"ratio": 0.5, "all": [0, 1], "nothing": None, "none": "nan"}
    assert content["command"] == "steer variance blobs" and "torch" in content["environment"]["packages"]


def test_the_terminal_shows_tables_answer_and_cautions_but_no_details(report):
    console = Console(record=True, width=100, quiet=False)
    show(report, console)
    text = console.export_text()
    assert all(part in text for part in ("Ratios", "It varies less & more.", "First.", "caution: Few samples."))
    assert "Settings" not in text


def test_what_was_written_reads_back_also_from_before_there_were_details(report, tmp_path):
    write(report, tmp_path)
    again = read(tmp_path)
    assert replace(again, numbers={}, environment={}) == replace(report, numbers={})
    content = json.loads((tmp_path / "report.json").read_text())
    del content["details"], content["config"]
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert read(tmp_path).details == [] and read(tmp_path).grids == report.grids


def test_a_folder_without_a_report_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no complete report"):
        read(tmp_path)


def test_a_plot_outside_the_folder_is_neither_read_nor_written(report, tmp_path):
    write(report, tmp_path / "made")
    (tmp_path / "secret.png").write_bytes(b"secret")
    content = json.loads((tmp_path / "made" / "report.json").read_text())
    for name in ("../../secret", "/tmp/secret", "a/b"):
        content["plots"][0]["name"] = name
        (tmp_path / "made" / "report.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"holds no complete report .* a plot named"):
            read(tmp_path / "made")


def test_a_long_list_of_cautions_is_folded_but_complete(report, tmp_path):
    page = write(replace(report, cautions=[f"caution {i}" for i in range(9)]), tmp_path).read_text()
    assert "<summary>3 more</summary>" in page
    assert all(f"<li>caution {i}</li>" in page for i in range(9))


def test_several_reports_become_one(report, tmp_path):
    join([report, report], "Both", "steer report a b", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("It varies less &amp; more.") == 2 + 2 and page.count("data:image/png;base64,") == 2
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"1-ratio.png", "2-ratio.png"}
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Both") and "plots/2-ratio.png" in text and text.count("## Variance of blobs") == 2
    assert len(json.loads((tmp_path / "report.json").read_text())["reports"]) == 2
