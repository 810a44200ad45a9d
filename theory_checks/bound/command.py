"""``steer bound``: the simulations, or the certificates of a run on its held-out losses, and their report."""

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from steering.errors import UserError
from steering.reports.grid import Cell, Grid, Tone, number
from steering.reports.report import Report, show, write
from steering.runs import config as configs
from steering.runs.folder import Interrupts, new_folder
from steering.theory_checks.bound.certificate import certificate
from steering.theory_checks.bound.claims import share
from steering.theory_checks.bound.report import report
from steering.theory_checks.bound.study import QUICK, Extent, study
from steering.theory_checks.bound.tightness import DELTA
from steering.theory_checks.variance.bench import Scored, held_out, of_run, score
from steering.training.seeds import derive

DRAWS = 2000  # held-out sets drawn from the differences, to see whether their tails allow the certificate


def run(*, run_folder: Path | None, width: float | None, quick: bool, seed: int, out: Path | None) -> None:
    """Simulates, or certifies the models of a run; the arguments are the options of ``steer bound``.

    Raises:
        UserError: options that do not go together.
        Stopped: SIGINT or SIGTERM came; nothing was written.
    """
    torch.set_num_threads(1)  # of rows this short, threads only cost
    console = Console(soft_wrap=not sys.stdout.isatty(), markup=False, highlight=False)
    if run_folder is None and width is not None:
        raise UserError("--width bounds the differences of a run's losses: give it together with --run")
    command = shlex.join(["steer", *sys.argv[1:]])

    def say(line: str) -> None:
        console.print(line)
        sys.stdout.flush()

    with Interrupts("nothing was written: the same command starts anew"):
        if run_folder is None:
            made = report(study(QUICK if quick else Extent(), seed, lambda part: say(f"simulating: {part}")), command)
        else:
            made = of_models(certified(run_folder, width), run_folder, command)
    show(made, console, write(made, out or new_folder("bound" if run_folder is None else "bound-run")))


def certified(folder: Path, width: float | None) -> list[dict[str, Any]]:
    """Certificates of every arm and seed of a finished run; ``width`` is of an interval that holds all differences.

    Returns:
        Of each model ``arm``, ``seed``, the fields of its ``Certificate``, and ``covered``: the share of sets drawn
        from its differences, as if they were the whole population, whose certificate reaches their mean.

    Raises:
        UserError: no run, not finished, or its task has no held-out losses for single samples.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    config, task = configs.resolve(None, file=folder / "config.yaml")

    def losses(scored: object) -> np.ndarray:
        if not isinstance(scored, Scored) or scored.rows is not None:
            raise UserError(
                f"{folder} has losses of pairs or rows, which depend on each other: no certificate for those"
            )
        return np.asarray(scored.losses, dtype=float)

    models = []
    for seed in range(config.recipe.seeds):
        seeded = task.seeded(seed)
        batches = held_out(seeded)
        baseline = losses(score(seeded, seeded.reference(), batches))
        for arm in config.recipe.arms:
            model = of_run(folder, config, seeded, arm, seed, torch.device("cpu"))
            differences = losses(score(seeded, model, batches)) - baseline
            rng = np.random.default_rng(derive(seed, "certificate", arm))
            drawn = rng.choice(differences, (DRAWS, len(differences)))
            hits = int(sum(certificate(row, DELTA, width).upper >= differences.mean() for row in drawn))
            about = vars(certificate(differences, DELTA, width)) | {"covered": share(hits, DRAWS)}
            models.append({"arm": arm, "seed": seed, **about})
    return models


def of_models(models: list[dict[str, Any]], folder: Path, command: str) -> Report:
    """Puts the certificates of a run into words."""
    better = Counter(model["arm"] for model in models if model["upper"] <= 0)
    seeds = len({model["seed"] for model in models})
    counts = ", ".join(f"{arm} in {count} of {seeds}" for arm, count in better.items())
    least = min(models, key=lambda model: model["covered"].value)
    caution = (
        f"The differences have heavy tails: with {least['arm']}, seed {least['seed']}, as the whole truth, the "
        f"certificate would cover it in {100 * least['covered'].value:.1f} % of held-out sets instead of 95."
    )
    rows = []
    for model in models:
        tone: Tone = "better" if model["upper"] <= 0 else "undecided" if model["mean"] < 0 else "quiet"
        verdict = Cell("no worse" if model["upper"] <= 0 else "not certified", tone)
        bounds = (number(model[name], 4, sign=True) for name in ("mean", "upper"))
        rows.append([model["arm"], str(model["seed"]), *bounds, verdict, f"{100 * model['covered'].value:.1f} %"])
    heads = ["seed", "mean difference", "upper bound", "verdict", "coverage"]
    note = f"Bounds: {models[0]['kind']}, each with probability 95 %."
    return Report(
        title="Certificates: no worse than the reference",
        question=f"Which models of {folder} are, with probability 95 % each, no worse than the reference?",
        verdict=f"Certified: {counts} seeds." if better else "No model is certified to be no worse than its reference.",
        command=command,
        cautions=[caution] * (least["covered"].value < 1 - DELTA - 0.015),
        grids=[Grid.of("Target's loss minus the reference's, held out", ["arm"], heads, rows, note)],
        method=[
            f"Losses of target and reference on the same {models[0]['samples']} held-out samples a seed. "
            "Every row holds with probability 95 % by itself, for the loss and not for the error rate; where it is "
            "void is explained in docs/bound.md of model-steering."
        ],
        numbers={"models": models},
    )
