"""The search on a task of one's own, or on the models of a run: beta by held-out loss, then the task's own metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steering.curvature import replace_relus, set_beta
from steering.errors import UserError
from steering.reports.grid import Cell
from steering.runs import config as configs
from steering.runs.statistics import paired_difference
from steering.settings import Metric, Recipe
from steering.task import HeldOut, Task, exchange
from steering.theory_checks.curvature import section, small
from steering.theory_checks.curvature.small import CHUNK, choose, trained
from steering.theory_checks.variance import bench as trained_models
from steering.training.loop import evaluate
from steering.training.seeds import derive, untouched


@dataclass(frozen=True)
class Source:
    """Trained models, one a repetition."""

    name: str  # for the report
    task: Task  # of the run, or as the command names it
    recipe: Recipe  # they were trained with
    arm: str  # the method they were trained with
    seeds: list[int] | None  # repetitions there are; None where each is trained on demand
    model: Callable[[Task, int], nn.Module]  # of a repetition, from its task and number, in evaluation mode

    def __post_init__(self):
        """Says what is in the way before anything is trained."""
        if not isinstance(self.task, HeldOut):
            raise UserError(
                f"{type(self.task).__name__} has no held_out(batch), samples to choose beta on that are neither "
                "trained nor tested on: give the task that method"
            )
        with untouched():
            replace_relus(self.task.target())


def of_task(text: str, sets: Sequence[str], arm: str | None) -> Source:
    """Models that are trained here, by the task's own recipe, as a rule without a reference."""
    config, task = configs.resolve(text, sets=sets)
    recipe, name = config.recipe, _arm(config.recipe, arm)
    return Source(text, task, recipe, name, None, lambda drawn, seed: trained(drawn, recipe, seed, recipe.arms[name]))


def of_run(folder: Path, arm: str | None) -> Source:
    """Models of a run, from the checkpoints at its end; ``folder`` may be one ``checkpoint.pt`` of it.

    Raises:
        UserError: there is no such run, arm or checkpoint; ``model`` raises it where one is unfinished or misfits.
    """
    seeds: list[int] | None = None
    if folder.is_file():
        parents = folder.resolve().parents
        if len(parents) < 4 or not (parents[3] / "config.yaml").exists():
            raise UserError(f"{folder} belongs to no run: give a run folder, or NAME={folder} for a torchvision model")
        arm, folder, seeds = parents[1].name, parents[3], [int(parents[0].name.removeprefix("seed"))]
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    config, task = configs.resolve(None, file=folder / "config.yaml")
    recipe, name = config.recipe, _arm(config.recipe, arm)
    there = sorted(int(path.parent.name[4:]) for path in folder.glob(f"arms/{name}/seed*/checkpoint.pt"))
    if not there:
        raise UserError(f"{folder} has no checkpoint of {name}: was it run? steer run --resume {folder}")
    model = partial(trained_models.of_run, folder, config, arm=name, device=torch.device("cpu"))
    return Source(str(folder), task, recipe, name, seeds or there, lambda drawn, seed: model(drawn, seed=seed))


def _arm(recipe: Recipe, arm: str | None) -> str:
    name = recipe.baseline if arm is None else arm
    small.check_name("arm", name, recipe.arms)
    return name


def measure(source: Source, seed: int, betas: Sequence[float], refit: int) -> dict[str, Any]:
    """One repetition: beta by mean held-out loss, then the task's metrics with ReLU and with what was chosen.

    With ``refit`` the last linear layer is trained anew for every beta, 1 included, for so many steps.
    """
    task = source.task.seeded(seed)
    model = source.model(task, seed)
    tuned = replace_relus(model, 1.0)
    refitted = cache(lambda beta: _refitted(task, source.recipe, model, beta, refit, seed))

    def at(beta: float) -> nn.Module:
        set_beta(tuned.model, beta)
        return refitted(beta) if refit else tuned.model

    choice = choose(betas, lambda beta: held_out_loss(task, at(beta)))
    rows = {"trained": evaluate(task, model)} | ({"refitted": evaluate(task, at(1.0))} if refit else {})
    rows["search"] = evaluate(task, at(choice["chosen"]))
    sites = {"replaced": [vars(site) for site in tuned.replaced], "missed": [vars(site) for site in tuned.missed]}
    return {"rows": rows, "search": choice} | sites


@torch.no_grad()
def held_out_loss(task: Task, model: nn.Module) -> float:
    """Mean loss on the samples to choose on."""
    assert isinstance(task, HeldOut)
    values = []
    for batch in task.held_out(CHUNK):
        losses = task.losses(model, batch)
        if not isinstance(losses.values, Tensor):
            raise UserError("beta is chosen by the mean of losses per sample; those of image-text pairs are none")
        values.append((losses.values if losses.mask is None else losses.values[losses.mask]).double().flatten())
    return float(torch.cat(values).mean())


def _refitted(task: Task, settings: Recipe, model: nn.Module, beta: float, steps: int, seed: int) -> nn.Module:
    """The model at one beta, its last linear layer trained ``steps`` steps more."""
    tuned = replace_relus(model, beta).model.requires_grad_(False)
    [part for part in tuned.modules() if isinstance(part, nn.Linear)][-1].requires_grad_(True)
    shorter = settings.model_copy(update={"steps": steps, "warmup": 0, "ema": None})
    return trained(exchange(task, target=lambda: tuned), shorter, derive(seed, "refit"))


def summarise(results: section.Results, metrics: Mapping[str, Metric], name: str, refit: int) -> section.Section:
    """The search on a task or on the models of a run."""
    first, headline = next(iter(metrics.items()))
    factor, unit = (100.0, " points") if headline.percent else (1.0, "")
    pair = "search", "refitted" if refit else "trained"
    searched, baseline = ([factor * result["rows"][row][first] for result in results] for row in pair)
    change = paired_difference(searched, baseline, headline.better)
    size = f"{section.spread(change, 2)}{unit}"
    effect = {
        "better": f"{headline.label} better by {size}",
        "worse": f"{headline.label} worse ({size}, better above 0)",
        "undecided": f"no decided difference in {headline.label} ({size}, better above 0)",
    }[change.verdict]
    again = "last layer trained anew"
    labels = {"trained": "as it was trained", "refitted": again, "search": f"{again}, beta searched"}
    picked = section.chosen([result["search"]["chosen"] for result in results])
    tried = str(len(results[0]["search"]["betas"]))
    rows = []
    for row in results[0]["rows"]:
        cells = []
        for key, metric in metrics.items():
            numbers = [result["rows"][row][key] for result in results]
            cells.append(section.percent(numbers) if metric.percent else section.spread(numbers, 3))
        label = labels[row] if refit or row != "search" else "beta searched"
        candidates, beta = (tried, picked) if row == "search" else ("1", "1")
        rows.append((label, *cells, candidates, Cell(beta, "quiet")))
    labelled = [metric.label + (" (%)" if metric.percent else "") for metric in metrics.values()]
    columns = "|".join(["model", *labelled, "candidates", "beta"])
    sites = [site["name"] for site in results[0]["replaced"]]
    refits = f" For every beta, 1 included, the last linear layer is trained {refit} steps more." if refit else ""
    curves = {"held-out samples": [result["search"] for result in results]}
    return section.Section(
        verdict=f"Choosing beta by the held-out loss made {effect}.",
        findings=[f"ReLUs replaced: {len(sites)} ({', '.join(sites[:8])}{', ...' if len(sites) > 8 else ''})."],
        cautions=section.missed(results),
        grids=[section.grid(f"The search on {name}", columns, rows, results, section.CANDIDATES)],
        plots=[section.search_plot("search", "What the search saw", "Mean loss on held-out samples", curves, "loss")],
        method=[f"Beta is chosen by the mean loss on the task's held-out samples.{refits}"],
    )
