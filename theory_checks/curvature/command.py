"""``steer tune``: which studies, on what, and one report at the end."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import AliasChoices, Field
from rich.console import Console

from steering.errors import UserError
from steering.reports.report import Report, show, write
from steering.runs.folder import RunFolder, new_folder
from steering.runs.processes import device_named
from steering.settings import Strict
from steering.theory_checks.curvature import boundary, bridge, noise, robustness, small, transfer
from steering.theory_checks.curvature.section import Results, Section, answer
from steering.theory_checks.curvature.transfer import LABELS, TransferOptions, available

BETAS, QUICK_BETAS, BRIDGE_BETAS = "0.5:1:0.05", "0.6:1:0.2", (1.0, 0.9, 0.7, 0.5)


@dataclass(frozen=True)
class Study:
    """A part of the report."""

    name: str  # of its files
    seeds: Sequence[int]  # repetitions
    measure: Callable[[int], dict[str, Any]]  # one repetition, as plain data
    summarise: Callable[[Results], Section]
    settings: dict[str, Any]  # what else its numbers depend on


def run(options: SimpleNamespace) -> None:
    """Measures what is not measured yet, prints and writes the report.

    Args:
        options: those of ``steer tune`` under their names, and what was typed as ``command``.

    Raises:
        UserError: the options do not fit together.
        Stopped: SIGINT or SIGTERM came; the repetitions that are measured stay.
    """
    of_file = options.data is not None or "=" in options.target.partition("(")[0]
    studied = _of_pictures if of_file else _of_digits if options.target == "digits" else _of_models
    name, question, studies = studied(options)
    folder = options.out or new_folder(f"tune-{name}")
    console = Console(soft_wrap=not sys.stdout.isatty(), markup=False, highlight=False)
    console.print(f"report folder: {folder}")
    with RunFolder.open(folder) as opened:
        results = {study.name: _measured(study, opened, console) for study in studies}
    sections = [study.summarise(results[study.name]) for study in studies]
    report = _report(f"Curvature tuning: {name}", question, options.command, sections, results)
    show(report, console, write(report, folder))


class Repetition(Strict):
    """One repetition of a study, as its file has it; older files call its numbers found."""

    settings: dict[str, Any]
    numbers: Annotated[dict[str, Any], Field(validation_alias=AliasChoices("numbers", "found"))]


def _measured(study: Study, folder: RunFolder, console: Console) -> list[dict[str, Any]]:
    """Every repetition of a study, read back where it is there already."""
    settings, results = json.loads(json.dumps(study.settings)), []

    def measure(seed: int) -> Repetition:
        console.print(f"{study.name}: repetition {seed}")
        return Repetition(settings=settings, numbers=study.measure(seed))

    for seed in study.seeds:
        name = f"parts/{study.name}-{seed}.json"
        part = folder.part(name, Repetition, partial(measure, seed))
        if part.settings != settings:
            made = f"{folder.path / name} was made with other settings"
            raise UserError(f"{made}: choose another --out, or repeat that command")
        results.append(part.numbers)
    return results


def _refuse(options: SimpleNamespace, *names: str) -> None:
    """Options that mean nothing for this target are mistakes."""
    for name in names:
        if getattr(options, name):
            raise UserError(f"--{'set' if name == 'sets' else name} means nothing for {options.target}")


def _seeds(options: SimpleNamespace) -> range:
    return range(options.seeds or (2 if options.quick else 5))


def _betas(options: SimpleNamespace, default: str = BETAS) -> list[float]:
    return small.parse(options.betas or (QUICK_BETAS if options.quick else default))


def _of_digits(options: SimpleNamespace) -> tuple[str, str, list[Study]]:
    _refuse(options, "refit", "methods", "steps", "arm", "sets")
    torch.set_num_threads(1)  # fastest for networks this small
    quick, betas = options.quick, _betas(options)
    fewer = tuple(betas) if options.betas else ((1.0, 0.5) if quick else BRIDGE_BETAS)
    steps = 60 if quick else 300
    methods = TransferOptions(betas, (1e-2, 1e-1), 30) if quick else TransferOptions(betas)
    settings = {"betas": betas, "quick": quick}
    studies = [
        (transfer, (methods,), settings | {"methods": methods.methods}),
        (noise, (betas, 2 * steps), settings),
        (robustness, (betas, steps), settings),
        (boundary, (betas, 4 * steps), settings),
        (bridge, (fewer, steps), settings),
    ]

    def study(name: str, module: Any, arguments: tuple, settings: dict[str, Any]) -> Study:
        return Study(name, _seeds(options), lambda seed: module.measure(seed, *arguments), module.summarise, settings)

    by_name = {module.__name__.rpartition(".")[2]: (module, *rest) for module, *rest in studies}
    question = "What does less curvature do for small ReLU networks on digits and spirals?"
    parts = _listed(options.parts, "study", list(by_name))
    return "digits", question, [study(name, *by_name[name]) for name in parts]


def _listed(text: str | None, kind: str, names: list[str]) -> list[str]:
    """Names between commas, in the order of ``names``; all of these if there is no text."""
    listed = names if text is None else [name.strip() for name in text.split(",")]
    for name in listed:
        small.check_name(kind, name, names)
    return [name for name in names if name in listed]


def _of_models(options: SimpleNamespace) -> tuple[str, str, list[Study]]:
    """The search on a task, or on the models of a run."""
    from steering.theory_checks.curvature import models

    _refuse(options, "parts", "methods", "steps")
    path, sets = Path(options.target), options.sets or []
    if path.exists():
        source, name = models.of_run(path, options.arm), path.name
    elif "/" in options.target:
        raise UserError(f"no run folder or checkpoint at {options.target}")
    else:
        source = models.of_task(options.target, sets, options.arm)
        name = options.target.partition("(")[0].rpartition(":")[2]
    betas, refit, title = _betas(options), options.refit, f"{source.name}, {source.arm}"
    seeds = _seeds(options) if source.seeds is None else source.seeds[: options.seeds]
    settings = {"target": source.name, "arm": source.arm, "betas": betas, "refit": refit, "sets": sets}
    summarise = partial(models.summarise, metrics=source.task.metrics, name=title, refit=refit)
    study = Study("search", seeds, lambda seed: models.measure(source, seed, betas, refit), summarise, settings)
    question = f"Does less curvature help the models of {source.name} (arm {source.arm}) without training them?"
    return name, question, [study]


def _of_pictures(options: SimpleNamespace) -> tuple[str, str, list[Study]]:
    """A network from a file, on the classes of a folder."""
    from steering.theory_checks.curvature import pictures

    name, sign, path = options.target.partition("=")
    if not sign or options.data is None:
        example = "resnet18=weights.pt, with --data FOLDER of pictures by class"
        raise UserError(f"a network from a file is given as {example}")
    _refuse(options, "parts", "refit", "arm", "sets")
    methods = _listed(options.methods, "method", list(LABELS)) if options.methods else list(available())
    on = str(device_named(options.device))
    body, head = transfer.without_head(pictures.load_network(name, Path(path)))
    body = pictures.Normalised(body).eval()
    samples, classes = pictures.load_pictures(options.data, options.size)
    quick, betas = options.quick, _betas(options, "0.7:1:0.05")
    learning_rates = (1e-2,) if quick else (1e-3, 1e-2, 1e-1)
    transfer_options = TransferOptions(betas, learning_rates, options.steps or (5 if quick else 100), 32, methods, on)

    def measure(seed: int) -> dict[str, Any]:
        return transfer.compare(
            body, head.in_features, len(classes), pictures.splits(samples, seed), transfer_options, seed
        )

    title = f"{name} on {len(samples.y)} pictures of {len(classes)} classes"
    settings = asdict(transfer_options) | {"network": options.target, "data": str(options.data), "size": options.size}
    del settings["device"]  # one may go on elsewhere
    seeds = range(options.seeds or (1 if quick else 3))
    study = Study("pictures", seeds, measure, partial(transfer.summarise, title=title), settings)
    return name.replace("/", "-"), f"Does less curvature help {name} on new classes of pictures?", [study]


def _report(title: str, question: str, command: str, sections: list[Section], numbers: dict[str, Any]) -> Report:
    """The studies as one report."""
    fields = ("findings", "method", "cautions", "grids", "plots")
    parts: dict[str, Any] = {name: list(chain(*(getattr(one, name) for one in sections))) for name in fields}
    changes = dict(chain(*(section.changes.items() for section in sections)))
    verdicts = [answer(changes)] * bool(changes) + [section.verdict for section in sections if section.verdict]
    verdict = " ".join(verdicts) or parts["findings"].pop(0)
    correction = f"The answer looks at {len(changes)} comparisons of the chosen beta with beta = 1, corrected by Holm."
    documentation = "The unit, the studies, intervals and limits are explained in docs/curvature.md of model-steering."
    parts["method"] = [*[correction] * (len(changes) > 1), *parts["method"], documentation]
    return Report(title, question, verdict, command, numbers=numbers, **parts)
