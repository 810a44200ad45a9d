"""Figures are drawn where there are data, and only there."""

import io
import math

import numpy as np
from PIL import Image

from steering.runs.plots import BINS, _appearances, _binned, _curves, draw


def names(plots):
    return [plot.name for plot in plots]


def test_every_figure_of_a_full_run(two_arms, records):
    plots = draw(two_arms([0.5, 0.6], [0.8, 0.9]), records)
    assert names(plots) == ["final", "learning", "concentration", "fact-wrong"]
    for plot in plots:
        image = Image.open(io.BytesIO(plot.png))
        assert image.width == 1400
        assert np.asarray(image.convert("L")).min() < 100, f"{plot.name} is blank"


def test_a_run_without_results_has_no_plots(run, arm):
    assert draw(run({"erm": arm([])}), []) == []


def test_evaluation_at_the_end_alone_is_no_learning_curve(two_arms, records):
    last = [line for line in records if "evaluation" in line and line["step"] == 100]
    assert names(draw(two_arms([0.5], [0.8]), last)) == ["final"]


def test_neither_a_dollar_sign_in_a_name_nor_a_diverged_arm_stops_the_others(run, arm):
    summary = run({"erm": arm([0.5, 0.6]), "$\\frac{": arm([0.5, 0.7]), "kl": arm([0.8, math.nan])})
    assert names(draw(summary, [])) == ["final"]


def test_one_seed_draws_no_interval(two_arms):
    assert "no interval" in draw(two_arms([0.5], [0.8]), [])[0].caption


def test_a_line_written_again_after_resuming_counts_once_and_a_curve_ends_where_the_first_seed_ends(run, arm):
    values = {0: [(1, 5.0), (1, 7.0), (2, 2.0), (3, 9.0)], 1: [(1, 3.0), (2, 4.0)]}
    lines = [{"arm": "a", "seed": seed, "step": x, "y": y} for seed, curve in values.items() for x, y in curve]
    positions, curves = _curves(run({"a": arm([])}), lines, "step", lambda r: r["y"])["a"]
    assert positions.tolist() == [1, 2] and curves.tolist() == [[7.0, 2.0], [3.0, 4.0]]


def test_neighbours_are_averaged_only_when_there_are_many():
    few, many = np.arange(BINS), np.arange(2 * BINS)
    assert _binned({"a": (few, few[None] % 2)})["a"][1].tolist() == [(few % 2).tolist()]
    assert _binned({"a": (many, many[None] % 2)})["a"][1].tolist() == [[0.5] * BINS]


def test_ten_arms_can_be_told_apart(run, arm):
    appearances = _appearances(run({f"arm{i}": arm([0.5]) for i in range(10)} | {"erm": arm([0.5])}))
    assert len({(one["color"], str(one["linestyle"])) for one in appearances.values()}) == 11
