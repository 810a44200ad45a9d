"""``steer never-hurts``: the study from what was typed to its report."""

import shlex
import sys
from pathlib import Path

import torch
from rich.console import Console

from steering import atomic_files
from steering.errors import UserError
from steering.reports.report import show, write
from steering.runs.folder import RunFolder, new_folder
from steering.runs.progress import Watch
from steering.theory_checks.never_hurts.plan import SEEDS, Plan, planned
from steering.theory_checks.never_hurts.report import Analysis, report, seeds_table
from steering.theory_checks.never_hurts.units import Outcome, units
from steering.theory_checks.parts import make_all

QUICK_SEEDS = 2


def run(*, seeds: int | None, first_seed: int, quick: bool, jobs: int, out: Path | None) -> None:
    """Trains what is not trained yet and writes the report."""
    torch.set_num_threads(1)
    plan = planned(seeds=seeds or (QUICK_SEEDS if quick else SEEDS), first_seed=first_seed, quick=quick)
    folder = out or new_folder("never-hurts")
    console = Console(soft_wrap=not sys.stdout.isatty())
    analysis = execute(plan, folder, jobs=jobs, console=console)
    made = report(analysis, shlex.join(["steer", *sys.argv[1:]]))
    atomic_files.write(folder / "errors.csv", seeds_table(analysis.outcomes))
    show(made, console, write(made, folder))


def execute(plan: Plan, folder: Path, *, jobs: int, console: Console) -> Analysis:
    """Trains the cells and seeds that the folder does not have yet."""
    todo = units(plan)
    opened = RunFolder.open(folder, settings="plan.json", compare=lambda path: _settings(plan, path))
    with opened, Watch(console, total_steps=len(todo)) as watch:
        outcomes = make_all(plan, todo, Outcome, folder, jobs=jobs, watch=watch)
    return Analysis(plan, {(unit.cell, unit.seed): outcome for unit, outcome in zip(todo, outcomes, strict=True)})


def _settings(plan: Plan, path: Path) -> str:
    """The text of plan.json, unless the one that is there is of other trainings; there may be more seeds."""
    if path.exists():
        try:
            old = Plan.model_validate_json(path.read_text())
        except ValueError:
            raise UserError(f"{path} is damaged, or of another version: choose another --out") from None
        changed = [name for name in type(plan).model_fields if name not in ("seeds", "first_seed")]
        changed = [name for name in changed if getattr(old, name) != getattr(plan, name)]
        if changed:
            raise UserError(f"{path.parent} holds a study with other {', '.join(changed)}: choose another --out")
    return plan.model_dump_json(indent=1) + "\n"
