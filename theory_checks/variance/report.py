"""The report on trained models: what the reference takes of their losses' variance."""

from collections.abc import Mapping, Sequence
from typing import Any

from steering.reports.grid import MISSING, Cell, Column, Grid
from steering.reports.report import Report
from steering.theory_checks.variance import certified, plots, trajectory
from steering.theory_checks.variance.bench import STAR, Collected
from steering.theory_checks.variance.losses import MOST_WHOLE
from steering.theory_checks.variance.measure import Measured
from steering.theory_checks.variance.paired import PER_ANCHOR
from steering.theory_checks.variance.trajectory import Moment
from steering.theory_checks.variance.words import (
    TONES,
    VISIBLE,
    Leak,
    answer,
    cautions,
    leak,
    of_seeds,
    short,
    span,
    verdict,
)

QUESTION = (
    "Does subtracting the reference's loss make the loss vary less on data that neither model was trained on? By the "
    "theory the main term of the excess risk then shrinks by sqrt(R), R = Var(l - l_ref) / Var(l)."
)
DEFINITIONS = (
    "l is the loss of a target and l_ref that of the reference on the same held-out samples, distributed as the "
    "training data are, wrong labels included; d = l - l_ref. The bounds are Theorem 1 and Corollary 1 of Wei et al. "
    "(2025), whose main terms are sqrt(2 rho Var(d) / n) with the reference and sqrt(2 rho Var(l) / n) without: their "
    "ratio is sqrt(R). R < 1 exactly where corr(l, l_ref) > sd(l_ref) / (2 sd(l)). beta* = Cov / Var(l_ref) is the "
    "scale of least variance."
)
INTERVALS = (
    "Intervals are 95 % percentiles of a paired bootstrap (one draw of the samples for all figures), over seeds first "
    "and then over each seed's samples; expanded as of Hesterberg (2015, section 5.3) for few seeds. Ratios are "
    "averaged as logarithms. Image-text pairs are drawn whole, as anchors and as negatives. 'Smaller' and 'larger' "
    "need an interval on one side of 1."
)
LIMITS = [
    "Whether steering beats plain training: mean(l - l_ref) and mean(l) have the same minimiser, so a smaller variance "
    "changes nothing for plain training. The reference acts through the weights alone.",
    "Whether the weights help for another reason. Where labels are wrong, a sure reference gives them large losses, "
    "and steering takes their weight away, whatever R says.",
    "Whether a reference is good, from the R of a target that was steered by it: steering pulls the target towards the "
    "reference, which makes R small whatever that is worth. The target without it comes first for that reason.",
    "How large the error will be. The bound is right about order at best, and its constants are far from tight.",
    "Whether the reference has leaked, except by the gap told: an overfit reference scored on its own training data "
    "has a loss near 0 and looks harmless. Its provenance has to be known.",
]


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
    named = {label(*key): found for key, found in measured.items()}
    head, first = next(iter(named.items()))
    leaks = leak(collected.leaks) if collected.leaks else None
    warnings = of_seeds(first) + [line for name, found in _heads(measured).items() for line in cautions(name, found)]
    if leaks is not None and leaks.found:
        warnings.insert(0, _leaked(leaks))
    key = next(iter(measured))
    pair = collected.pairs[key][0]
    certificates = certified.certify(collected)
    course = trajectory.finding(along, head) if along else None
    if any(target == STAR for target, _ in measured) and collected.size > MOST_WHOLE:
        warnings.append(_short_of(collected.size))
    return Report(
        title=f"Variance: {subject}",
        question=QUESTION,
        verdict=answer(first, head),
        findings=_findings(_heads(measured), leaks) + ([course] if course else []),
        cautions=warnings,
        grids=[_ratios(named), _details(named), *([certified.grid(certificates)] if certificates else [])],
        plots=[
            plots.ratios(named),
            plots.cloud(head, pair),
            plots.tails(head, pair),
            *([plots.along(head, along)] if along else []),
        ],
        method=[DEFINITIONS, _data(first, collected, measured), INTERVALS, _course(along)],
        limits=LIMITS,
        numbers={
            "measured": {name: as_numbers(found) for name, found in named.items()},
            "leak": None if leaks is None else {"gap": leaks.gap, "error": leaks.error, "found": leaks.found},
            "shared_samples": collected.crossed,
            "certificates": certified.as_numbers(certificates),
            "along_training": trajectory.as_numbers(along),
        },
        command=command,
    )


def label(target: str, view: str) -> str:
    """A target and view as the tables name it."""
    name = "best model at hand" if target == STAR else target
    return f"{name}, {view}" if view else name


def as_numbers(found: Measured) -> dict[str, Any]:
    """All of a measurement as plain numbers."""
    figures = found.figures | {"winsorised": found.winsorised}
    said = {name: {"value": f.value, "low": f.low, "high": f.high} for name, f in figures.items()}
    return said | {
        "verdict": verdict(found.ratio),
        "factor": found.ratio.value**0.5,
        "temperature": found.temperature,
        "ratio_at_temperature": found.tempered,
        "shuffled": found.shuffled,
        "shuffled_expected": found.uncorrelated,
        "tails": vars(found.tails) | {"reliable": found.reliable},
        "units": found.units,
        "seeds": found.repetitions,
        "ratios": found.ratios,
    }


def _heads(measured: Mapping[tuple[str, str], Measured]) -> dict[str, Measured]:
    """The first view of every target; words for all of them would hide what matters."""
    first: dict[str, tuple[str, str]] = {}
    for key in measured:
        first.setdefault(key[0], key)
    return {label(*key): measured[key] for key in first.values()}


def _findings(named: Mapping[str, Measured], leaks: Leak | None) -> list[str]:
    (head, first), *others = named.items()
    figures = first.figures
    lines = []
    if "ratio_at_scale" in figures:
        scaled = figures["ratio_at_scale"]
        lines.append(
            f"Subtracted with the scale of the steered arm, the reference leaves R = {span(scaled)} ({head}): "
            f"{verdict(scaled)}."
        )
    lines += [answer(found, name) for name, found in others]
    if figures["ratio_at_beta"].value < min(first.ratio.value / 2, VISIBLE) and first.ratio.value > VISIBLE / 2:
        lines.append(
            f"What stands against the reference is its scale, not what it knows: subtracted "
            f"{short(figures['beta'].value)} times ({head}), it would leave R = "
            f"{short(figures['ratio_at_beta'].value)}."
        )
    tempered, temperature = first.tempered, first.temperature
    if tempered is not None and temperature is not None and tempered < min(first.ratio.value / 2, VISIBLE):
        lines.append(
            f"With its scores divided by {short(temperature)} the reference would leave R = "
            f"{short(tempered)} ({head}): it is {'over' if temperature > 1 else 'under'}-confident here."
        )
    difference = figures["difference"]
    side = "below" if difference.value < 0 else "above"
    lines.append(
        f"The mean held-out loss of {head} is {short(abs(difference.value))} {side} the reference's (mean difference "
        f"{span(difference)})."
    )
    lines.append(
        f"With the reference's losses of other samples R is {short(first.shuffled)}; {short(first.uncorrelated)} is "
        f"what an unrelated reference gives."
    )
    if leaks is not None and not leaks.found:
        lines.append(
            f"No sign of a leak: the reference's loss is {short(leaks.gap)} +- {short(leaks.error)} (one "
            f"standard error) higher on fresh samples than on the target's training samples."
        )
    return lines


def _leaked(leaks: Leak) -> str:
    return (
        f"the reference's loss is {short(leaks.gap)} lower on the target's training data than on fresh data "
        f"({leaks.gap / leaks.error:.1f} standard errors): it seems to have seen them, and what is measured here on "
        f"fresh data does not hold in training"
    )


def _short_of(size: int) -> str:
    return (
        f"the best model at hand was trained on {MOST_WHOLE:,} of the {size:,} training samples, so it need not be "
        f"better than the target"
    )


def _course(along: Sequence[Sequence[Moment]]) -> str:
    if not along:
        return "R along the training is not told: it is looked at while steer variance itself trains the plain target."
    return (
        "R along the training is that of the plain target on the same held-out samples, secondary to R at its end and "
        "never pooled over steps. At its beginning, while sd(l) < sd(l_ref) / 2, R is above 1 whatever the reference "
        "knows."
    )


def _ratios(named: Mapping[str, Measured]) -> Grid:
    columns = ("target", "mean loss", "Var(l)", "Var(l - l_ref)", "R [95 %]", "variance", "sqrt(R)")
    rows = []
    for name, found in named.items():
        f, word = found.figures, verdict(found.ratio)
        numbers = [f["loss"], f["variance"], f["difference_variance"]]
        rows.append(
            (
                Cell(name),
                *(Cell(short(number.value, 3)) for number in numbers),
                Cell(span(found.ratio), "" if found.reliable else "undecided"),
                Cell(word if found.reliable else f"{word}?", TONES[word]),
                Cell(short(found.ratio.value**0.5)),
            )
        )
    note = "R = Var(l - l_ref) / Var(l). sqrt(R) is the factor on the main term of the bound, against DRO without it."
    return Grid("What the reference takes of the variance", _columns(columns), tuple(rows), note)


def _details(named: Mapping[str, Measured]) -> Grid:
    columns = (
        "target",
        "corr",
        "needed",
        "beta*",
        "R at beta*",
        "temp.",
        "R there",
        "shuffled",
        "winsorised",
        "top unit",
    )
    rows = []
    for name, found in named.items():
        f, tails = found.figures, found.tails
        share = max(tails.loss_share, tails.difference_share)
        met = f["margin"].value > 0
        rows.append(
            (
                Cell(name),
                Cell(short(f["correlation"].value, 3)),
                Cell(f"> {short(f['deviations'].value / 2, 3)}", "better" if met else "worse"),
                Cell(short(f["beta"].value)),
                Cell(short(f["ratio_at_beta"].value)),
                Cell(MISSING if found.temperature is None else short(found.temperature)),
                Cell(MISSING if found.tempered is None else short(found.tempered)),
                Cell(short(found.shuffled)),
                Cell(short(found.winsorised.value)),
                Cell(f"{100 * share:.1f} %", "" if found.reliable else "worse"),
            )
        )
    note = (
        "needed: sd(l_ref) / (2 sd(l)), the correlation above which R < 1. temp.: what the reference's scores would "
        "have to be divided by for the smallest R, found on these very samples. shuffled: R with the reference's "
        "losses of other samples. winsorised: R with the outer hundredth of either tail drawn in. top: the largest "
        "share of one sample (or pair) in either variance."
    )
    return Grid("What it is made of", _columns(columns), tuple(rows), note)


def _columns(names: tuple[str, ...]) -> tuple[Column, ...]:
    return tuple(Column(name, number=place > 0) for place, name in enumerate(names))


def _data(first: Measured, collected: Collected, measured: Mapping[tuple[str, str], Measured]) -> str:
    lines = [f"{first.units:,} held-out {'pairs' if _of_pairs(measured) else 'samples'}, {first.repetitions} seeds."]
    if collected.crossed:
        lines.append("All seeds have the same held-out samples, which are drawn for all of them at once.")
    if any(target == STAR for target, _ in measured):
        lines.append(
            "The best model at hand stands in for the best possible one, at which the theory takes R: the arm without "
            "the reference, trained on the training samples and one half of the held-out ones, asked about the other."
        )
    if _of_pairs(measured):
        lines.append(
            "Per pair: l_ij = s_ij - s_ii over all anchors and negatives, what the paper prints (4.49e-3 against "
            "7.26e-3, image side). Within an anchor: the variance over its negatives, averaged over anchors, which is "
            "what the robust problem of an anchor sees. Per anchor: tau log mean exp(l_ij / tau)."
        )
    return " ".join(lines)


def _of_pairs(measured: Mapping[tuple[str, str], Measured]) -> bool:
    return any(PER_ANCHOR in view for _, view in measured)
