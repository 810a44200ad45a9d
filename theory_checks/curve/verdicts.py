"""What a curve says in sentences: the verdict, further findings, and what to be careful about."""

from collections.abc import Sequence
from itertools import pairwise

from steering.runs.table import Format
from steering.theory_checks.curve.analysis import LEAST, LEAST_REFERENCE, Analysis, Gain
from steering.theory_checks.curve.plan import REFERENCE
from steering.theory_checks.curve.tuning import Chosen, at_the_end

DOES = {
    "filter": "Dropping the samples of highest reference loss once, then training plainly,",
    "distill": "Learning the reference's answers beside the labels",
    "joined": "Plain training on the training samples and the reference's own",
    "shuffled": "The same with reference losses of other samples, a negative control,",
}
REQUIRED = "losses with outputs to distil from, and reference_batch() to join"


def verdict(analysis: Analysis) -> str:
    """The answer in a sentence."""
    plan = analysis.plan
    if len(plan.sizes) == 1:
        return _at_one_size(analysis)
    reached, base = (analysis.reached(name) for name in (plan.steered, plan.baseline))
    saving = analysis.saving(plan.steered)
    if reached.value.low == 0:
        return (
            f"{plan.steered} is as good as the reference from the smallest size on (n = {plan.sizes[0]}), "
            f"{plan.baseline} at {base.words()} samples."
        )
    if reached.value.high == float("inf"):
        return f"{plan.steered} does not become as good as the reference within {plan.sizes[-1]} samples."
    end = "." if saving.interval.low > 1 else ", which may be chance."
    return (
        f"{plan.steered} is as good as the reference at {reached.words()} samples, {plan.baseline} at {base.words()}: "
        f"{saving.words(1)} times as many{end}"
    )


def _at_one_size(analysis: Analysis) -> str:
    plan, style, parts = analysis.plan, Format(analysis.plan.factor, 1), []
    for other in (plan.baseline, REFERENCE):
        [gain] = analysis.gains(plan.steered, other)
        comparative = "more" if gain.interval.mean < 0 else "less"
        half = "" if gain.interval.half is None else f" \u00b1 {style.number(gain.interval.half)}"
        undecided = " (undecided)" if gain.verdict == "undecided" else ""
        parts.append(f"{style.number(abs(gain.interval.mean))}{half} points {comparative} than {other}{undecided}")
    return f"At n = {plan.sizes[0]}, {plan.steered} errs {' and '.join(parts)}."


def findings(analysis: Analysis) -> list[str]:
    """Further sentences, the most important first."""
    plan = analysis.plan
    over_baseline, over_reference = (analysis.gains(plan.steered, other) for other in (plan.baseline, REFERENCE))
    lines = []
    if len(plan.sizes) > 1:
        lines.append(f"{plan.steered} is {_counted(over_baseline)} than {plan.baseline}.")
        lines.append(f"{plan.steered} is {_counted(over_reference)} than {REFERENCE}.")
        pairs = zip(over_baseline, over_reference, strict=True)
        both = [a.size for a, b in pairs if a.verdict == b.verdict == "better"]
        if both:
            lines.append(f"It beats both {plan.baseline} and the reference at n = {_listed(both)}.")
    for name, description in DOES.items():
        if name in plan.methods:
            counted = _counted(analysis.gains(name, plan.steered))
            lines.append(f"{description} is {counted} than {plan.steered}, as far as these seeds tell.")
    return lines


def cautions(analysis: Analysis, chosen: Chosen) -> list[str]:
    """What to be careful about in these very numbers."""
    plan = analysis.plan
    lines = []
    if plan.seeds < LEAST:
        lines.append(f"{plan.seeds} seeds are few: {LEAST} or more decide, {LEAST_REFERENCE} against the reference")
    elif plan.seeds < LEAST_REFERENCE:
        lines.append(f"{plan.seeds} seeds are few for claims against the reference: use {LEAST_REFERENCE} or more")
    if not chosen and len(plan.sizes) > 1:
        lines.append("hyper-parameters are the same at every size, though the best ones change with n: see --tune")
    if chosen and (ends := at_the_end(plan, chosen)):
        lines.append(f"the best weight decay lies at an end of what was tried for {', '.join(ends)}: begin elsewhere")
    missing = [name for name in DOES if name not in plan.methods]
    if missing:
        lines.append(f"not compared: {', '.join(missing)} (left out, or the task has not what they need: {REQUIRED})")
    rising = [name for name in analysis.names if any(b > a for a, b in pairwise(analysis.table(name).mean(0)))]
    if rising:
        lines.append(
            f"errors do not fall from size to size everywhere ({', '.join(rising)}): the first crossing is told"
        )
    return lines


def tuning(analysis: Analysis, chosen: Chosen) -> str:
    """How hyper-parameters were come by."""
    plan = analysis.plan
    if not chosen:
        return (
            "Hyper-parameters were frozen beforehand, the same at every size (numbers.plan in report.json has them); "
            "no result of these seeds chose any."
        )
    last = plan.first_tuning_seed + plan.tuning_seeds - 1
    return (
        f"Every method had the same number of trials at every size, {plan.tune} weight decays and {plan.tune} values "
        f"of its own parameter, on seeds {plan.first_tuning_seed} to {last}, which report nothing."
    )


def _counted(gains: Sequence[Gain]) -> str:
    """At which sizes what is decided."""
    sizes = {verdict: [gain.size for gain in gains if gain.verdict == verdict] for verdict in ("better", "worse")}
    decided = {verdict: at for verdict, at in sizes.items() if at}
    if len(gains) == 1:
        return "".join(decided) or "neither better nor worse"
    if not decided:
        return "neither better nor worse at any size"
    undecided = [gain.size for gain in gains if gain.verdict == "undecided"]
    parts = [f"{verdict} at n = {_listed(at)}" for verdict, at in decided.items()]
    return " and ".join(parts) + (f" (undecided at {_listed(undecided)})" if undecided else "")


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
