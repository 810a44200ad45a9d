"""``steer variance``: what is measured, on which models, and the report at the end."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from steering import registry
from steering.errors import UserError
from steering.reports.report import Report, show, write
from steering.runs import config as configs
from steering.runs.config import RunConfig
from steering.runs.folder import RunFolder, new_folder, with_folder
from steering.runs.processes import device_named
from steering.runs.progress import Watch
from steering.runs.run import Run
from steering.settings import Recipe
from steering.task import HeldOut, Task
from steering.theory_checks.variance import bench, models, trajectory, validation
from steering.theory_checks.variance.measure import Measured, measure
from steering.theory_checks.variance.options import Options
from steering.theory_checks.variance.report import report


def run(asked: Options) -> None:
    """Measures, prints and writes the report.

    Raises:
        UserError: the options do not fit together.
    """
    console = Console(soft_wrap=not sys.stdout.isatty())
    folder, made = _measured(asked, console)
    page = write(made, folder)
    show(made, console)
    console.print(f"report: {page}", markup=False, highlight=False)


def _measured(asked: Options, console: Console) -> tuple[Path, Report]:
    if asked.refs:
        if asked.target is not None or asked.validate or asked.seeds or asked.sets:
            raise UserError(
                "--ref judges references before any training, on --data alone: leave out the task, --seeds, --set and "
                "--validate. A task takes its reference by --set options.ref=MODEL"
            )
        from steering.theory_checks.variance import before

        folder = asked.out or new_folder("variance")
        return folder, before.judge(asked, console)
    if asked.target is None:
        raise UserError("say what to measure: steer variance digits, a run folder, or --ref A --ref B --data D")
    if asked.data or asked.proxy:
        raise UserError("--data and --proxy go with --ref; a task takes its data by --set options.data=SHARDS")
    folder = Path(asked.target).expanduser()
    if (folder / "config.yaml").is_file():
        return of_run(folder, asked)
    if "/" in asked.target.partition("(")[0]:
        raise UserError(f"{asked.target} is no run folder: it has no config.yaml")
    return of_task(asked, console)


def of_run(folder: Path, asked: Options) -> tuple[Path, Report]:
    """Measures all arms of a run that is there."""
    if asked.sets or asked.validate:
        raise UserError("--set and --validate go with a task; a run's settings are in its folder")
    config = configs.load(folder / "config.yaml")
    task: Task = registry.build("tasks", config.task, config.options)
    seeds = min(asked.seeds or config.recipe.seeds, config.recipe.seeds)
    plain, _ = bench.plain_and_steered(config.recipe)
    arms = [plain, *(name for name in config.recipe.arms if name != plain)]
    device = device_named(asked.device)
    collected = bench.collect(
        task, seeds, arms, _trained(folder, config, device), pairs=asked.pairs, device=device, star=None
    )
    figures, along = _figures(collected, config.recipe), _along(folder, config, plain, collected)
    out = asked.out or new_folder(f"variance-{config.task}")
    return out, report(str(folder), collected, figures, along, asked.command)


def of_task(asked: Options, console: Console) -> tuple[Path, Report]:
    """Trains a task's arms with and without its reference, and measures them."""
    config, task = configs.resolve(asked.target, sets=asked.sets, typed={"device": asked.device} | _seeds(asked))
    folder = asked.out or new_folder(f"variance-{config.task}")
    config = configs.validate(config.model_dump() | {"recipe": _two_arms(config.recipe).model_dump()})
    if asked.validate:
        validation.check(task, config.task)
    plain, steered = bench.plain_and_steered(config.recipe)
    typed = shlex.split(asked.command)
    observe = trajectory.Observer(folder / "run", plain, asked.pairs)
    resume = with_folder(typed, folder)  # not the run alone, but the measurement
    observed = Run(config, task, folder / "run", console, typed, observe=observe, resume=resume)
    observed.execute()
    total = config.recipe.steps  # of one training; how many there are is not known ahead
    with RunFolder.open(folder, resume=resume) as opened, Watch(console, total_steps=total) as watch:
        trainer = models.Trainer(folder / "models", watch, opened.interrupts, observed.device)
        if asked.validate:
            return folder, validation.validate(task, config, trainer, asked.command)

        def star(variant: Task, name: str, seed: int) -> nn.Module:
            return trainer(name, variant, config.recipe.arms[plain], config.recipe, seed)

        collected = bench.collect(
            task,
            config.recipe.seeds,
            [plain, *([steered] if steered else [])],
            _trained(folder / "run", config, observed.device),
            pairs=asked.pairs,
            device=observed.device,
            star=star if isinstance(task, HeldOut) else None,
        )
    figures, along = _figures(collected, config.recipe), _along(folder / "run", config, plain, collected)
    return folder, report(config.task, collected, figures, along, asked.command)


def _trained(folder: Path, config: RunConfig, device: torch.device) -> Callable[[Task, str, int], nn.Module]:
    return lambda task, arm, seed: models.of_run(folder, config, task, arm, seed, device)


def _along(run: Path, config: RunConfig, plain: str, collected: bench.Collected) -> list[list[trajectory.Moment]]:
    """Variances of the plain arm while it trained, on the held-out samples that are measured at its end."""
    units = [pair.units for pair in next(iter(collected.pairs.values()))]
    return trajectory.read(run, plain, config.recipe.steps, units)


def _figures(collected: bench.Collected, recipe: Recipe) -> dict[tuple[str, str], Measured]:
    """All figures of all targets; also at the scale of the first steered arm, if that is another one than 1."""
    _, steered = bench.plain_and_steered(recipe)
    scale = recipe.arms[steered].reference_scale if steered else 1.0
    other = scale if isinstance(scale, float) and scale != 1 else None
    return {key: measure(pairs, scale=other, crossed=collected.crossed) for key, pairs in collected.pairs.items()}


def _seeds(asked: Options) -> dict:
    return {} if asked.seeds is None else {"recipe": {"seeds": asked.seeds}}


def _two_arms(recipe: Recipe) -> Recipe:
    """The plain arm and the first steered one."""
    plain, steered = bench.plain_and_steered(recipe)
    arms = {name: recipe.arms[name] for name in (plain, steered) if name}
    return recipe.model_copy(update={"arms": arms, "more": {}, "baseline": plain})
