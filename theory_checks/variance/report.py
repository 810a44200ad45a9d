"""The report on trained models: what the reference takes of their losses' variance."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from steering.reports.grid import MISSING, Cell, Grid, Tone
from steering.reports.report import Report
from steering.theory_checks.bound.certificate import certificate
from steering.theory_checks.variance import plots, trajectory, verdicts
from steering.theory_checks.variance.bench import MOST_WHOLE, STAR, Collected
from steering.theory_checks.variance.measure import Measured
from steering.theory_checks.variance.paired import PER_ANCHOR, Samples
from steering.theory_checks.variance.trajectory import Moment

DELTA = 0.05  # of the certificates
QUESTION = (
    "Does subtracting the reference's loss make the loss vary less on data that neither model was trained on? By the "
    "theory the main term of the excess risk then shrinks by sqrt(R), R = Var(l - l_ref) / Var(l)."
)


def report(
    subject: str,
    collected: Collected,
    measured: Mapping[tuple[str, str], Measured],
    along: Sequence[Sequence[Moment]],
    command: str,
) -> Report:
    """Builds the report on a task or run.

    Args:
        measured: by target and view; the first one is the headline.
        along: what was seen of the plain target while it trained, by seed; none if nobody looked.
    """
    by_name = {label(*key): one for key, one in measured.items()}
    head, first = next(iter(by_name.items()))
    pair = collected.pairs[next(iter(measured))][0]
    leaked = verdicts.leak(collected.leaks) if collected.leaks else None
    certificates = certify(collected)
    findings, warnings = _sentences(collected, measured, leaked)
    if along and (course := trajectory.finding(along, head)):
        findings.append(course)
    noun = "pairs" if any(PER_ANCHOR in view for _, view in measured) else "samples"
    same = " All seeds have the same held-out samples, which are drawn for all of them at once."
    pictures = [plots.ratios(by_name), plots.cloud(head, pair), plots.tails(head, pair)]
    return Report(
        title=f"Variance: {subject}",
        question=QUESTION,
        verdict=verdicts.answer(first, head),
        findings=findings,
        cautions=warnings,
        grids=[_ratios(by_name), _details(by_name), *([certificate_grid(certificates)] if certificates else [])],
        plots=[*pictures, *([plots.along(head, along)] if along else [])],
        method=[
            f"{first.units:,} held-out {noun}, {first.repetitions} seeds.{same if collected.crossed else ''}",
            "Definitions, intervals and limits are explained in docs/variance.md of model-steering.",
        ],
        numbers={
            "measured": {name: as_numbers(one) for name, one in by_name.items()},
            "leak": leaked and {"gap": leaked.gap, "error": leaked.error, "found": leaked.detected},
            "shared_samples": collected.crossed,
            "certificates": certificates,
            "along_training": [[asdict(one) | {"ratio": one.ratio, "init": one.initial} for one in s] for s in along],
        },
        command=command,
    )


def _sentences(
    collected: Collected, measured: Mapping[tuple[str, str], Measured], leaked: verdicts.Leak | None
) -> tuple[list[str], list[str]]:
    """Findings and cautions on the first view of every target; sentences on all would hide what matters."""
    views = {target: (target, view) for target, view in list(measured)[::-1]}
    heads = {label(*key): measured[key] for key in measured if key in views.values()}
    findings, warnings = verdicts.further(heads), verdicts.of_seeds(next(iter(heads.values())))
    warnings += [line for name, one in heads.items() for line in verdicts.cautions(name, one)]
    if leaked is not None and leaked.detected:
        warnings.insert(0, leaked.sentence())
    elif leaked is not None:
        findings.append(leaked.sentence())
    if STAR in views and collected.size > MOST_WHOLE:
        warnings.append(
            f"the best model at hand was trained on {MOST_WHOLE:,} of the {collected.size:,} training samples, so it "
            "need not be better than the target"
        )
    return findings, warnings


def label(target: str, view: str) -> str:
    """A target and view as the tables name it."""
    name = "best model at hand" if target == STAR else target
    return f"{name}, {view}" if view else name


def as_numbers(measured: Measured) -> dict[str, Any]:
    """All of a measurement as plain numbers."""
    return measured.figures | {
        "winsorised": measured.winsorised,
        "verdict": verdicts.verdict(measured.ratio),
        "factor": measured.ratio.value**0.5,
        "temperature": measured.temperature,
        "ratio_at_temperature": measured.tempered,
        "shuffled": measured.shuffled,
        "shuffled_expected": measured.uncorrelated,
        "tails": vars(measured.tails) | {"reliable": measured.reliable},
        "units": measured.units,
        "seeds": measured.repetitions,
        "ratios": measured.ratios,
    }


def _ratios(by_name: Mapping[str, Measured]) -> Grid:
    rows = []
    for name, measured in by_name.items():
        ratio, reliable, outcome = measured.ratio, measured.reliable, verdicts.verdict(measured.ratio)
        means = [verdicts.short(measured.figures[key].value, 3) for key in ("loss", "variance", "difference_variance")]
        pill = Cell(outcome if reliable else f"{outcome}?", verdicts.TONES[outcome])
        span = Cell(verdicts.span(ratio), "" if reliable else "undecided")
        rows.append([name, *means, span, pill, verdicts.short(ratio.value**0.5)])
    heads = ["mean loss", "Var(l)", "Var(l - l_ref)", "R [95 %]", "variance", "sqrt(R)"]
    note = "R = Var(l - l_ref) / Var(l). sqrt(R) is the factor on the main term of the bound, against DRO without it."
    return Grid.of("What the reference takes of the variance", ["target"], heads, rows, note)


def _details(by_name: Mapping[str, Measured]) -> Grid:
    heads = ("corr", "needed", "beta*", "R at beta*", "temp.", "R there", "shuffled", "winsorised", "top unit")
    rows = []
    for name, one in by_name.items():
        value = {key: figure.value for key, figure in one.figures.items()}
        least = Cell(f"> {verdicts.short(value['deviations'] / 2, 3)}", "better" if value["margin"] > 0 else "worse")
        tempered = (one.temperature, one.tempered)
        others = (value["beta"], value["ratio_at_beta"], *tempered, one.shuffled, one.winsorised.value)
        texts = [MISSING if x is None else verdicts.short(x) for x in others]
        top = Cell(f"{100 * one.tails.share:.1f} %", "" if one.reliable else "worse")
        rows.append([name, verdicts.short(value["correlation"], 3), least, *texts, top])
    note = (
        "needed: the correlation above which R < 1. temp.: of the reference's scores for the smallest R, on these very "
        "samples. winsorised: with the outer hundredth of either tail drawn in. top unit: its share of a variance."
    )
    return Grid.of("What it is made of", ["target"], heads, rows, note)


def certify(collected: Collected) -> dict[str, list[dict[str, float]]]:
    """Certificates of all targets with losses of single samples, by name and seed, as plain numbers.

    The best model at hand has none: it is two models, each scored on the other's half.
    """
    certificates = {}
    for (target, view), pairs in collected.pairs.items():
        differences = [p.target - p.reference for p in pairs if isinstance(p, Samples) and p.clusters is None]
        if target != STAR and not view and len(differences) == len(pairs):
            certificates[target] = [_certificate(d, float(np.ptp(d))) for d in differences]
    return certificates


def _certificate(d: np.ndarray, width: float) -> dict[str, float]:
    bounded = certificate(d, DELTA, width)
    numbers = {"mean": bounded.mean, "samples": bounded.samples, "upper": bounded.upper, "width_seen": width}
    return numbers | {"asymptotic": certificate(d, DELTA).upper}


def certificate_grid(certificates: dict[str, list[dict[str, float]]]) -> Grid:
    rows = []
    for target, seeds in certificates.items():
        means = [float(np.mean([one[name] for one in seeds])) for name in ("mean", "upper", "width_seen", "asymptotic")]
        better = sum(one["upper"] <= 0 for one in seeds)
        tone: Tone = "better" if better == len(seeds) else "undecided" if better else "quiet"
        rows.append([target, *map(verdicts.short, means), Cell(f"{better} of {len(seeds)} seeds", tone)])
    note = (
        "at most: with probability 95 %, if l - l_ref spans no more than B. Here B is the span that was seen, and "
        "cross-entropy has no bound, so this too is asymptotic; steer bound --run FOLDER --width B takes one that is "
        "known. asymptotic: without B. Means over seeds; no worse: seeds whose own bound is at most 0."
    )
    heads = ["mean l - l_ref", "at most", "B", "asymptotic", "no worse"]
    return Grid.of("How much worse than the reference the target can be", ["target"], heads, rows, note)
