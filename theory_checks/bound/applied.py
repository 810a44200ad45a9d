"""The certificate on the held-out losses of a run: which arms are no worse than their reference."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from steering import registry
from steering.errors import UserError
from steering.reports.grid import MINUS, Cell, Column, Grid, Tone
from steering.reports.report import Report
from steering.runs import config as configs
from steering.task import Task
from steering.theory_checks.bootstrap import Estimate
from steering.theory_checks.bound.atoms import Array
from steering.theory_checks.bound.certificate import Certificate, certificate
from steering.theory_checks.bound.claims import share
from steering.theory_checks.bound.tightness import DELTA
from steering.theory_checks.variance.losses import Scored, held_out, score
from steering.theory_checks.variance.models import of_run
from steering.training.seeds import derive

DRAWS = 2000  # held-out sets drawn from the differences, to see whether their tails allow the certificate


@dataclass(frozen=True)
class Certified:
    """One model of a run.

    Attributes:
        arm, seed: which.
        given: its certificate.
        covered: share of sets drawn from its own differences whose certificate reaches their mean.
    """

    arm: str
    seed: int
    given: Certificate
    covered: Estimate


def certified(folder: Path, width: float | None) -> list[Certified]:
    """Certificates of every arm and seed of a finished run.

    Args:
        folder: of the run.
        width: of an interval that holds all differences of losses; None if there is none.

    Raises:
        UserError: no run, not finished, or its task has no held-out losses for single samples.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    config = configs.load(folder / "config.yaml")
    task: Task = registry.build("tasks", config.task, config.options)
    found = []
    for seed in range(config.recipe.seeds):
        drawn = task.seeded(seed)
        batches = held_out(drawn)
        baseline = _losses(folder, score(drawn, drawn.reference(), batches))
        for arm in config.recipe.arms:
            model = of_run(folder, config, drawn, arm, seed, torch.device("cpu"))
            differences = _losses(folder, score(drawn, model, batches)) - baseline
            covered = _covered(differences, width, np.random.default_rng(derive(seed, "certificate", arm)))
            found.append(Certified(arm, seed, certificate(differences, DELTA, width), covered))
    return found


def _losses(folder: Path, scored: object) -> Array:
    """``[n]`` independent losses."""
    if not isinstance(scored, Scored) or scored.rows is not None:
        raise UserError(f"{folder} has losses of pairs or rows, which depend on each other: no certificate for those")
    return np.asarray(scored.losses, dtype=float)


def _covered(differences: Array, width: float | None, random: np.random.Generator) -> Estimate:
    """Coverage if the held-out differences were the whole population."""
    drawn = random.choice(differences, (DRAWS, len(differences)))
    return share(sum(certificate(row, DELTA, width).upper >= differences.mean() for row in drawn), DRAWS)


def report(found: list[Certified], folder: Path, command: str) -> Report:
    """Puts the certificates of a run into words."""
    better = [one for one in found if one.given.better]
    arms = list(dict.fromkeys(one.arm for one in found))
    counts = {arm: sum(one.given.better for one in found if one.arm == arm) for arm in arms}
    seeds = len(found) // len(arms)
    words = ", ".join(f"{arm} in {counts[arm]} of {seeds}" for arm in arms if counts[arm]) or "none"
    least = min(found, key=lambda one: one.covered.value)
    cautions = []
    if least.covered.value < 1 - DELTA - 0.015:
        cautions.append(
            f"The differences have heavy tails: with {least.arm}, seed {least.seed}, as the whole truth, the "
            f"certificate would cover it in {100 * least.covered.value:.1f} % of held-out sets instead of 95."
        )
    return Report(
        title="Certificates: no worse than the reference",
        question=f"Which models of {folder} are, with probability 95 % each, no worse than the reference?",
        verdict=f"Certified: {words} seeds." if better else "No model is certified to be no worse than its reference.",
        command=command,
        cautions=cautions,
        grids=[_grid(found)],
        method=[
            f"Losses of target and reference on the same {found[0].given.samples} held-out samples a seed, as the "
            "training data are and never trained on. 'empirical Bernstein': Maurer and Pontil 2009, theorem 4, with "
            "the given width; 'asymptotic': Student's quantile. Coverage: sets of the same size drawn from the "
            "differences themselves.",
        ],
        limits=[
            "It speaks of the loss, not of the error rate, and of the distribution of the held-out samples, noise "
            "included.",
            "It is void where the held-out samples chose the model or its settings, or trained the reference.",
            "Every row holds with probability 95 % by itself; all rows together with less.",
        ],
        numbers={
            "models": [
                {"arm": one.arm, "seed": one.seed, **vars(one.given), "covered": vars(one.covered)} for one in found
            ]
        },
    )


def _grid(found: list[Certified]) -> Grid:
    columns = (Column("arm", False), Column("seed"), Column("mean difference"), Column("upper bound"))
    columns += (Column("verdict", False), Column("coverage"))
    rows = []
    for one in found:
        tone: Tone = "better" if one.given.better else "undecided" if one.given.mean < 0 else "quiet"
        texts = (f"{one.given.mean:+.4f}".replace("-", MINUS), f"{one.given.upper:+.4f}".replace("-", MINUS))
        verdict = Cell("no worse" if one.given.better else "not certified", tone)
        covered = f"{100 * one.covered.value:.1f} %"
        rows.append((Cell(one.arm), Cell(str(one.seed)), *map(Cell, texts), verdict, Cell(covered)))
    note = f"Bounds: {found[0].given.kind}, each with probability 95 %."
    return Grid("Target's loss minus the reference's, held out", columns, tuple(rows), note)
