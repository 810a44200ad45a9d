"""The certificate on the held-out losses of a run: which arms are no worse than their reference."""

from collections import Counter
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
class CertifiedModel:
    """One model of a run."""

    arm: str
    seed: int
    certificate: Certificate  # what its held-out losses say
    covered: Estimate  # share of sets drawn from its differences whose certificate reaches their mean


def certified(folder: Path, width: float | None) -> list[CertifiedModel]:
    """Certificates of every arm and seed of a finished run; ``width`` is of an interval that holds all differences.

    Raises:
        UserError: no run, not finished, or its task has no held-out losses for single samples.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    config = configs.load(folder / "config.yaml")
    task: Task = registry.build("tasks", config.task, config.options)
    models = []
    for seed in range(config.recipe.seeds):
        seeded = task.seeded(seed)
        batches = held_out(seeded)
        baseline = _losses(folder, score(seeded, seeded.reference(), batches))
        for arm in config.recipe.arms:
            model = of_run(folder, config, seeded, arm, seed, torch.device("cpu"))
            differences = _losses(folder, score(seeded, model, batches)) - baseline
            covered = _covered(differences, width, np.random.default_rng(derive(seed, "certificate", arm)))
            models.append(CertifiedModel(arm, seed, certificate(differences, DELTA, width), covered))
    return models


def _losses(folder: Path, scored: object) -> Array:
    """``[n]`` independent losses."""
    if not isinstance(scored, Scored) or scored.rows is not None:
        raise UserError(f"{folder} has losses of pairs or rows, which depend on each other: no certificate for those")
    return np.asarray(scored.losses, dtype=float)


def _covered(differences: Array, width: float | None, rng: np.random.Generator) -> Estimate:
    """Coverage if the held-out differences were the whole population."""
    drawn = rng.choice(differences, (DRAWS, len(differences)))
    return share(sum(certificate(row, DELTA, width).upper >= differences.mean() for row in drawn), DRAWS)


def report(models: list[CertifiedModel], folder: Path, command: str) -> Report:
    """Puts the certificates of a run into words."""
    better = Counter(model.arm for model in models if model.certificate.better)
    seeds = len({model.seed for model in models})
    counts = ", ".join(f"{arm} in {count} of {seeds}" for arm, count in better.items())
    least = min(models, key=lambda model: model.covered.value)
    cautions = []
    if least.covered.value < 1 - DELTA - 0.015:
        cautions.append(
            f"The differences have heavy tails: with {least.arm}, seed {least.seed}, as the whole truth, the "
            f"certificate would cover it in {100 * least.covered.value:.1f} % of held-out sets instead of 95."
        )
    return Report(
        title="Certificates: no worse than the reference",
        question=f"Which models of {folder} are, with probability 95 % each, no worse than the reference?",
        verdict=f"Certified: {counts} seeds." if better else "No model is certified to be no worse than its reference.",
        command=command,
        cautions=cautions,
        grids=[_grid(models)],
        method=[
            f"Losses of target and reference on the same {models[0].certificate.samples} held-out samples a seed. "
            "Every row holds with probability 95 % by itself, for the loss and not for the error rate; where it is "
            "void is explained in docs/bound.md of model-steering."
        ],
        numbers={
            "models": [
                {"arm": model.arm, "seed": model.seed, **vars(model.certificate), "covered": vars(model.covered)}
                for model in models
            ]
        },
    )


def _grid(models: list[CertifiedModel]) -> Grid:
    columns = (Column("arm", False), Column("seed"), Column("mean difference"), Column("upper bound"))
    columns += (Column("verdict", False), Column("coverage"))
    rows = []
    for model in models:
        bound = model.certificate
        tone: Tone = "better" if bound.better else "undecided" if bound.mean < 0 else "quiet"
        numbers = (f"{value:+.4f}".replace("-", MINUS) for value in (bound.mean, bound.upper))
        verdict = Cell("no worse" if bound.better else "not certified", tone)
        covered = f"{100 * model.covered.value:.1f} %"
        rows.append((Cell(model.arm), Cell(str(model.seed)), *map(Cell, numbers), verdict, Cell(covered)))
    note = f"Bounds: {models[0].certificate.kind}, each with probability 95 %."
    return Grid("Target's loss minus the reference's, held out", columns, tuple(rows), note)
