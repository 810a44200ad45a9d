"""``steer curve``: from what was typed to a plan, its outcomes and a report."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console

from steering import atomic_files
from steering.errors import UserError, did_you_mean
from steering.registry import explain
from steering.reports.report import show, write
from steering.runs.config import resolve
from steering.runs.folder import RunFolder, new_folder
from steering.runs.progress import Watch
from steering.task import Task
from steering.theory_checks.curve import tuning
from steering.theory_checks.curve.analysis import Analysis
from steering.theory_checks.curve.plan import PLAIN, Method, Plan, Setting, label_of, methods_of, setting_of, steered_of
from steering.theory_checks.curve.report import report, seeds_table
from steering.theory_checks.curve.units import Outcome, Unit, units
from steering.theory_checks.parts import make_all
from steering.theory_checks.training_sets import Divisible, sample_pool

KEEP = 0.6  # share of the static filter where nothing is known of the noise
SEEDS = 20  # for claims against the reference
SIZES, SMALLEST = 6, 20  # how many sizes if none are typed, and the least that is worth training on
FREE = ("seeds", "sizes", "methods")  # of which a curve may later have more or fewer


def run(
    task: str, *, setting: str | None, out: Path | None, jobs: int | None, keep: float | None, **options: Any
) -> None:
    """Trains what is not trained yet and writes the report; ``options`` are further arguments of ``planned``."""
    torch.set_num_threads(1)
    frozen = None if setting is None else setting_of(setting, task.partition("(")[0].strip())
    plan = planned(task, frozen, keep=keep, **options)
    folder = out or new_folder(f"curve-{plan.task.rpartition(':')[2]}")
    console = Console(soft_wrap=not sys.stdout.isatty())
    analysis, chosen = execute(plan, folder, jobs=jobs or os.cpu_count() or 1, console=console)
    made = report(analysis, chosen, frozen, shlex.join(["steer", *sys.argv[1:]]))
    atomic_files.write(folder / "errors.csv", seeds_table(analysis))
    show(made, console, write(made, folder))


def planned(
    task: str,
    setting: Setting | None = None,
    *,
    sizes: str | None = None,
    methods: str | None = None,
    seeds: int | None = None,
    first_seed: int = 7000,
    tune: int = 0,
    keep: float | None = None,
    sets: Sequence[str] = (),
    preset: str | None = None,
    typed: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of what was typed, which wins over the setting it begins with; a UserError if that is no plan."""
    frozen: dict[str, Any] = {"options": setting.options, "recipe": setting.recipe} if setting else {}
    frozen["options"] = {**frozen.get("options", {}), **(typed or {})}
    _, made = resolve(task, sets=sets, typed=frozen, preset=preset)
    samples = _sizes(sizes) if sizes else [setting.size] if setting else _usual_sizes(made)
    options = {**frozen["options"], **_pool_option(made, max(samples))}
    config, made = resolve(task, sets=sets, typed={**frozen, "options": options}, preset=preset)
    steered = steered_of(config.recipe)
    if steered is None:
        raise UserError(f"no arm of {config.task} subtracts a reference: add one by --set recipe.arms.NAME.rule=...")
    share = keep or (setting.keep if setting else KEEP)
    pool = sample_pool(made)
    one = next(iter(pool.stream(1, seed=0)))
    answers = not isinstance(pool, Divisible) and made.losses(pool.reference(), one).outputs is not None
    compared = methods_of(made, config.recipe, keep=share, answers=answers)
    if setting:
        decay = {"weight_decay": setting.decay}
        compared |= {name: compared[name].model_copy(update=decay) for name in PLAIN}
    usual = [name for name in compared if name not in config.recipe.more]
    label, percent = label_of(made)
    try:
        return Plan(
            task=config.task,
            options=config.options,
            recipe=config.recipe,
            methods=_chosen(compared, methods or ",".join(usual), (config.recipe.baseline, steered)),
            baseline=config.recipe.baseline,
            steered=steered,
            label=label,
            percent=percent,
            sizes=samples,
            seeds=seeds or (setting.seeds if setting else SEEDS),
            first_seed=first_seed,
            tune=tune,
        )
    except ValidationError as error:
        raise UserError(explain(error)) from None


def execute(plan: Plan, folder: Path, *, jobs: int, console: Console) -> tuple[Analysis, tuning.Chosen]:
    """Trains what the folder does not have yet.

    Returns:
        What came of it, and what was chosen for every method and size if the plan tunes.
    """
    todo = units(plan)
    trials = (2 * plan.tune + 1) * plan.tuning_seeds if plan.tune else 0  # the second round takes the best one along
    total = len(todo) + trials * len(plan.methods) * len(plan.sizes)
    opened = RunFolder.open(folder, settings="plan.json", compare=lambda path: _settings(plan, path))
    with opened, Watch(console, total_steps=total) as watch:

        def make(missing: Sequence[Unit]) -> list[Outcome]:
            return make_all(plan, missing, Outcome, folder, jobs=jobs, watch=watch)

        chosen = tuning.tuned(plan, make) if plan.tune else {}
        todo = [tuning.with_choice(unit, chosen) for unit in todo]
        outcomes = dict(zip(((u.name, u.size, u.seed) for u in todo), make(todo), strict=True))
    return Analysis(plan, outcomes), chosen


def _settings(plan: Plan, path: Path) -> str:
    """The text of plan.json, unless the trainings of the one that is there are not this plan's where both have them."""
    new, methods = plan.model_dump(mode="json"), {}
    if path.exists():
        try:
            old = dict(json.loads(path.read_text()))
        except (ValueError, TypeError):
            raise UserError(f"{path} is damaged: choose another --out") from None
        with suppress(ValidationError):  # what is no plan of today differs in something, and is named
            old = Plan.model_validate(old).model_dump(mode="json")  # settings that have come since had their defaults
        changed = [name for name in new if name not in FREE and new[name] != old.get(name)]
        methods = old.get("methods", {})
        changed += [name for name in new["methods"] if name in methods and new["methods"][name] != methods[name]]
        if changed:
            raise UserError(f"{path.parent} holds a curve with other {', '.join(changed)}: choose another --out")
    return json.dumps(new | {"methods": {**methods, **new["methods"]}}, indent=1) + "\n"


def _sizes(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise UserError(f"--sizes takes numbers of samples, 100,200,400 say; got {text!r}") from None


def _usual_sizes(task: Task) -> list[int]:
    """Halving down from twice the task's own training set, or from that where there are no more samples."""
    largest = task.size
    if not isinstance(task, Divisible):
        with suppress(UserError):
            replace(task, **_pool_option(task, 2 * largest))  # type: ignore[type-var]
            largest *= 2
    sizes = {round(largest / 2**step) for step in range(SIZES)}
    return sorted({size for size in sizes if size >= SMALLEST} or {largest})


def _pool_option(task: Task, largest: int) -> dict[str, int]:
    """The option that makes a task's training set as large as the largest size."""
    if is_dataclass(task) and any(field.name == "samples" for field in fields(task)):
        return {"samples": largest}
    if largest > task.size:
        raise UserError(f"the largest of --sizes is {largest}, but there are {task.size} training samples")
    return {}


def _chosen(methods: dict[str, Method], typed: str, always: Sequence[str]) -> dict[str, Method]:
    """The methods of ``--methods``, with those that everything is compared with."""
    names = [*always, *(name.strip() for name in typed.split(","))]
    for name in names:
        if name not in methods:
            hint = did_you_mean(name, methods) or "."
            raise UserError(f"no method is named {name!r}{hint} Known: {', '.join(methods)}")
    return {name: method for name, method in methods.items() if name in names}
