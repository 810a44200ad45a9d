"""The report is one file that says no more than the numbers do."""

import re
from html.parser import HTMLParser

import pytest

from steering.errors import RunError
from steering.runs.report import duration, sentences, write_report
from steering.task import Exhibit


@pytest.fixture
def written(tmp_path, two_arms, records):
    """A full report, as text."""
    (tmp_path / "config.yaml").write_text("batch: 64 # <i>&\n")
    summary = two_arms([0.5, 0.52, 0.49], [0.8, 0.9, 0.85]).model_copy(update={"cautions": ["mind the <gap>"]})
    exhibit = Exhibit("Gallery <b>", 'a "<script>alert(1)</script>" cat\nand a dog', b"\x89PNG")
    return write_report(tmp_path, summary, records, [exhibit]).read_text()


class Links(HTMLParser):
    """Collects whatever a browser would fetch or run."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "poster")]


@pytest.mark.slow
def test_a_report_needs_no_network(written):
    links = Links()
    links.feed(written)
    assert len(links.addresses) == 5  # four figures, one exhibit
    assert all(address.startswith("data:image/png;base64,") for address in links.addresses)
    assert not links.tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert not re.search(r"https?:|url\(|@import", written)


@pytest.mark.slow
def test_a_caption_with_html_is_escaped(written):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written and "<script" not in written
    assert "Gallery &lt;b&gt;" in written
    assert "mind the &lt;gap&gt;" in written
    assert "&lt;i&gt;&amp;" in written
    assert "kl(<wbr>rho=80)" in written


def test_settings_and_machine_are_told(tmp_path, run, arm):
    (tmp_path / "config.yaml").write_text("batch: 64")
    (tmp_path / "environment.json").write_text('{"packages": {"torch": "2.6"}, "devices": [], "cuda": null}')
    page = write_report(tmp_path, run({"erm": arm([])})).read_text()
    assert all(words in page for words in ("steer run digits", "batch: 64", "torch 2.6", "<td>none</td>"))


def test_a_report_without_anything_but_numbers(tmp_path, run, arm):
    page = write_report(tmp_path, run({"erm": arm([])})).read_text()
    assert "Figures" not in page and "Exhibits" not in page and "Environment" not in page


def test_the_figures_are_files_too(tmp_path, two_arms):
    write_report(tmp_path, two_arms([0.5], [0.6]))
    assert (tmp_path / "plots" / "final.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_write_leaves_the_old_report(tmp_path, two_arms, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "no space left on device")

    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr("steering.runs.report.draw", lambda *_: [])
    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(RunError, match="no space"):
        write_report(tmp_path, two_arms([0.5], [0.6]))
    assert (tmp_path / "report.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_long_list_of_cautions_is_folded_but_whole(tmp_path, run, arm):
    summary = run({"erm": arm([])}, cautions=[f"caution {i}" for i in range(9)])
    page = write_report(tmp_path, summary).read_text()
    assert "<summary>3 more</summary>" in page
    assert all(f"<li>caution {i}</li>" in page for i in range(9))


def test_one_seed_claims_no_interval(two_arms):
    (line,) = sentences(two_arms([0.5], [0.9]))
    assert line.startswith("One seed gives no interval, so nothing is decided") and "90.0 %" in line
    assert "better" not in line


def test_an_interval_over_zero_is_called_undecided(two_arms):
    (line,) = sentences(two_arms([0.5, 0.6, 0.7], [0.6, 0.5, 0.75]))
    assert line.startswith("kl against the baseline erm is undecided") and "covers zero" in line
    assert "better" not in line


def test_a_decided_difference_is_told_with_its_interval(two_arms):
    """Differences 0.1, 0.2, 0.3: 20 points, half width 10 * 4.303 / sqrt(3) = 24.84."""
    (open_line,) = sentences(two_arms([0.1, 0.1, 0.1], [0.2, 0.3, 0.4]))
    assert "undecided" in open_line and "\u22124.84 to +44.84" in open_line
    (line,) = sentences(two_arms([0.1, 0.1, 0.1], [0.4, 0.5, 0.45]))
    assert line.startswith("kl is better than the baseline erm in Accuracy: 45.0 % against 10.0 %")
    assert "a gain of +35.00 points" in line and "3 seeds" in line


def test_a_lost_comparison_is_told_as_one(two_arms):
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


@pytest.mark.parametrize(
    ("seconds", "words"), [(7.04, "7.0 s"), (59.99, "60.0 s"), (754, "12 min 34 s"), (7260, "2 h 1 min")]
)
def test_durations_are_told_in_two_units(seconds, words):
    assert duration(seconds) == words
