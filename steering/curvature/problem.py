"""The search on a task of one's own, or on the models of a run: beta by held-out loss, then the task's own metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steering.curvature.classification import PLAIN, trained
from steering.curvature.replace import Replacement, replace_relus
from steering.curvature.search import Choice, choose
from steering.curvature.unit import set_beta
from steering.errors import UserError, did_you_mean
from steering.runs import config as configs
from steering.settings import Arm, Metric, Recipe
from steering.task import Batch, HeldOut, Losses, Stream, Task
from steering.training import loop
from steering.training.loop import evaluate
from steering.training.seeds import derive, untouched

BATCH = 256  # held-out samples at a time


@dataclass(frozen=True)
class Continued:
    """A task whose target does not start afresh.

    Args:
        task: of which everything else is taken.
        start: makes the target.
    """

    task: Task
    start: Callable[[], nn.Module]

    @property
    def size(self) -> int:
        return self.task.size

    @property
    def rows(self) -> int:
        return self.task.rows

    @property
    def recipe(self) -> Recipe:
        return self.task.recipe

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return self.task.metrics

    def seeded(self, seed: int) -> "Continued":
        return Continued(self.task.seeded(seed), self.start)

    def target(self) -> nn.Module:
        return self.start()

    def reference(self) -> nn.Module:
        return self.task.reference()

    def stream(self, batch: int, *, seed: int) -> Stream:
        return self.task.stream(batch, seed=seed)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        return self.task.losses(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.task.evaluate(model)


@dataclass(frozen=True)
class Source:
    """Trained models, one a repetition.

    Attributes:
        name: for the report.
        task: of the run, or as it was asked for.
        recipe: they were trained with.
        arm: the method they were trained with.
        seeds: repetitions there are; None where each is trained when asked for.
        model: gives the task and the model of a repetition, in evaluation mode.
    """

    name: str
    task: Task
    recipe: Recipe
    arm: str
    seeds: list[int] | None
    model: Callable[[int], tuple[Task, nn.Module]]


def of_task(text: str, sets: Sequence[str], arm: str | None) -> Source:
    """Models that are trained here, by the task's own recipe, as a rule without a reference."""
    config, task = configs.resolve(text, sets=sets)
    name, method = _arm(config.recipe, arm)

    def model(seed: int) -> tuple[Task, nn.Module]:
        drawn = task.seeded(seed)
        return drawn, trained(drawn, config.recipe, seed, method)

    _look(task)
    return Source(text, task, config.recipe, name, None, model)


def of_run(folder: Path, arm: str | None) -> Source:
    """Models of a run, from the checkpoints at its end.

    Args:
        folder: of the run, or one of its ``checkpoint.pt``.
        arm: whose; the baseline's if not given.

    Raises:
        UserError: there is no such run, arm or checkpoint; ``model`` raises it where one is unfinished or misfits.
    """
    seeds: list[int] | None = None
    if folder.is_file():
        place = folder.resolve().parents
        if len(place) < 4 or not (place[3] / "config.yaml").exists():
            raise UserError(f"{folder} belongs to no run: give a run folder, or NAME={folder} for a torchvision model")
        arm, folder, seeds = place[1].name, place[3], [int(place[0].name.removeprefix("seed"))]
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    config = configs.load(folder / "config.yaml")
    _, task = configs.resolve(None, file=folder / "config.yaml")
    name, _ = _arm(config.recipe, arm)
    paths = folder.glob(f"arms/{name}/seed*/checkpoint.pt")
    found = {int(path.parent.name.removeprefix("seed")): path for path in paths}
    if not found:
        raise UserError(f"{folder} has no checkpoint of {name}: was it run? steer run --resume {folder}")

    def model(seed: int) -> tuple[Task, nn.Module]:
        drawn = task.seeded(seed)
        return drawn, loop.trained(drawn, found[seed], steps=config.recipe.steps)

    _look(task)
    return Source(str(folder), task, config.recipe, name, seeds or sorted(found), model)


def _arm(recipe: Recipe, wanted: str | None) -> tuple[str, Arm]:
    name = recipe.baseline if wanted is None else wanted
    if name not in recipe.arms:
        known = ", ".join(recipe.arms)
        raise UserError(f"no arm is named {name!r}{did_you_mean(name, recipe.arms) or '.'} Known: {known}")
    return name, recipe.arms[name]


def _look(task: Task) -> None:
    """Tells what is in the way before anything is trained."""
    if not isinstance(task, HeldOut):
        raise UserError(
            f"{type(task).__name__} has no held_out(batch), samples to choose beta on that are neither trained nor "
            "tested on: give the task that method"
        )
    with untouched():
        replace_relus(task.target())


def measure(source: Source, seed: int, betas: Sequence[float], refit: int) -> dict[str, Any]:
    """One repetition: beta by mean held-out loss, then the task's metrics with ReLU and with what was chosen.

    Args:
        source: of the model.
        seed: of the repetition.
        betas: 1 is always among them.
        refit: steps of training the last linear layer anew for every beta, its ReLU included; 0 leaves it.

    Returns:
        ``rows``: metrics of the model as it is and as chosen; the search; what was replaced and missed.
    """
    task, model = source.model(seed)
    tuned = replace_relus(model, 1.0)
    heads: dict[float, nn.Module] = {}

    def at(beta: float) -> nn.Module:
        if not refit:
            set_beta(tuned.model, beta)
            return tuned.model
        if beta not in heads:
            heads[beta] = _refitted(task, source.recipe, model, beta, refit, seed)
        return heads[beta]

    choice = choose(betas, lambda beta: held_out_loss(task, at(beta)))
    rows = {"trained": evaluate(task, model)}
    if refit:
        rows["refitted"] = evaluate(task, at(1.0))
    rows["search"] = evaluate(task, at(choice.chosen))
    return _told(choice, tuned, rows)


def held_out_loss(task: Task, model: nn.Module) -> float:
    """Mean loss on the samples to choose on."""
    if not isinstance(task, HeldOut):
        raise TypeError("checked before")
    total, number = 0.0, 0
    with torch.no_grad():
        for batch in task.held_out(BATCH):
            losses = task.losses(model, batch)
            if not isinstance(losses.values, Tensor):
                raise UserError("beta is chosen by the mean of losses per sample; those of image-text pairs are none")
            values = losses.values if losses.mask is None else losses.values[losses.mask]
            total, number = total + float(values.double().sum()), number + values.numel()
    return total / number


def _refitted(task: Task, settings: Recipe, model: nn.Module, beta: float, steps: int, seed: int) -> nn.Module:
    """The model at one beta, its last linear layer trained some steps more."""
    tuned = replace_relus(model, beta).model.requires_grad_(False)
    [part for part in tuned.modules() if isinstance(part, nn.Linear)][-1].requires_grad_(True)
    shorter = settings.model_copy(update={"steps": steps, "warmup": 0, "ema": None})
    return trained(Continued(task, lambda: tuned), shorter, derive(seed, "refit"), PLAIN)


def _told(choice: Choice, tuned: Replacement, rows: dict[str, Any]) -> dict[str, Any]:
    search = {"betas": choice.betas, "validation": choice.scores, "chosen": choice.chosen}
    return {
        "rows": rows,
        "search": search,
        "replaced": [vars(site) for site in tuned.replaced],
        "missed": [vars(site) for site in tuned.missed],
    }
