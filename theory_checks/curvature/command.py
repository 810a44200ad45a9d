"""``steer tune``: which studies, on what, and one report at the end."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AliasChoices, Field
from rich.console import Console

from steering.errors import UserError, did_you_mean
from steering.reports.report import Report, show, write
from steering.runs.folder import RunFolder, new_folder
from steering.runs.processes import device_named
from steering.settings import Strict
from steering.theory_checks.curvature import boundary, bridge, noise, robustness, search, transfer
from steering.theory_checks.curvature.section import Results, Section, answer
from steering.theory_checks.curvature.transfer import LABELS, TransferOptions, available

BETAS, QUICK_BETAS, BRIDGE_BETAS = "0.5:1:0.05", "0.6:1:0.2", (1.0, 0.9, 0.7, 0.5)
LIMITS = [
    "Nothing here is a claim about other networks or data: these are small networks on small data.",
    "The percentages of Hu et al. (2025) are relative to the accuracy they start from; here are differences in points.",
    "Of many intervals of 95 %, one in twenty misses its truth by chance.",
]
UNIT = (
    "A curvature unit is phi(x) = c sigmoid(beta x / (1 - beta)) x + (1 - c) (1 - beta) softplus(x / (1 - beta)) (Hu "
    "et al. 2025) in place of every ReLU of a trained network; beta = 1 is ReLU, and c = 0.5 unless it is learned. "
    "Beta is chosen on the validation split, beta = 1 is always among the candidates, and of equal ones the nearest "
    "to 1 is taken."
)


@dataclass(frozen=True)
class TuneOptions:
    """The options of the command, as its help explains them; ``command`` is what the user typed."""

    target: str
    data: Path | None
    parts: str | None
    betas: str | None
    seeds: int | None
    refit: int
    methods: str | None
    steps: int | None
    size: int
    arm: str | None
    sets: list[str] | None
    quick: bool
    device: str
    out: Path | None
    command: str

    def searched(self, default: str = BETAS) -> list[float]:
        """The values of beta."""
        return search.parse(self.betas or (QUICK_BETAS if self.quick else default))

    def repetitions(self, default: int) -> range:
        return range(self.seeds or default)

    def refuse(self, *names: str) -> None:
        """Options that mean nothing for this target are mistakes."""
        for name in names:
            if getattr(self, name):
                raise UserError(f"--{'set' if name == 'sets' else name} means nothing for {self.target}")


@dataclass(frozen=True)
class Study:
    """A part of the report.

    Attributes:
        name: of its files.
        seeds: repetitions.
        measure: one repetition, as plain data.
        summarise: all repetitions, as a section of the report.
        settings: what else its numbers depend on.
    """

    name: str
    seeds: Sequence[int]
    measure: Callable[[int], dict[str, Any]]
    summarise: Callable[[Results], Section]
    settings: dict[str, Any]


def run(options: TuneOptions) -> None:
    """Measures what is not measured yet, prints and writes the report.

    Raises:
        UserError: the options do not fit together.
        Stopped: SIGINT or SIGTERM came; the repetitions that are measured stay.
    """
    name, question, studies = _studies(options)
    folder = options.out or new_folder(f"tune-{name}")
    console = Console(soft_wrap=not sys.stdout.isatty())
    console.print(f"report folder: {folder}", markup=False, highlight=False)
    with RunFolder.open(folder) as opened:
        results = {study.name: _measured(study, opened, console) for study in studies}
    sections = [study.summarise(results[study.name]) for study in studies]
    report = _report(f"Curvature tuning: {name}", question, options.command, sections, results)
    page = write(report, folder)
    show(report, console)
    console.print(f"report: {page}", markup=False, highlight=False)


class Repetition(Strict):
    """One repetition of a study, as its file has it; older files call its numbers found."""

    settings: dict[str, Any]
    numbers: Annotated[dict[str, Any], Field(validation_alias=AliasChoices("numbers", "found"))]


def _measured(study: Study, folder: RunFolder, console: Console) -> list[dict[str, Any]]:
    """Every repetition of a study, read back where it is there already."""
    settings = json.loads(json.dumps(study.settings))

    def measure(seed: int) -> Repetition:
        console.print(f"{study.name}: repetition {seed}", markup=False, highlight=False)
        return Repetition(settings=settings, numbers=study.measure(seed))

    results = []
    for seed in study.seeds:
        name = f"parts/{study.name}-{seed}.json"
        part = folder.part(name, Repetition, partial(measure, seed))
        if part.settings != settings:
            path = folder.path / name
            raise UserError(f"{path} was made with other settings: choose another --out, or repeat that command")
        results.append(part.numbers)
    return results


def _studies(options: TuneOptions) -> tuple[str, str, list[Study]]:
    """Name of what is studied, the question, and the parts."""
    if options.data is not None or "=" in options.target.partition("(")[0]:
        return _of_pictures(options)
    return _of_digits(options) if options.target == "digits" else _of_models(options)


def _of_digits(options: TuneOptions) -> tuple[str, str, list[Study]]:
    options.refuse("refit", "methods", "steps", "arm", "sets")
    torch.set_num_threads(1)  # fastest for networks this small
    quick, betas, seeds = options.quick, options.searched(), options.repetitions(2 if options.quick else 5)
    fewer = tuple(betas) if options.betas else ((1.0, 0.5) if quick else BRIDGE_BETAS)
    steps = 60 if quick else 300
    methods = TransferOptions(betas, (1e-2, 1e-1), 30) if quick else TransferOptions(betas)
    common, with_methods = {"betas": betas, "quick": quick}, {"methods": methods.methods}
    studies = [
        Study("transfer", seeds, lambda s: transfer.measure(s, methods), transfer.summarise, common | with_methods),
        Study("noise", seeds, lambda s: noise.measure(s, betas, 2 * steps), noise.summarise, common),
        Study("robustness", seeds, lambda s: robustness.measure(s, betas, steps=steps), robustness.summarise, common),
        Study("boundary", seeds, lambda s: boundary.measure(s, betas, 4 * steps), boundary.summarise, common),
        Study("bridge", seeds, lambda s: bridge.measure(s, fewer, steps), bridge.summarise, common),
    ]
    parts = _listed(options.parts, "study", [study.name for study in studies])
    question = "What does less curvature do for small ReLU networks on digits and spirals?"
    return "digits", question, [study for study in studies if study.name in parts]


def _listed(text: str | None, kind: str, names: list[str]) -> list[str]:
    """Names between commas, in the order of ``names``; all of these if there is no text."""
    listed = names if text is None else [name.strip() for name in text.split(",")]
    for name in listed:
        if name not in names:
            hint = did_you_mean(name, names) or "."
            raise UserError(f"no {kind} is named {name!r}{hint} Known: {', '.join(names)}")
    return [name for name in names if name in listed]


def _of_models(options: TuneOptions) -> tuple[str, str, list[Study]]:
    """The search on a task, or on the models of a run."""
    from steering.theory_checks.curvature import models

    options.refuse("parts", "methods", "steps")
    path = Path(options.target)
    if path.exists():
        source, name = models.of_run(path, options.arm), path.name
    elif "/" in options.target:
        raise UserError(f"no run folder or checkpoint at {options.target}")
    else:
        source = models.of_task(options.target, options.sets or [], options.arm)
        name = options.target.partition("(")[0].rpartition(":")[2]
    betas, refit, title = options.searched(), options.refit, f"{source.name}, {source.arm}"
    seeds = options.repetitions(2 if options.quick else 5) if source.seeds is None else source.seeds[: options.seeds]
    settings = {"target": source.name, "arm": source.arm, "betas": betas, "refit": refit, "sets": options.sets or []}
    study = Study(
        "search",
        seeds,
        lambda seed: models.measure(source, seed, betas, refit),
        partial(models.summarise, metrics=source.task.metrics, name=title, refit=refit),
        settings,
    )
    question = f"Does less curvature help the models of {source.name} (arm {source.arm}) without training them?"
    return name, question, [study]


def _of_pictures(options: TuneOptions) -> tuple[str, str, list[Study]]:
    """A network from a file, on the classes of a folder."""
    from steering.theory_checks.curvature import pictures

    name, sign, path = options.target.partition("=")
    if not sign or options.data is None:
        raise UserError(
            "a network from a file is given as resnet18=weights.pt, with --data FOLDER of pictures by class"
        )
    options.refuse("parts", "refit", "arm", "sets")
    methods: list = _listed(options.methods, "method", list(LABELS)) if options.methods else list(available())
    on = str(device_named(options.device))
    body, width = pictures.backbone(pictures.load_network(name, Path(path)))
    samples, classes = pictures.load_pictures(options.data, options.size)
    quick, betas = options.quick, options.searched("0.7:1:0.05")
    rates = (1e-2,) if quick else (1e-3, 1e-2, 1e-1)
    transfer_options = TransferOptions(betas, rates, options.steps or (5 if quick else 100), 32, methods, on)

    def measure(seed: int) -> dict[str, Any]:
        return transfer.compare(body, width, len(classes), pictures.splits(samples, seed), transfer_options, seed)

    title = f"{name} on {len(samples.y)} pictures of {len(classes)} classes"
    settings = asdict(transfer_options) | {"network": options.target, "data": str(options.data), "size": options.size}
    del settings["device"]  # one may go on elsewhere
    seeds = options.repetitions(1 if quick else 3)
    study = Study("pictures", seeds, measure, partial(transfer.summarise, title=title), settings)
    return name.replace("/", "-"), f"Does less curvature help {name} on new classes of pictures?", [study]


def _report(title: str, question: str, command: str, sections: list[Section], numbers: dict[str, Any]) -> Report:
    """The studies as one report."""

    def joined(field: str) -> list:
        return [part for section in sections for part in getattr(section, field)]

    changes = {where: change for section in sections for where, change in section.changes.items()}
    verdicts = [answer(changes)] * bool(changes) + [section.verdict for section in sections if section.verdict]
    findings = joined("findings")
    correction = (
        f"The answer looks at {len(changes)} comparisons of the chosen beta with beta = 1 and calls decided what still "
        "is after Holm's correction over them (Holm 1979). Intervals, colours in tables and all other sentences are of "
        "each comparison alone."
    )
    return Report(
        title=title,
        question=question,
        verdict=" ".join(verdicts) or findings.pop(0),
        command=command,
        findings=findings,
        method=[UNIT, *[correction] * (len(changes) > 1), *joined("method")],
        limits=[*LIMITS, *joined("limits")],
        numbers=numbers,
        cautions=joined("cautions"),
        grids=joined("grids"),
        plots=joined("plots"),
    )
