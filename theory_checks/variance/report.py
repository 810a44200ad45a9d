"""The report on trained models: what the reference takes of their losses' variance."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from steering.reports.grid import MISSING, Cell, Grid
from steering.reports.report import Report
from steering.theory_checks.variance import certified, plots, trajectory, verdicts
from steering.theory_checks.variance.bench import STAR, Collected
from steering.theory_checks.variance.losses import MOST_WHOLE
from steering.theory_checks.variance.measure import Measured
from steering.theory_checks.variance.paired import PER_ANCHOR
from steering.theory_checks.variance.trajectory import Moment

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
    """Builds the report.

    Args:
        subject: the task or the run.
        collected: what was measured.
        measured: by target and view; the first one is the headline.
        along: what was seen of the plain target while it trained, by seed; none if nobody looked.
        command: what the user typed.
    """
    by_name = {label(*key): one for key, one in measured.items()}
    head, first = next(iter(by_name.items()))
    pair = collected.pairs[next(iter(measured))][0]
    leaked = verdicts.leak(collected.leaks) if collected.leaks else None
    certificates = certified.certify(collected)
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
        grids=[_ratios(by_name), _details(by_name), *([certified.grid(certificates)] if certificates else [])],
        plots=[*pictures, *([plots.along(head, along)] if along else [])],
        method=[
            f"{first.units:,} held-out {noun}, {first.repetitions} seeds.{same if collected.crossed else ''}",
            "Definitions, intervals and limits are explained in docs/variance.md of model-steering.",
        ],
        numbers={
            "measured": {name: as_numbers(one) for name, one in by_name.items()},
            "leak": leaked and {"gap": leaked.gap, "error": leaked.error, "found": leaked.detected},
            "shared_samples": collected.crossed,
            "certificates": certified.as_numbers(certificates),
            "along_training": [[asdict(one) | {"ratio": one.ratio, "init": one.initial} for one in s] for s in along],
        },
        command=command,
    )


def _sentences(
    collected: Collected, measured: Mapping[tuple[str, str], Measured], leaked: verdicts.Leak | None
) -> tuple[list[str], list[str]]:
    """Findings and cautions on the first view of every target; sentences on all would hide what matters."""
    views: dict[str, tuple[str, str]] = {}
    for key in measured:
        views.setdefault(key[0], key)
    heads = {label(*key): measured[key] for key in views.values()}
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
        rows.append(
            [
                name,
                *means,
                Cell(verdicts.span(ratio), "" if reliable else "undecided"),
                pill,
                verdicts.short(ratio.value**0.5),
            ]
        )
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
        share = f"{100 * max(one.tails.loss_share, one.tails.difference_share):.1f} %"
        top = Cell(share, "" if one.reliable else "worse")
        rows.append([name, verdicts.short(value["correlation"], 3), least, *texts, top])
    note = (
        "needed: sd(l_ref) / (2 sd(l)), the correlation above which R < 1. temp.: what the reference's scores would "
        "have to be divided by for the smallest R, found on these very samples. shuffled: R with the reference's "
        "losses of other samples. winsorised: R with the outer hundredth of either tail drawn in. top: the largest "
        "share of one sample (or pair) in either variance."
    )
    return Grid.of("What it is made of", ["target"], heads, rows, note)
