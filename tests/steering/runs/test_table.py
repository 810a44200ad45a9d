"""The tables say what the summary holds, in the same rows everywhere."""

import io
import math

import pytest
from rich.console import Console

from steering.reports.grid import MISSING, to_markdown, to_rich
from steering.runs.summary import ArmSummary, Result, Summary
from steering.runs.table import (
    arms_table,
    differences_table,
    pairs,
    settings_table,
)
from steering.settings import Metric


def column(grid, name):
    index = [column.name for column in grid.columns].index(name)
    return [row[index].text for row in grid.rows]


def best(grid):
    return [row[0].text for row in grid.rows if any(cell.tone == "best" for cell in row)]


def shown(grid, width=200):
    out = io.StringIO()
    Console(width=width, file=out).print(to_rich(grid))
    return out.getvalue()


def test_a_summary_survives_json(two_arms):
    summary = two_arms([0.5, math.inf], [0.6, math.nan])
    again = Summary.model_validate_json(summary.model_dump_json())
    assert math.isnan(again.arms["kl"].results[1].metrics["accuracy"])
    assert again.model_dump_json() == summary.model_dump_json()


def test_shares_are_shown_times_100_with_chance_last(two_arms):
    """Accuracies 0.5, 0.6, 0.7: mean 60, half width 10 * 4.303 / sqrt(3) = 24.8."""
    grid = arms_table(two_arms([0.5, 0.6, 0.7], [0.8, 0.9, 0.85]))
    assert column(grid, "arm") == ["erm", "kl", "chance"]
    assert column(grid, "Accuracy, %")[0] == "60.0 \u00b1 24.8"
    assert column(grid, "Accuracy, %")[-1] == "10.0"
    assert column(grid, "wrong samples, %") == ["30.0", "30.0", ""]


def test_without_a_chance_level_there_is_no_row_for_it(run, arm):
    grid = arms_table(run({"erm": arm([0.5])}, {"accuracy": Metric(label="R2")}))
    assert column(grid, "arm") == ["erm"]


def test_one_seed_shows_no_plus_minus(two_arms):
    summary = two_arms([0.5], [0.8])
    text = shown(arms_table(summary))
    assert "\u00b1" not in text and "no interval" in text
    assert differences_table(summary) is None


def test_the_best_of_a_loss_is_the_lowest(run, arm):
    arms = {"erm": arm([2.0, 2.1]), "kl": arm([1.0, 1.1])}
    assert best(arms_table(run(arms, {"accuracy": Metric(label="Loss", better="low")}))) == ["kl"]
    assert best(arms_table(run(arms, {"accuracy": Metric(label="Gain")}))) == ["erm"]


def test_means_that_print_alike_are_all_best(two_arms):
    assert best(arms_table(two_arms([0.50001], [0.50004]))) == ["erm", "kl"]


def test_a_diverged_arm_is_never_best(two_arms):
    grid = arms_table(two_arms([0.5, 0.4], [0.9, math.nan]))
    assert column(grid, "Accuracy, %")[1] == "nan"
    assert best(grid) == []


def test_the_reference_trained_on_nothing_here(run, arm):
    arms = {"reference": arm([0.9], kind="reference", rule=None, samples=0), "erm": arm([0.5])}
    assert column(arms_table(run(arms)), "samples trained on") == [MISSING, "1,280", ""]


def test_samples_scored_are_told_where_a_selector_saw_more(run, arm):
    picky = Result(seed=0, metrics={"accuracy": 0.6}, samples=1280, candidates=12800)
    arms = {"erm": arm([0.5]), "rho_loss": ArmSummary(selector="rho_loss(keep=0.1)", results=[picky])}
    assert column(arms_table(run(arms)), "samples scored") == ["1,280", "12,800", ""]
    assert "samples scored" not in shown(arms_table(run({"erm": arm([0.5])})))


def test_an_arm_without_results_keeps_its_row(run, arm):
    grid = arms_table(run({"erm": arm([0.5, 0.6]), "kl": arm([])}))
    assert column(grid, "Accuracy, %")[1] == MISSING
    assert column(grid, "seeds") == ["2", "0", ""]


def test_differences_are_paired_by_seed_not_by_position(run, arm):
    """Seed 0 of kl is missing; by position its 0.7 would meet erm's 0.1."""
    late = [Result(seed=s, metrics={"accuracy": v}) for s, v in ((2, 0.8), (1, 0.7))]
    steered = ArmSummary(rule="kl", subtract=True, results=late)
    gain = run({"erm": arm([0.1, 0.5, 0.61]), "kl": steered}).gain("kl", "erm")
    assert gain.seeds == 2 and gain.mean == pytest.approx(0.195)


def test_the_verdict_follows_the_interval(two_arms):
    cases = {"better": [0.6, 0.61, 0.62], "worse": [0.4, 0.41, 0.42], "undecided": [0.4, 0.5, 0.6]}
    for verdict, kl in cases.items():
        assert column(differences_table(two_arms([0.5, 0.505, 0.5], kl)), "verdict") == [verdict]


def test_every_steered_arm_meets_every_one_that_is_not(run, arm):
    """subtract alone is no steering (uniform weights ignore it), nor is a selector blind to the reference."""
    arms = {
        "reference": arm([0.9], kind="reference", rule=None),
        "erm": arm([0.5]),
        "shifted": arm([0.5], rule="uniform", subtract=True),
        "dro": arm([0.5], rule="kl(rho=80)"),
        "hard": arm([0.5], selector="hardest()", selector_uses_reference=False),
        "kl": arm([0.5], rule="kl(rho=80)", subtract=True),
        "jest": arm([0.5], selector="jest()"),
    }
    against_baseline = {(name, "erm") for name in arms if name not in ("reference", "erm")}
    steered = {(a, b) for a in ("kl", "jest") for b in ("reference", "shifted", "dro", "hard")}
    compared = pairs(run(arms))
    assert set(compared) == against_baseline | steered
    assert len(compared) == len(set(compared))


def test_a_scale_without_effect_is_not_shown(run, arm):
    """Uniform weights ignore the reference, whatever was subtracted."""
    scaled = [Result(seed=0, metrics={"accuracy": 0.5}, scale=0.7)]
    arms = {
        "erm": ArmSummary(rule="uniform", subtract=True, results=scaled),
        "kl": ArmSummary(rule="kl(rho=80)", subtract=True, results=scaled),
    }
    grid = settings_table(run(arms))
    assert column(grid, "uses the reference") == ["no", "yes"]
    assert column(grid, "reference scale") == [MISSING, "0.70"]


def test_markdown_and_terminal_hold_the_same_cells(two_arms):
    summary = two_arms([0.5, 0.6], [0.8, 0.9])
    for grid in filter(None, (arms_table(summary), differences_table(summary), settings_table(summary))):
        cells = [cell.text for row in grid.rows for cell in row]
        assert all(text in shown(grid) and text in to_markdown(grid) for text in cells)


def test_names_are_not_markup(run, arm):
    summary = run({"erm": arm([0.5]), "[red]a|b": arm([0.6])})
    assert "[red]a|b" in shown(arms_table(summary))
    assert "[red]a\\|b" in to_markdown(arms_table(summary))


def test_a_narrow_terminal_breaks_no_number(two_arms):
    text = shown(arms_table(two_arms([0.5, 0.6, 0.7], [0.8, 0.9, 0.85])), width=70)
    assert "60.0 \u00b1 24.8" in text
