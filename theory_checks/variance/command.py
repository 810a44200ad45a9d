"""``steer variance``: what is measured, on which models, and the report at the end."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from steering.errors import UserError
from steering.reports.report import Report, show, write
from steering.runs import config as configs
from steering.runs.config import RunConfig
from steering.runs.folder import RunFolder, new_folder, with_folder
from steering.runs.processes import device_named
from steering.runs.progress import Watch
from steering.runs.run import Run
from steering.task import HeldOut, Task
from steering.theory_checks.variance import bench, trajectory, validation
from steering.theory_checks.variance.measure import measure
from steering.theory_checks.variance.report import report


@dataclass(frozen=True)
class Options:
    """The options of ``steer variance`` as they were typed; candidates (refs) are judged before any training."""

    target: str | None  # task or run folder; None where references are given
    refs: list[str]
    proxy: str | None
    data: str | None  # pairs to judge candidates on
    caption_field: str | None
    seeds: int | None  # repetitions; of a run the first so many
    validate: bool
    sets: list[str]
    out: Path | None
    device: str
    pairs: int  # most image-text pairs
    workers: int
    command: str


def run(options: Options) -> None:
    """Measures, prints and writes the report."""
    console = Console(soft_wrap=not sys.stdout.isatty())
    folder, made = _measured(options, console)
    show(made, console, write(made, folder))


def _measured(options: Options, console: Console) -> tuple[Path, Report]:
    if options.refs:
        if options.target is not None or options.validate or options.seeds or options.sets:
            raise UserError(
                "--ref judges references before any training, on --data alone: leave out the task, --seeds, --set and "
                "--validate. A task takes its reference by --set options.ref=MODEL"
            )
        from steering.theory_checks.variance.clip import judge

        return options.out or new_folder("variance"), judge(options, console)
    if options.target is None:
        raise UserError("say what to measure: steer variance digits, a run folder, or --ref A --ref B --data D")
    if options.data or options.proxy:
        raise UserError("--data and --proxy go with --ref; a task takes its data by --set options.data=SHARDS")
    folder = Path(options.target).expanduser()
    if (folder / "config.yaml").is_file():
        return of_run(folder, options)
    if "/" in options.target.partition("(")[0]:
        raise UserError(f"{options.target} is no run folder: it has no config.yaml")
    return of_task(options, options.target, console)


def of_run(folder: Path, options: Options) -> tuple[Path, Report]:
    """Measures all arms of a run that is there."""
    if options.sets or options.validate:
        raise UserError("--set and --validate go with a task; a run's settings are in its folder")
    config, task = configs.resolve(None, file=folder / "config.yaml")
    made = _report(str(folder), task, folder, config.model_copy(update={"device": options.device}), options)
    return options.out or new_folder(f"variance-{config.task}"), made


def of_task(options: Options, target: str, console: Console) -> tuple[Path, Report]:
    """Trains a task's arms with and without its reference, and measures them."""
    seeds = {} if options.seeds is None else {"recipe": {"seeds": options.seeds}}
    config, task = configs.resolve(target, sets=options.sets, typed={"device": options.device} | seeds)
    folder = options.out or new_folder(f"variance-{config.task}")
    plain, steered = bench.plain_and_steered(config.recipe)
    arms = {name: config.recipe.arms[name] for name in (plain, steered) if name}
    recipe = config.recipe.model_copy(update={"arms": arms, "more": {}, "baseline": plain})
    config = configs.validate(config.model_dump() | {"recipe": recipe.model_dump()})
    if options.validate:
        validation.check(task, config.task)
    typed = shlex.split(options.command)
    observe = trajectory.Observer(folder / "run", plain, options.pairs)
    resume = with_folder(typed, folder)  # not the run alone, but the measurement
    observed = Run(config, task, folder / "run", console, typed, observe=observe, resume=resume)
    observed.execute()
    # The steps are those of one training; how many trainings there are is not known ahead.
    with RunFolder.open(folder, resume=resume) as opened, Watch(console, total_steps=config.recipe.steps) as watch:
        trainer = bench.Trainer(folder / "models", watch, opened.interrupts, observed.device)
        if options.validate:
            return folder, validation.validate(task, config, trainer, options.command)

        def star(variant: Task, name: str, seed: int) -> torch.nn.Module:
            return trainer(name, variant, config.recipe.arms[plain], config.recipe, seed)

        best = star if isinstance(task, HeldOut) else None
        return folder, _report(config.task, task, folder / "run", config, options, best)


def _report(
    subject: str, task: Task, run: Path, config: RunConfig, options: Options, star: bench.Model | None = None
) -> Report:
    """Measures arms of a run, also at the scale of the first steered one and along the training of the plain one."""
    recipe, device = config.recipe, device_named(config.device)
    plain, steered = bench.plain_and_steered(recipe)
    arms = [plain, *(name for name in recipe.arms if name != plain)]

    def trained(drawn: Task, arm: str, seed: int) -> torch.nn.Module:
        return bench.of_run(run, config, drawn, arm, seed, device)

    seeds = min(options.seeds or recipe.seeds, recipe.seeds)
    collected = bench.collect(task, seeds, arms, trained, pairs=options.pairs, device=device, star=star)
    scale = recipe.arms[steered].reference_scale if steered else 1.0
    other = scale if isinstance(scale, float) and scale != 1 else None
    measured = {key: measure(pairs, scale=other, crossed=collected.crossed) for key, pairs in collected.pairs.items()}
    units = [pair.units for pair in next(iter(collected.pairs.values()))]
    along = trajectory.read(run, plain, recipe.steps, units)
    return report(subject, collected, measured, along, options.command)
