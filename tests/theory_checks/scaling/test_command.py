"""``steer scaling`` from the command line to the report."""

import json

import pytest
from report_pages import shown

from steering import UserError
from steering.reports.report import read
from steering.theory_checks.scaling.command import run

USUAL = {
    "csv": None,
    "subset_name": None,
    "conditions": (),
    "baseline": None,
    "unit": "samples",
    "metric": None,
    "seed": 0,
}


def reported(tmp_path, *runs, **options) -> dict:
    run(runs, **(USUAL | {"out": tmp_path / "out"} | options))
    return json.loads((tmp_path / "out" / "report.json").read_text())


def table(tmp_path, methods=("erm", "ours", "theirs")):
    rows = [
        f"{m},{10**k},{2 * 10 ** (-k * (0.2 + 0.1 * index))}" for index, m in enumerate(methods) for k in range(1, 6)
    ]
    path = tmp_path / "points.csv"
    path.write_text("\n".join(["method,compute,error", *rows]))
    return path


def test_without_arguments_the_published_points_are_fitted_twice_and_judged_twice(tmp_path):
    content = reported(tmp_path)
    assert list(content["numbers"]["subsets"]) == ["published-six", "all"]
    assert "undecided on published-six" in content["verdict"] and "steeper on all" in content["verdict"]
    assert any("comes with the size of the model" in sentence for sentence in content["findings"])
    made = read(tmp_path / "out")
    assert [plot.name for plot in made.plots] == ["laws", "gaps"] and "docs/scaling.md" in shown(made)


def test_a_named_subset_is_fitted_alone(tmp_path):
    assert list(reported(tmp_path, subset_name="all")["numbers"]["subsets"]) == ["all"]


def test_conditions_are_named_in_the_report(tmp_path):
    content = reported(tmp_path, conditions=("model=ViT-B/32", "samples>=6e8"))
    assert list(content["numbers"]["subsets"]) == ["model=ViT-B/32 and samples>=6e8"]


def test_every_method_of_a_file_is_compared_with_the_baseline(tmp_path):
    gaps = reported(tmp_path, csv=table(tmp_path))["numbers"]["subsets"]["all points"]["gaps"]
    assert {method: rows[0]["value"] for method, rows in gaps.items()} == {
        "ours": pytest.approx(0.1),
        "theirs": pytest.approx(0.2),
    }
    gaps = reported(tmp_path, csv=table(tmp_path), baseline="ours")["numbers"]["subsets"]["all points"]["gaps"]
    assert gaps["erm"][0]["value"] == pytest.approx(-0.1)


def test_one_method_alone_has_a_law_and_no_comparison(tmp_path):
    content = reported(tmp_path, csv=table(tmp_path, ("erm",)))
    assert "The error of erm falls" in content["verdict"]
    assert content["numbers"]["subsets"]["all points"]["gaps"] == {}


def test_an_error_that_does_not_fall_is_no_law_and_saves_no_compute(tmp_path):
    path = tmp_path / "flat.csv"
    errors = {"erm": (0.2, 0.1, 0.2, 0.15), "ours": (0.1, 0.2, 0.1, 0.15)}
    rows = [f"{method},{10**index},{error}" for method, line in errors.items() for index, error in enumerate(line)]
    path.write_text("\n".join(["method,compute,error", *rows]))
    content = reported(tmp_path, csv=path)
    assert any("erm, ours does not clearly fall" in caution for caution in content["cautions"])
    assert not any("would need" in sentence for sentence in content["findings"])


def test_points_of_one_run_have_no_interval_and_the_report_says_why(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("method,compute,error,run\nerm,1,0.5,a\nerm,2,0.4,a\nerm,4,0.3,a\n")
    content = reported(tmp_path, csv=path)
    assert any("all points of erm are of one run" in caution for caution in content["cautions"])
    assert not any("does not clearly fall" in caution for caution in content["cautions"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"subset_name": "seven"}, "no subset 'seven'"),
        ({"subset_name": "all", "conditions": ("model=x",)}, "stands alone"),
        ({"conditions": ("model=x",)}, "no points are left of model=x"),
        ({"unit": "watts"}, "--compute takes samples or cpu, got 'watts'"),
        ({"baseline": "OpenCLIQ"}, "no points of the baseline 'OpenCLIQ'.*OpenCLIP"),
    ],
)
def test_a_wrong_option_is_explained(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        reported(tmp_path, **options)


def test_runs_and_a_file_do_not_go_together(tmp_path):
    with pytest.raises(UserError, match="not both"):
        reported(tmp_path, tmp_path, csv=table(tmp_path))
