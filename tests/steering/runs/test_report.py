"""The report of a run says no more than the numbers do, on one page that needs nothing else."""

import re
from html.parser import HTMLParser

import pytest
from report_pages import shown

from steering.errors import RunError
from steering.runs.report import as_report, duration, sentences, write_report
from steering.task import Exhibit


class Links(HTMLParser):
    """Collects everything a browser would fetch or run."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "poster")]


def test_a_full_report_is_one_page_without_network_and_with_escaped_names(tmp_path, two_arms, records):
    (tmp_path / "config.yaml").write_text("batch: 64 # <i>&\n")
    (tmp_path / "environment.json").write_text('{"packages": {"torch": "2.6"}, "devices": [], "cuda": null}')
    summary = two_arms([0.5, 0.52, 0.49], [0.8, 0.9, 0.85]).model_copy(update={"cautions": ["mind the <gap>"]})
    exhibit = Exhibit("Gallery <b>", 'a "<script>alert(1)</script>" cat\nand a dog', b"\x89PNG")
    page = write_report(tmp_path, summary, records, [exhibit]).read_text()
    links = Links()
    links.feed(page)
    assert len(links.addresses) == 5  # four plots, one exhibit
    assert all(address.startswith("data:image/png;base64,") for address in links.addresses)
    assert not links.tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert not re.search(r"https?:|url\(|@import", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script" not in page
    for text in ("Gallery &lt;b&gt;", "mind the &lt;gap&gt;", "&lt;i&gt;&amp;", "kl(<wbr>rho=80)", "steer run digits"):
        assert text in page
    assert "torch 2.6" in page and "<td>none</td>" in page
    shown(as_report(summary))
    assert (tmp_path / "plots" / "final.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_without_anything_but_numbers_has_no_empty_sections(tmp_path, run, arm):
    page = write_report(tmp_path, run({"erm": arm([])}, skipped={"no picture": 2})).read_text()
    assert not re.search("Figures|Exhibits|Environment|How it was measured|cannot tell", page)
    assert "2 samples left out: no picture" in page


def test_a_failed_write_leaves_the_old_report(tmp_path, two_arms, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "no space left on device")

    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr("steering.runs.plots.draw", lambda *_: [])
    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(RunError, match="no space"):
        write_report(tmp_path, two_arms([0.5], [0.6]))
    assert (tmp_path / "report.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_one_seed_claims_no_interval(two_arms):
    (line,) = sentences(two_arms([0.5], [0.9]))
    assert line.startswith("One seed gives no interval, so nothing is decided") and "90.0 %" in line
    assert "better" not in line


def test_a_difference_is_told_with_its_interval_and_decided_where_that_leaves_out_zero(two_arms):
    """Differences 0.1, 0.2, 0.3: 20 points, half width 10 * 4.303 / sqrt(3) = 24.84."""
    (line,) = sentences(two_arms([0.1, 0.1, 0.1], [0.2, 0.3, 0.4]))
    assert line.startswith("kl against the baseline erm is undecided") and "\u22124.84 to +44.84" in line
    assert "covers zero" in line and "better" not in line
    (line,) = sentences(two_arms([0.1, 0.1, 0.1], [0.4, 0.5, 0.45]))
    assert line.startswith("kl is better than the baseline erm in Accuracy: 45.0 % against 10.0 %")
    assert "a gain of +35.00 points" in line and "3 seeds" in line
    (line,) = sentences(two_arms([0.9, 0.91, 0.92], [0.5, 0.52, 0.51]))
    assert line.startswith("kl is worse than the baseline erm")


def test_many_arms_are_counted_before_one_is_praised(run, arm):
    steered = {"rule": "kl(rho=80)", "subtract": True}
    arms = {
        "reference": arm([0.8, 0.81, 0.8], kind="reference", rule=None),
        "erm": arm([0.5, 0.51, 0.52]),
        "dro": arm([0.7, 0.71, 0.7], rule="kl(rho=80)"),
        "good": arm([0.7, 0.73, 0.69], **steered),
        "bad": arm([0.3, 0.33, 0.32], **steered),
    }
    lines = sentences(run(arms))
    assert lines[0] == "Of 2 steered arms against the baseline erm in Accuracy, 1 is better and 1 is worse."
    assert lines[1].startswith("good is better than the baseline erm")
    assert lines[2].startswith("good against dro, the best arm without the reference, is undecided")
    assert lines[3].startswith("good is worse than the reference itself")
    assert "flatters" in lines[4]


def test_seeds_that_repeat_one_another_decide_nothing(two_arms):
    (line,) = sentences(two_arms([0.5, 0.5], [0.6, 0.6]))
    assert "is undecided" in line and "the same in every seed" in line


def test_an_arm_alone_is_compared_with_nothing(run, arm):
    assert sentences(run({"erm": arm([0.5, 0.6])})) == ["Accuracy: there is no pair of arms to compare."]


def test_durations_are_told_in_two_units():
    texts = ["7.0 s", "60.0 s", "12 min 34 s", "2 h 1 min"]
    assert [duration(seconds) for seconds in (7.04, 59.99, 754, 7260)] == texts
