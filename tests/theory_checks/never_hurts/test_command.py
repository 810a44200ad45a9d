"""``steer never-hurts`` as it is typed: what it trains, how it goes on, and what its table marks."""

import json
import sys

import pytest
from rich.console import Console

from steering import UserError
from steering.reports.grid import MINUS
from steering.theory_checks.never_hurts.command import execute, run
from steering.theory_checks.never_hurts.plan import AUTO, FOLDS, PLAIN, Cell, planned
from steering.theory_checks.never_hurts.report import HINDSIGHT, Analysis, report, seeds_table
from steering.theory_checks.never_hurts.units import Outcome, units

QUIET = Console(quiet=True)


def small(seeds=2, **cell):
    """Two cells of trainings of three steps."""
    options = {"samples": 40, "reference_samples": 60, **cell}
    plan = planned(seeds=seeds, first_seed=200, quick=True, folds=2)
    recipe = plan.recipe.model_copy(update={"steps": 3})
    made = {name: Cell(options={**options, "reference_kind": name}, decay=0.1) for name in ("own", "shuffled")}
    return plan.model_copy(update={"cells": made, "recipe": recipe})


def written(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in (folder / "parts").rglob("*.json")}


@pytest.mark.slow
def test_what_is_there_is_not_trained_again_and_what_is_missing_is_made_alike(tmp_path):
    whole = execute(small(), tmp_path, jobs=1, console=QUIET)
    before = written(tmp_path)
    assert len(before) == 4
    gone = tmp_path / "parts/own/seed201.json"
    old = json.loads(gone.read_text())
    gone.unlink()
    again = execute(small(seeds=3), tmp_path, jobs=1, console=QUIET)
    after = written(tmp_path)
    assert len(after) == 6 and all(after[path] == before[path] for path in before if path.name != gone.name)
    new = json.loads(gone.read_text())
    assert new["errors"] == old["errors"] and again.outcomes["own", 200] == whole.outcomes["own", 200]
    with pytest.raises(UserError, match="holds a study with other cells: choose another --out"):
        execute(small(samples=50), tmp_path, jobs=1, console=QUIET)


@pytest.mark.slow
def test_the_quick_study_writes_table_report_and_every_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["steer", "never-hurts", "--quick"])
    run(seeds=None, first_seed=200, quick=True, jobs=1, out=tmp_path)
    assert "Gains over plain training, 2 seeds" in capsys.readouterr().out
    lines = (tmp_path / "errors.csv").read_text().splitlines()
    assert lines[0] == "cell,seed,arm,error" and len(lines) == 1 + 3 * 2 * 5
    assert set(json.loads((tmp_path / "report.json").read_text())["numbers"]["mean_gain"]) >= {AUTO, FOLDS, HINDSIGHT}


def test_early_seeds_are_whole():
    assert [(unit.seed, unit.cell) for unit in units(small())][:2] == [(200, "own"), (200, "shuffled")]


def test_a_damaged_plan_is_named(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        execute(small(), tmp_path, jobs=1, console=QUIET)


def test_every_losing_cell_is_marked():
    plan = small(seeds=3)
    gains = {
        AUTO: (0.02, 0.03, 0.04),
        FOLDS: (-0.001, -0.002, -0.0015),
        "kl_0.5": (-0.1, -0.11, -0.12),
        "kl_2": (0,) * 3,
    }
    outcomes = {
        (cell, seed): Outcome(
            errors={PLAIN: 0.3, **{arm: 0.3 - of_arm[seed - 200] for arm, of_arm in gains.items()}},
            sentences={AUTO: "", FOLDS: ""},
            seconds=1,
        )
        for cell in plan.cells
        for seed in plan.seed_numbers()
    }
    analysis = Analysis(plan, outcomes)
    assert analysis.losing(FOLDS) == ["own", "shuffled"] and not analysis.missing(FOLDS)
    assert analysis.missing("kl_0.5") == ["own", "shuffled"] and not analysis.losing(AUTO)
    made = report(analysis, "steer never-hurts")
    row = [cell.text for cell in made.grids[0].rows[0]]
    assert row[:2] == ["own", "30.0"] and row[2] == "+0.00", "plain training is a temperature without end"
    assert [text.rpartition(" ")[2] for text in row[3:6]] == ["MISSES", "2.48", "LOSES"]
    assert row[3].startswith(MINUS) and "own, shuffled" in made.verdict
    assert len(seeds_table(outcomes).splitlines()) == 1 + 2 * 3 * 5
