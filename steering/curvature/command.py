"""``steer tune``: which studies, on what, and one report at the end."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

from steering import atomic_files
from steering.curvature import boundary, bridge, noise, robustness, search, sections, transfer
from steering.curvature.methods import METHODS, Method
from steering.curvature.section import Section, answer
from steering.curvature.transfer import Teaching
from steering.errors import UserError, did_you_mean
from steering.reports.report import Report, show, write
from steering.runs.progress import Interrupted, Interrupts
from steering.runs.run import Stopped, device, new_folder

BETAS, QUICK_BETAS, BRIDGE_BETAS = "0.5:1:0.05", "0.6:1:0.2", (1.0, 0.9, 0.7, 0.5)
DIGITS = "digits"
PARTS = ("transfer", "noise", "robustness", "boundary", "bridge")
LIMITS = [
    "Nothing here is a claim about other networks or data: these are small networks on small data.",
    "The percentages of Hu et al. (2025) are relative to the accuracy they start from; here are differences in points.",
    "Of many intervals of 95 %, one in twenty misses its truth by chance.",
]


@dataclass(frozen=True)
class Asked:
    """The options of the command.

    Attributes:
        target: ``digits`` for the studies, a task, a run folder or checkpoint, or NETWORK=WEIGHTS.
        data: pictures for a network from a file.
        parts: of the studies on digits; None for all.
        betas: as ``search.parse`` takes them; None for the usual ones.
        seeds: repetitions; None for the usual number, or as many as a run has.
        refit: steps of training the head anew for every beta, of a task or run.
        methods: that are trained beside the search on pictures.
        steps: of each method.
        size: of pictures, in pixels.
        arm: of a run or task.
        sets: settings ``a.b=c`` of a task.
        quick: fewer of everything, to see that it works.
        device: auto, cpu, cuda.
        out: folder of the report.
        command: what the user typed.
    """

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
    sets: list[str]
    quick: bool
    device: str
    out: Path | None
    command: str


@dataclass(frozen=True)
class Study:
    """A part of the report.

    Attributes:
        name: of its files.
        seeds: repetitions.
        measure: one repetition, as plain data.
        tell: all repetitions in words.
        settings: what else its numbers depend on.
    """

    name: str
    seeds: Sequence[int]
    measure: Callable[[int], dict[str, Any]]
    tell: Callable[[Sequence[dict[str, Any]]], Section]
    settings: dict[str, Any]


def run(asked: Asked) -> None:
    """Measures what is not measured yet, prints and writes the report.

    Raises:
        UserError: the options do not fit together.
        Stopped: SIGINT or SIGTERM came; the repetitions that are measured stay.
    """
    name, question, studies = _studies(asked)
    folder = asked.out or new_folder(f"tune-{name}")
    console = Console(soft_wrap=not sys.stdout.isatty())
    console.print(f"report folder: {folder}", markup=False, highlight=False)
    interrupts = Interrupts()
    try:
        with interrupts:
            numbers = {study.name: _measured(study, folder, console) for study in studies}
    except Interrupted:
        raise Stopped(f"stopped; the same command with --out {folder} goes on", interrupts.received or 2) from None
    told = {study.name: study.tell(numbers[study.name]) for study in studies}
    found = report(name, question, asked.command, told, numbers)
    page = write(found, folder)
    show(found, console)
    console.print(f"report: {page}", markup=False, highlight=False)


def _studies(asked: Asked) -> tuple[str, str, list[Study]]:
    """Name of what is studied, the question, and the parts."""
    if asked.data is not None or "=" in asked.target.partition("(")[0]:
        return _of_pictures(asked)
    if asked.target == DIGITS:
        return DIGITS, "What does less curvature do for small ReLU networks on digits and spirals?", _of_digits(asked)
    return _of_source(asked)


def _refuse(asked: Asked, *names: str) -> None:
    """Options that mean nothing for what was asked are mistakes."""
    for name in names:
        if getattr(asked, name):
            raise UserError(f"--{name.removesuffix('s') if name == 'sets' else name} means nothing for {asked.target}")


def _of_digits(asked: Asked) -> list[Study]:
    _refuse(asked, "refit", "methods", "steps", "arm", "sets")
    wanted = PARTS if asked.parts is None else tuple(part.strip() for part in asked.parts.split(","))
    for part in wanted:
        if part not in PARTS:
            raise UserError(f"no study is named {part!r}{did_you_mean(part, PARTS) or '.'} Known: {', '.join(PARTS)}")
    torch.set_num_threads(1)  # fastest for networks this small
    betas = search.parse(asked.betas or (QUICK_BETAS if asked.quick else BETAS))
    fewer = tuple(betas) if asked.betas else ((1.0, 0.5) if asked.quick else BRIDGE_BETAS)
    seeds = range(asked.seeds or (2 if asked.quick else 5))
    steps = 60 if asked.quick else 300
    teaching = Teaching(betas, (1e-2, 1e-1), 30) if asked.quick else Teaching(betas)
    what = "a network that learned digits 0 to 4 is taught 5 to 9"
    common = {"betas": betas, "quick": asked.quick}
    known = [
        Study("transfer", seeds, lambda s: transfer.measure(s, teaching), lambda f: sections.transfer(f, what), common),
        Study("noise", seeds, lambda s: noise.measure(s, betas, 2 * steps), sections.noise, common),
        Study("robustness", seeds, lambda s: robustness.measure(s, betas, steps=steps), sections.robustness, common),
        Study("boundary", seeds, lambda s: boundary.measure(s, betas, 4 * steps), sections.boundary, common),
        Study("bridge", seeds, lambda s: bridge.measure(s, fewer, steps), sections.bridge, common),
    ]
    return [study for study in known if study.name in wanted]


def _of_source(asked: Asked) -> tuple[str, str, list[Study]]:
    """The search on a task, or on the models of a run."""
    from steering.curvature import problem

    _refuse(asked, "parts", "methods", "steps")
    path = Path(asked.target)
    if path.exists():
        source = problem.of_run(path, asked.arm)
    elif "/" in asked.target:
        raise UserError(f"no run folder or checkpoint at {asked.target}")
    else:
        source = problem.of_task(asked.target, asked.sets, asked.arm)
    betas = search.parse(asked.betas or (QUICK_BETAS if asked.quick else BETAS))
    wanted = asked.seeds or (2 if asked.quick else 5)
    seeds = range(wanted) if source.seeds is None else source.seeds[: asked.seeds]
    settings = {"target": str(source.name), "arm": source.arm, "betas": betas, "refit": asked.refit, "sets": asked.sets}
    study = Study(
        "search",
        seeds,
        lambda seed: problem.measure(source, seed, betas, asked.refit),
        lambda found: sections.problem(found, source.task.metrics, f"{source.name}, {source.arm}", asked.refit),
        settings,
    )
    name = path.name if path.exists() else asked.target.partition("(")[0].rpartition(":")[2]
    return (
        name,
        f"Does less curvature help the models of {source.name} (arm {source.arm}) without training them?",
        [study],
    )


def _of_pictures(asked: Asked) -> tuple[str, str, list[Study]]:
    """A network from a file, taught the classes of a folder."""
    from steering.curvature import pictures

    name, sign, path = asked.target.partition("=")
    if not sign or asked.data is None:
        raise UserError(
            "a network from a file is given as resnet18=weights.pt, with --data FOLDER of pictures by class"
        )
    _refuse(asked, "parts", "refit", "arm", "sets")
    methods = tuple(part.strip() for part in asked.methods.split(",")) if asked.methods else METHODS
    for method in methods:
        if method not in METHODS:
            raise UserError(
                f"no method is named {method!r}{did_you_mean(method, METHODS) or '.'} Known: {', '.join(METHODS)}"
            )
    chosen: tuple[Method, ...] = tuple(method for method in get_args(Method) if method in methods)
    here = str(device(asked.device))
    body, width = pictures.backbone(pictures.load_network(name, Path(path)))
    samples, classes = pictures.load_pictures(asked.data, asked.size)
    betas = search.parse(asked.betas or (QUICK_BETAS if asked.quick else "0.7:1:0.05"))
    steps = asked.steps or (5 if asked.quick else 100)
    teaching = Teaching(betas, (1e-2,) if asked.quick else (1e-3, 1e-2, 1e-1), steps, 32, chosen, here)

    def measure(seed: int) -> dict[str, Any]:
        return transfer.compare(body, width, len(classes), pictures.splits(samples, seed), teaching, seed)

    what = f"{name} on {len(samples.y)} pictures of {len(classes)} classes"
    settings = asdict(teaching) | {"network": asked.target, "data": str(asked.data), "size": asked.size}
    del settings["device"]  # one may go on elsewhere
    seeds = range(asked.seeds or (1 if asked.quick else 3))
    study = Study("pictures", seeds, measure, lambda found: sections.transfer(found, what), settings)
    return name.replace("/", "-"), f"Does less curvature help {name} on new classes of pictures?", [study]


def _measured(study: Study, folder: Path, console: Console) -> list[dict[str, Any]]:
    """Every repetition of a study, read back where it is there already."""
    found = []
    settings = json.loads(json.dumps(study.settings))
    for seed in study.seeds:
        path = folder / "parts" / f"{study.name}-{seed}.json"
        if not path.exists():
            console.print(f"{study.name}: repetition {seed}", markup=False, highlight=False)
            atomic_files.write_json(path, {"settings": settings, "found": study.measure(seed)})
        try:
            known = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path} is damaged: delete it, and that repetition is measured again") from None
        if known["settings"] != settings:
            raise UserError(f"{path} was made with other settings: choose another --out, or repeat that command")
        found.append(known["found"])
    return found


def report(name: str, question: str, command: str, told: dict[str, Section], numbers: dict[str, Any]) -> Report:
    """The studies as one report."""
    changes = {where: change for section in told.values() for where, change in section.changes.items()}
    verdicts = [answer(changes)] * bool(changes) + [section.verdict for section in told.values() if section.verdict]
    findings = [finding for section in told.values() for finding in section.findings]
    first = " ".join(verdicts) or findings.pop(0)
    return Report(
        title=f"Curvature tuning: {name}",
        question=question,
        verdict=first,
        command=command,
        findings=findings,
        cautions=[caution for section in told.values() for caution in section.cautions],
        grids=[grid for section in told.values() for grid in section.grids],
        plots=[plot for section in told.values() for plot in section.plots],
        method=[
            "A curvature unit is phi(x) = c sigmoid(beta x / (1 - beta)) x + (1 - c) (1 - beta) softplus(x / (1 - "
            "beta)) (Hu et al. 2025) in place of every ReLU of a trained network; beta = 1 is ReLU, "
            "and c = 0.5 unless it is learned. Beta is chosen on the validation split, beta = 1 is always among "
            "the candidates, and of equal ones the nearest to 1 is taken.",
            *([_correction(len(changes))] if len(changes) > 1 else []),
            *(paragraph for section in told.values() for paragraph in section.method),
        ],
        limits=[*LIMITS, *(limit for section in told.values() for limit in section.limits)],
        numbers=numbers,
    )


def _correction(number: int) -> str:
    """What the answer claims, where it looks at several comparisons at once."""
    return (
        f"The answer looks at {number} comparisons of the chosen beta with beta = 1 and calls decided what still is "
        "after Holm's correction over them (Holm 1979). Intervals, colours in tables and all other sentences are of "
        "each comparison alone."
    )
