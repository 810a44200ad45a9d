"""What a curve says in words: the verdict, what else it found, and what to be careful about."""

from collections.abc import Sequence
from itertools import pairwise

from steering.theory_checks.curve.analysis import LEAST, LEAST_REFERENCE, Analysis, Gain
from steering.theory_checks.curve.plan import REFERENCE
from steering.theory_checks.curve.tables import points
from steering.theory_checks.curve.tuning import Chosen, at_the_end

QUESTION = (
    "How many training samples does steering by a reference save, against plain training, against other uses of the "
    "same reference, and against the reference itself?"
)
DOES = {
    "filter": "Dropping the samples of highest reference loss once, then training plainly,",
    "distill": "Learning the reference's answers beside the labels",
    "joined": "Plain training on the training samples and the reference's own",
    "shuffled": "The same with reference losses of other samples, a negative control,",
}
NEEDED = "losses with outputs to distil from, and reference_batch() to join"
METHOD = [
    "A seed draws training pool, noise, reference, initial weights and order; every method has the same. Of the pool "
    "the first n samples are used, so that smaller sets are parts of larger ones; the test set is one for all sizes. "
    "All methods take the same number of steps with the same batch (or the whole set, where that is smaller).",
    "Differences are paired by seed, with 95 % t intervals; over the sizes of one comparison, p values are adjusted by "
    "Holm. Samples to reach the reference are read off the mean curve, both axes logarithmic, the target being the "
    "mean error of the reference on the same test sets; their intervals, and those of slopes, are percentiles of "
    "2000 bootstrap draws of seeds, the target drawn with them, taken further out as few seeds need it (Hesterberg "
    "2015, section 5.3). What lies beyond the sizes that were tried is shown as < or >.",
    "A power law with a floor, error = E + A / n^b, is fitted only to 5 sizes or more over 1.5 decades, and told only "
    "if the interval of E lies above 0 and below the last error. Compute counts 1 for a forward and 2 for a backward "
    "pass of a sample, scoring included; the reference's losses are remembered, so that it sees every sample once.",
]
LIMITS = [
    "One task and one way to train: whether a method pays elsewhere, noise and quality of the reference decide.",
    "Where all seeds draw from the same small data set, intervals hold for that data set: test sets overlap.",
    "The reference's own samples cost labels too. Against a budget of labels, joined is the fair comparison.",
    "Steeper slopes are not what to look for: the theory's faster rate needs a reference of nearly the best loss.",
]


def verdict(found: Analysis) -> str:
    """The answer in a sentence."""
    plan = found.plan
    reached, base, saving = found.reached(plan.steered), found.reached(plan.baseline), found.saving(plan.steered)
    if reached is None or base is None or saving is None:
        return _at_one_size(found)
    if reached.value.low == 0:
        return (
            f"{plan.steered} is as good as the reference from the smallest size on (n = {plan.sizes[0]}), "
            f"{plan.baseline} at {base.words()} samples."
        )
    if reached.value.high == float("inf"):
        return f"{plan.steered} does not become as good as the reference within {plan.sizes[-1]} samples."
    decided = saving.interval.low > 1
    end = "." if decided else ", which may be chance."
    return (
        f"{plan.steered} is as good as the reference at {reached.words()} samples, {plan.baseline} at {base.words()}: "
        f"{saving.words(1)} times as many{end}"
    )


def findings(found: Analysis) -> list[str]:
    """Further sentences, the most important first."""
    plan = found.plan
    lines = [_sizes_line(found, plan.baseline), _sizes_line(found, REFERENCE)] if len(plan.sizes) > 1 else []
    both = [
        a.size
        for a, b in zip(found.gains(plan.steered, plan.baseline), found.gains(plan.steered, REFERENCE), strict=True)
        if a.verdict == b.verdict == "better"
    ]
    if both and len(plan.sizes) > 1:
        lines.append(f"It beats both {plan.baseline} and the reference at n = {_listed(both)}.")
    for name, words in DOES.items():
        if name in plan.methods:
            gains = found.gains(name, plan.steered)
            lines.append(f"{words} is {_counted(gains)} than {plan.steered}, as far as these seeds tell.")
    return lines


def cautions(found: Analysis, chosen: Chosen) -> list[str]:
    """What to be careful about in these very numbers."""
    plan = found.plan
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
        lines.append(f"not compared: {', '.join(missing)} (left out, or the task has not what they need: {NEEDED})")
    bent = [name for name in found.names if _rises(found, name)]
    if bent:
        lines.append(f"errors do not fall from size to size everywhere ({', '.join(bent)}): the first crossing is told")
    return lines


def settings_words(found: Analysis, chosen: Chosen) -> str:
    """How hyper-parameters were come by."""
    plan = found.plan
    if not chosen:
        return (
            "Hyper-parameters were frozen beforehand, the same at every size (numbers.plan in report.json has them); "
            "no result of these seeds chose any."
        )
    last = plan.first_tuning_seed + plan.tuning_seeds - 1
    return (
        f"Every method had the same number of trials at every size, on seeds {plan.first_tuning_seed} to {last}, which "
        f"report nothing: {plan.tune} weight decays, then {plan.tune} values of its own parameter at the best one (or, "
        "for a method without any, as many finer weight decays). What was best is told by those seeds' own test sets, "
        "which are apart from the reported ones only where each seed draws its own."
    )


def _at_one_size(found: Analysis) -> str:
    plan = found.plan
    size = plan.sizes[0]
    parts = []
    for other in (plan.baseline, REFERENCE):
        [gain] = found.gains(plan.steered, other)
        more = "more" if gain.interval.mean < 0 else "less"
        half = "" if gain.interval.half is None else f" \u00b1 {points(found, gain.interval.half)}"
        open_ = " (undecided)" if gain.verdict == "undecided" else ""
        parts.append(f"{points(found, abs(gain.interval.mean))}{half} points {more} than {other}{open_}")
    return f"At n = {size}, {plan.steered} errs {' and '.join(parts)}."


def _sizes_line(found: Analysis, other: str) -> str:
    gains = found.gains(found.plan.steered, other)
    return f"{found.plan.steered} is {_counted(gains)} than {other}."


def _counted(gains: Sequence[Gain]) -> str:
    """At which sizes what is decided."""
    if len(gains) == 1:
        return "neither better nor worse" if gains[0].verdict == "undecided" else gains[0].verdict
    parts = []
    for words in ("better", "worse"):
        sizes = [gain.size for gain in gains if gain.verdict == words]
        if sizes:
            parts.append(f"{words} at n = {_listed(sizes)}")
    if not parts:
        return "neither better nor worse at any size"
    undecided = [gain.size for gain in gains if gain.verdict == "undecided"]
    return " and ".join(parts) + (f" (undecided at {_listed(undecided)})" if undecided else "")


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _rises(found: Analysis, name: str) -> bool:
    means = list(found.table(name).mean(0))
    return any(after > before for before, after in pairwise(means))
